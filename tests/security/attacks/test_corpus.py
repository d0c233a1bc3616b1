"""Every attack of the corpus in a real worker: stopped, by each of its layers alone, and not without them.

Judged by its effect: what somebody outside sees changed, read, received, started. How the attack ends (an errno, a
death) is not looked at, but for one thing: the supervisor must go on, and run an honest job after it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE / "nodes")]

import catalogue  # noqa: E402
from hostile import ATTACKS  # noqa: E402
from hostile.registry import DEADLINE, LANDLOCK, LAYERS, PROCESS, VIEW, AttackCase  # noqa: E402
from sandbox_child import no_view, supported  # noqa: E402
from scene import Report, Scene, unprotected  # noqa: E402

from vortex_worker._core import lockdown  # noqa: E402
from vortex_worker.errors import WorkerLost  # noqa: E402

pytestmark = pytest.mark.skipif(not supported(), reason="this machine lacks seccomp or Landlock")

#: How a machine says that it has no such thing, or lets nobody have it: then there is nothing to show.
_REFUSED_BY_THE_MACHINE = (
    "EPERM",
    "ENOSYS",
    "ENODEV",
    "EAFNOSUPPORT",
    "EPROTONOSUPPORT",
    "EOPNOTSUPP",
    "EIO",
    "ENOENT",
)
#: What takes a capability (CAP_SYS_NICE) or ordinary permissions that nobody else has.
_ROOTS = ("read_the_machines_memory", "advise_on_memory_of_a_bystander")

_GOES = 3  # that an attack gets without what stops it, when its worker was lost before it did anything


def scenes_of(case: AttackCase) -> Iterator[Any]:
    """The scenes of one attack: everything on; each layer alone; none of its layers."""
    reason = f"this machine lets nobody have a view: {no_view()}"
    without_view = [pytest.mark.skip(reason=reason)] if no_view() else []
    marks = without_view if case.stopped_by == (VIEW,) else []
    yield pytest.param(frozenset(), case.name, True, id=f"{case.name}-stopped", marks=marks)
    everything = {*case.stopped_by, *case.also_off}
    if LANDLOCK in everything:
        everything.add(VIEW)
    if len(case.stopped_by) > 1:
        for layer in case.stopped_by:
            marks = without_view if layer == VIEW else []
            if layer == LANDLOCK and lockdown.landlock_abi() < case.abi:
                marks = [pytest.mark.skip(reason=f"this kernel's Landlock can't: that takes ABI {case.abi}")]
            lacks = frozenset(everything - {layer})
            yield pytest.param(lacks, case.name, True, id=f"{case.name}-stopped by {layer} alone", marks=marks)
    if case.stopped_by != (PROCESS,):
        yield pytest.param(frozenset(everything), case.name, False, id=f"{case.name}-succeeds without")


CASES = sorted(
    (param for case in ATTACKS.values() for param in scenes_of(case)),
    key=lambda param: (len(param.values[0] - {DEADLINE}), sorted(param.values[0] - {DEADLINE})),
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Gives the scene that lacks some layers. One at a time: the tests are in the order of these."""
    current: list[Scene] = []

    def get(lacks: frozenset[str]) -> Scene:
        if not current or current[0].off != lacks or current[0].broken:
            while current:
                current.pop().__exit__()
            current.append(Scene(lacks, tmp_path_factory.mktemp("scene")).__enter__())
        return current[0]

    yield get
    while current:
        current.pop().__exit__()


def succeeds(case: AttackCase, report: Report) -> bool:
    return report.claim if case.effect == "claim" else case.effect in report.effects


@pytest.mark.parametrize(("lacks", "name", "stopped"), CASES)
def test_attack(scenes: Any, lacks: frozenset[str], name: str, stopped: bool) -> None:
    case = ATTACKS[name]
    report = scenes(lacks).attack(case)
    assert "not tried" not in str(report), str(report)
    if stopped:
        # Where some layers are off, an attack may do this and that on its way: what it is about counts.
        assert not (report.effects & {case.effect, "leak", "fabric"} if lacks else report.effects), str(report)
        assert not (case.effect == "claim" and report.claim), str(report)
        return
    # An exec ends the worker: the supervisor, which hears of that, races the new program. An attacker has several goes.
    for _ in range(_GOES - 1):
        if not isinstance(report.error, WorkerLost) or succeeds(case, report):
            break
        report = scenes(lacks).attack(case)
    succeeded = succeeds(case, report)
    if not succeeded and case.effect in report.blind:
        pytest.skip(f"only root may look at a worker's {case.effect}")
    if not succeeded and os.geteuid() and name in _ROOTS:
        pytest.skip("only root may do that anyway")
    if not succeeded and report.refused in _REFUSED_BY_THE_MACHINE:
        pytest.skip(f"this machine refuses it by itself: {report.refused}")
    assert succeeded, str(report)


@pytest.mark.parametrize("name", [name for name, case in ATTACKS.items() if case.stopped_by == (PROCESS,)])
def test_ends_a_supervisor_that_runs_nodes_itself(name: str) -> None:
    assert unprotected(ATTACKS[name]).how in ("killed", "exited")


def test_enough_attacks() -> None:
    assert len(ATTACKS) >= 80
    assert sum(case.kind == "escapes" for case in ATTACKS.values()) >= 15
    for case in ATTACKS.values():
        assert set(case.stopped_by) | set(case.also_off) <= set(LAYERS), case.name


def test_the_catalogue_is_true() -> None:
    """README.md has every attack, as `python catalogue.py` writes them."""
    assert (HERE / "README.md").read_text() == catalogue.readme((HERE / "README.md").read_text())


def test_nothing_is_left() -> None:
    """Run last: no process, no shared memory."""
    assert not list(Path("/dev/shm").glob(f"vw-corpus-{os.getpid()}*"))
