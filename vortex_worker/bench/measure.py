"""What a benchmark gives, and how samples become figures."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


class Skipped(Exception):
    """This machine can't measure it; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the figure must be, and what we aim at. ``of``: the median itself, or its ratio to the reference."""

    of: Literal["median", "ratio"]
    must: float
    aim: float
    higher_is_better: bool = False

    def verdict(self, result: Result) -> str:
        value = result.median if self.of == "median" else result.ratio
        if self.higher_is_better:
            return (
                "reaches the aim"
                if value >= self.aim
                else "meets the target"
                if value >= self.must
                else "misses the target"
            )
        return (
            "reaches the aim"
            if value <= self.aim
            else "meets the target"
            if value <= self.must
            else "misses the target"
        )

    def __str__(self) -> str:
        sign = "≥" if self.higher_is_better else "≤"
        what = "" if self.of == "median" else "× "
        return f"{what}{sign} {self.must:g} (aim {self.aim:g})"


@dataclass(frozen=True, slots=True)
class Result:
    """One figure beside its reference, both in ``unit``."""

    what: str
    unit: str
    median: float
    p99: float
    reference: str  # what the reference is
    reference_median: float
    target: Target
    #: What else was measured in the same run, by what it is; in the same unit, or with its own in the name.
    beside: Mapping[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return self.median / self.reference_median

    @property
    def words(self) -> str:
        """The verdict as a sentence: what was found, beside what was asked for."""
        target = self.target
        value = self.median if target.of == "median" else self.ratio
        unit = f" {self.unit}" if target.of == "median" else " × the reference"
        verdict = target.verdict(self)
        if verdict == "reaches the aim":
            return f"{number(value)}{unit}: {verdict} of {target.aim:g}"
        bound = "at least" if target.higher_is_better else "at most"
        found = f"{number(value)}{unit}, and {bound} {target.must:g} is asked for: {verdict}"
        if verdict == "meets the target":
            return f"{found}, not yet the aim of {target.aim:g}"
        factor = target.must / value if target.higher_is_better else value / target.must
        return f"{found} by " + (f"a factor of {factor:.2g}" if factor >= 1.1 else f"{(factor - 1) * 100:.2g} %")

    def as_dict(self) -> dict[str, object]:
        return {
            "what": self.what,
            "unit": self.unit,
            "median": self.median,
            "p99": self.p99,
            "reference": self.reference,
            "reference_median": self.reference_median,
            "ratio": self.ratio,
            "beside": dict(self.beside),
            "target": {"of": self.target.of, "must": self.target.must, "aim": self.target.aim},
            "verdict": self.target.verdict(self),
            "words": self.words,
        }


def number(value: float) -> str:
    """Three digits, and a fourth just above 1, where ratios are told apart; no exponent of the sizes that occur."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{4 if 1 <= abs(value) < 1.1 else 3}g}"


def median(samples: Sequence[float]) -> float:
    return statistics.median(samples)


def p99(samples: Sequence[float]) -> float:
    """The 99th percentile: the largest, of fewer than a hundred."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def interleaved(
    first: Callable[[], object], second: Callable[[], object], *, rounds: int, loops: int
) -> tuple[list[float], list[float]]:
    """Seconds a call of each, in ``rounds`` batches of ``loops`` calls, turn by turn: a noisy machine hits both."""
    first(), second()
    samples: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for function, into in ((first, samples[0]), (second, samples[1])):
                begun = time.perf_counter()
                for _ in range(loops):
                    function()
                into.append((time.perf_counter() - begun) / loops)
    finally:
        gc.enable()
    return samples


def each(function: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of ``count`` calls, after a tenth to warm up."""
    for _ in range(max(1, count // 10)):
        function()
    samples = []
    for _ in range(count):
        begun = time.perf_counter()
        function()
        samples.append(time.perf_counter() - begun)
    return samples


def settle() -> None:
    """Wait until the processes that this one has started rest, 10 s at most.

    A fabric takes jobs at once; its zygote then puts its memory in order, for a second or less, which on a small
    machine is a third of the CPUs that a job and its caller want.
    """
    before = -1
    for _ in range(50):
        spent = _spent()
        if spent == before:
            return
        before = spent
        time.sleep(0.2)


def _spent() -> int:
    """Clock ticks that all descendants of this process have computed (proc(5), stat: ppid, utime, stime)."""
    found: dict[int, tuple[int, int]] = {}
    for place in Path("/proc").iterdir():
        with suppress(OSError, ValueError):  # it has just ended; it is no process
            fields = (place / "stat").read_bytes().rpartition(b")")[2].split()
            found[int(place.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    ours = new = {os.getpid()}
    while new:
        new = {pid for pid, (parent, _) in found.items() if parent in ours} - ours
        ours |= new
    return sum(found[pid][1] for pid in ours - {os.getpid()} if pid in found)


def busy(us: float) -> float:
    """Take ``us`` microseconds: short times by looking at the clock, long ones asleep. Returns how long it took, s."""
    begun = time.perf_counter()
    wanted = us / 1e6
    if wanted > 0.002:
        time.sleep(wanted - 0.001)
    while (took := time.perf_counter() - begun) < wanted:
        pass
    return took
