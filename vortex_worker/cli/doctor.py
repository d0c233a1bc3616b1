"""``vortex-worker doctor``: what this machine can enforce, what is in force, and the proof of it."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from functools import partial
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

import vortex_worker
from vortex_worker.cli import EXIT_FAILED, EXIT_USAGE
from vortex_worker.errors import ConfigError, VortexError
from vortex_worker.sandbox import seccomp, view
from vortex_worker.sandbox.seccomp import load_policy
from vortex_worker.supervisor.fabric import Fabric

_LANDLOCK = (
    "files", "renaming across folders", "truncating", "TCP", "device ioctl", "abstract sockets and signals", "audit",
    "all threads at once",
)  # fmt: skip
_HAD = "can be had"
_SHOWN = 20  # mismatches in a table; --json has all


def doctor_command(policy: str, wxorx: bool, as_json: bool) -> int:
    """Look at the machine, start a worker, and tell what the kernel says of it. Returns the exit status."""
    if bad := _unusable((policy,)):
        return bad
    report: dict[str, Any] = {"machine": _machine(), "hints": []}
    try:
        with Fabric(1, policy=policy, wxorx=wxorx, standby=0) as fabric:
            (worker,) = fabric.wait_ready().workers()
            report["worker"] = worker["sandbox"]
    except VortexError as error:
        report["worker"] = {"enforced": False, "error": str(error)}
    enforced = bool(report["worker"]["enforced"])
    report["hints"] = hints(report["machine"], enforced)
    if as_json:
        print(json.dumps(report, indent=2))
        return 0 if enforced else EXIT_FAILED
    console = Console()
    table = Table(show_header=False, box=None)
    for key, value in {**report["machine"], **_sentences(report["worker"])}.items():
        table.add_row(key.replace("_", " "), escape(str(value)))
    console.print(table)
    if enforced:
        console.print("A worker here is locked as it should be; --matrix tries every system call.", style="green")
    else:
        console.print("No worker can be locked here, so none is started.", style="red")
    for hint in report["hints"]:
        console.print(f"· {hint}", highlight=False, markup=False)
    return 0 if enforced else EXIT_FAILED


def matrix_command(profiles: tuple[str, ...], wxorx: bool, as_json: bool) -> int:
    """Try every system call under the real locks. Returns the exit status: 0 if all is as the policies say."""
    from vortex_worker._core import probe
    from vortex_worker.sandbox import matrix

    if bad := _unusable(profiles):
        return bad
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    if not probe.supported():
        errors.print("The matrix makes system calls by hand, which it can on x86-64 Linux only.", style="red")
        return EXIT_FAILED
    findings = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    names = profiles or matrix.PROFILES
    try:
        with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
            for place, name in enumerate(names, 1):
                if errors.is_terminal:
                    tell = partial(_tell, progress, progress.add_task(f"[b]{escape(name)}", total=None))
                else:
                    errors.print(f"policy {name} ({place} of {len(names)}): trying every system call", markup=False)
                    tell = partial(_tell_in_lines, errors, Counter())
                findings.append(matrix.try_all(name, tell=tell, wxorx=wxorx))
    except ConfigError as error:
        errors.print(str(error), style="red", markup=False)
        return EXIT_USAGE
    except RuntimeError as error:
        errors.print(str(error), style="red", markup=False)
        return EXIT_FAILED
    if as_json:
        print(json.dumps({"profiles": {finding.profile: _as_dict(finding) for finding in findings}}, indent=2))
    else:
        _show(findings)
    return EXIT_FAILED if any(finding.mismatches or finding.redundant for finding in findings) else 0


def _unusable(profiles: tuple[str, ...]) -> int:
    """The exit status, and a sentence, where one of these is no policy; else 0."""
    for name in profiles:
        try:
            load_policy(name)
        except ConfigError as error:
            text = f"--profile {name}: {error}"
            Console(stderr=True, soft_wrap=True).print(text, style="red", markup=False, highlight=False)
            return EXIT_USAGE
    return 0


def _tell(progress: Progress, task: TaskID, done: int, of: int) -> None:
    progress.update(task, completed=done, total=of)


def _tell_in_lines(errors: Console, told: Counter[str], done: int, of: int) -> None:
    """A line for each quarter: who reads a pipe or a log wants to know that it goes on."""
    if 4 * done // of > told["quarters"]:
        told["quarters"] = 4 * done // of
        errors.print(f"  {done} of {of} calls tried")


def _show(findings: list[Any]) -> None:
    console = Console()
    table = Table("policy", "calls tried", "as the policy says", "allowed", "refused softly", "redundant lines")
    for finding in findings:
        share = f"{finding.as_policy} ({100 * finding.as_policy / finding.tested:.4g} %)"
        table.add_row(
            finding.profile, str(finding.tested), share, str(len(finding.allowed)), str(len(finding.refused)),
            str(len(finding.redundant)),
        )  # fmt: skip
    console.print(table)
    for finding in findings:
        for wrong in finding.mismatches[:_SHOWN]:
            console.print(
                f"{finding.profile}: {wrong.call}{tuple(map(hex, wrong.vector.args))}: the policy says "
                f"{wrong.policy}, the {wrong.by} {wrong.found} {wrong.thread}",
                style="red",
                markup=False,
            )
        for line in finding.redundant:
            console.print(f"{finding.profile}: redundant: {line}", style="red", markup=False)


def _as_dict(finding: Any) -> dict[str, Any]:
    return {
        "tested": finding.tested,
        "as_policy": finding.as_policy,
        "mismatches": [
            {"number": m.vector.number, "args": list(m.vector.args), "int_80": bool(m.vector.way), **m._asdict()}
            | {"vector": None}
            for m in finding.mismatches
        ],
        "allowed": list(finding.allowed),
        "allowed_count": len(finding.allowed),
        "filtered_count": len(finding.refused),
        "redundant": list(finding.redundant),
    }


def hints(machine: dict[str, Any], enforced: bool) -> list[str]:
    """What to do about what this machine lacks, a sentence each; none where all is well."""
    told = []
    if not machine["landlock_abi"]:
        told.append(
            "No Landlock: it takes Linux 5.13 or newer with landlock among the lsm= of its boot parameters; in a "
            "container, a system-call filter that allows landlock_create_ruleset, _add_rule and _restrict_self."
        )
    elif machine["landlock_abi"] < 6:
        told.append(
            "Landlock before ABI 6 (Linux 6.12): abstract sockets and signals are left to the system-call filter."
        )
    if not machine["seccomp"]:
        told.append(
            "No seccomp: the kernel lacks CONFIG_SECCOMP_FILTER, or the filter of a container forbids seccomp()."
        )
    if machine["view"] != _HAD:
        told.append(
            f"No view ({machine['view']}): under the policy execute, nodes can learn which files exist. It takes Linux "
            "5.12 or newer, and CAP_SYS_ADMIN or else user namespaces for everybody: user.max_user_namespaces above 0, "
            "kernel.unprivileged_userns_clone=1 (Debian), an AppArmor profile that allows userns (Ubuntu); in a "
            "container, a system-call filter that allows unshare, pivot_root and what mounts; in a systemd unit, "
            "RestrictNamespaces=user mnt and SystemCallFilter=@mount."
        )
    if not machine["denied_calls_named"]:
        told.append("No user notification: a denied call still ends its worker, but the error can't name the call.")
    if machine["huge_pages"] and "[never]" in machine["huge_pages"]:
        told.append(
            "Huge pages are off: workers start more slowly. echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        )
    if not enforced and not told:
        told.append("The kernel has what it takes; the message above says why no worker could be locked.")
    return told


def _machine() -> dict[str, Any]:
    from vortex_worker._core import lockdown

    abi = lockdown.landlock_abi()
    return {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "container": _container() or "none seen",
        "python": platform.python_version(),
        "vortex_worker": vortex_worker.__version__,
        "seccomp": seccomp.available(),
        "landlock_abi": abi,
        "landlock": ", ".join(_LANDLOCK[:abi]) or "none",
        "view": _view(),
        "denied_calls_named": os.path.exists("/proc/sys/kernel/seccomp/actions_avail")
        and "user_notif" in _read("/proc/sys/kernel/seccomp/actions_avail"),
        "huge_pages": _read("/sys/kernel/mm/transparent_hugepage/enabled").strip(),
    }


def _view() -> str:
    if platform.system() != "Linux":
        return "Linux only"
    return view.why_not() or _HAD


def _container() -> str:
    """The engine whose container this is, as far as it leaves a trace."""
    for path, name in (("/run/.containerenv", "Podman"), ("/.dockerenv", "Docker")):
        if os.path.exists(path):
            return name
    return os.environ.get("container", "")  # noqa: SIM112 (systemd's convention, which others keep too)


def _sentences(worker: dict[str, Any]) -> dict[str, Any]:
    if "error" in worker:
        return {"worker": worker["error"]}
    kernel = worker["kernel"]
    return {
        "worker": "locked" if worker["enforced"] else "not locked",
        "policy": worker["policy"],
        "layers": ", ".join(worker["layers"]),
        "the kernel says": f"seccomp mode {kernel['seccomp']} in every thread, {kernel['filters']} filters, "
        f"no new privileges: {'yes' if kernel['no_new_privs'] else 'no'}, capabilities: {kernel['capabilities']:#x}",
    }


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
