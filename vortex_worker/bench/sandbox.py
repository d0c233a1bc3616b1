"""``sandbox.*``: what the locks cost, to put on and to wear."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

from vortex_worker.bench.measure import Result, Target, median, p99


def sandbox_install(quick: bool) -> Result:
    """The view, Landlock and all filters, in a fresh process each time."""
    done = [_child("install") for _ in range(5 if quick else 20)]
    samples = [(run["view_ns"] + run["install_ns"]) / 1e6 for run in done]
    compiled = [run["compile_ns"] / 1e6 for run in done]
    assert all(run["seccomp"] == 2 for run in done)
    return Result(
        "the view, Landlock and the filters put in force", "ms", median(samples), p99(samples),
        "both policies read and compiled, once before", median(compiled), Target("median", 2.0, 0.5),
        {
            "the view (0: this machine lets nobody have one)": median([run["view_ns"] / 1e6 for run in done]),
            "Landlock and the filters": median([run["install_ns"] / 1e6 for run in done]),
        },
    )  # fmt: skip


def sandbox_overhead(quick: bool) -> Result:
    """Sampler steps a second in processes alike but for the sandbox, turn by turn.

    Where a process's memory happens to lie is worth up to 3 % to it for all its life. So there are several
    processes of each kind, and two kinds without a sandbox, both the reference: what these two differ by is
    what the measure can't see.
    """
    sandboxed: list[float] = []
    bare: list[float] = []
    control: list[float] = []
    kinds = [("execute", sandboxed), ("", bare), ("", control)]
    for _ in range(3 if quick else 12):
        with ExitStack() as stack:
            turn = [(stack.enter_context(_Child("sample", policy)), policy, speeds) for policy, speeds in kinds]
            kinds.append(kinds.pop(0))  # who is started first, too, changes
            for forward in (True, False) * 3:
                for child, _, speeds in turn if forward else reversed(turn):
                    speeds.append(child.ask()["steps_per_second"])
                turn.append(turn.pop(0))
            answers = [(policy, child.ask()) for child, policy, _ in turn]
        assert all((answer["seccomp"] == 2) == (policy != "") for policy, answer in answers)
        assert len({answer["digest"] for _, answer in answers}) == 1  # the same bits, sandboxed or not
    return Result(
        "sampler steps a second, sandboxed", "1/s", median(sandboxed), p99(sandboxed),
        "the same, not sandboxed", median(bare + control), Target("ratio", 0.98, 0.995, higher_is_better=True),
        {"ratio of the two kinds not sandboxed": median(control) / median(bare)},
    )  # fmt: skip


def _command(*mode: str) -> list[str]:
    return [sys.executable, "-m", "vortex_worker.bench.sandbox_child", *mode]


def _child(mode: str) -> dict[str, Any]:
    done = subprocess.run(_command(mode), capture_output=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


#: Without this, whether glibc gives the sampler's buffers back to the kernel at each step is a matter of how
#: the heap happens to lie: worth up to 2x, either way, and nothing of the sandbox's.
_MALLOC = {
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
}


class _Child:
    """A child that answers a line of JSON for each line."""

    def __init__(self, *mode: str) -> None:
        self._process = subprocess.Popen(
            _command(*mode), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | _MALLOC
        )

    def __enter__(self) -> _Child:
        self.ask()  # the first is a warm-up
        return self

    def ask(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
