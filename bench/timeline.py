"""Draws what happens when a worker is killed in the middle of a job, from a real run.

    python bench/timeline.py [--runs 50] [--out docs/images/recovery.png]

Kills the worker of a job ``--runs`` times, with a standby present, checks each result, and draws the medians. The
moments are taken in the supervisor, by wrapping what it calls at each.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import vortex_worker as vw
from vortex_worker import bench

NODES = Path(bench.__file__).parent / "nodes"
#: Moments of a run in their order, and what each is.
MOMENTS = {
    "sign": "its lock is\nlet go",
    "believed": "the kernel\nsays: exiting",
    "promoted": "standby\npromoted",
    "sent": "job sent\nagain",
    "reply": "right result\nto the caller",
    "buried": "pidfd: gone;\nlease is free",
    "ready": "the next\nstands by",
}


def note(times: dict[str, float], name: str, function: Callable[..., Any], *, before: bool) -> Callable[..., Any]:
    """``function``, noting when it was first called, or first returned."""

    def noting(*args: Any, **kwargs: Any) -> Any:
        if before:
            times.setdefault(name, time.perf_counter())
        result = function(*args, **kwargs)
        times.setdefault(name, time.perf_counter())
        return result

    return noting


def one_death(fabric: vw.Fabric, number: int) -> dict[str, float] | None:
    """Milliseconds from SIGKILL to each moment; None if the job was quicker than the signal."""
    crew = fabric.wait_ready(120)._crew
    victim = next(link for link in crew.links() if link.active)
    standby = next(link for link in crew.links() if not link.active)
    times: dict[str, float] = {}
    gate = fabric.tensor(torch.tensor([0, number]))
    job = fabric.submit("BenchGate", {"gate": gate}, retries=1)
    while not job.progress.total:
        time.sleep(0.0005)
    wrapped = {
        (crew.endings._deathwatch, "_dead"): ("sign", True),
        (crew.jobs, "rescue"): ("believed", True),
        (crew, "promote"): ("promoted", False),
        (standby, "flush"): ("sent", False),
        (crew.endings, "on_exit"): ("buried", True),
    }
    real = {(owner, name): getattr(owner, name) for owner, name in wrapped}
    for (owner, name), (moment, before) in wrapped.items():
        setattr(owner, name, note(times, moment, real[owner, name], before=before))
    job.add_done_callback(lambda _: times.setdefault("reply", time.perf_counter()))
    gate[0] = 1  # the job would go on now, but
    begun = time.perf_counter()
    os.kill(victim.process.pid, signal.SIGKILL)
    assert job.result(60) == {"number": number}
    fabric.wait_ready(120)
    times["ready"] = time.perf_counter()
    for (owner, name), function in real.items():
        setattr(owner, name, function)
    return {name: (at - begun) * 1e3 for name, at in times.items()} if job.attempts == 2 else None


def draw(at: dict[str, float], runs: int, path: str) -> None:
    """Three lanes over a logarithmic time: the dying worker, the supervisor, the standby."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    begin, end = at["sign"] / 4, at["ready"] * 2
    figure, axes = pyplot.subplots(figsize=(10, 4.6), layout="constrained")
    lanes = {"worker": 2.2, "supervisor": 1.1, "standby": 0.0}

    def bar(lane: str, start: float, stop: float, colour: str, text: str) -> None:
        axes.barh(lanes[lane], stop - start, left=start, height=0.3, color=colour, edgecolor="none")
        axes.text((start * stop) ** 0.5, lanes[lane], text, ha="center", va="center", fontsize=9)

    bar("worker", begin, at["buried"], "#e7b2ab", "killed: the kernel takes its memory apart")
    bar("standby", begin, at["promoted"], "#d9dee4", "stands by, locked down")
    bar("standby", at["sent"], at["reply"], "#a9d3ae", "the job")
    bar("standby", at["reply"], end, "#cfe6f5", "takes jobs")
    bar("supervisor", begin, end, "#f2f2f2", "")
    for number, (moment, text) in enumerate(MOMENTS.items()):
        side = 1 if number % 2 == 0 else -1
        place = begin * (end / begin) ** (0.12 + 0.8 * number / (len(MOMENTS) - 1))  # evenly: moments may be close
        axes.plot([at[moment]] * 2, [lanes["supervisor"] - 0.15, lanes["supervisor"] + 0.15], color="black")
        axes.annotate(
            f"{text}\n{at[moment]:.{2 if at[moment] < 10 else 3}g} ms", (at[moment], lanes["supervisor"] + 0.15 * side),
            (place, lanes["supervisor"] + 0.34 * side), ha="center", va="bottom" if side > 0 else "top", fontsize=8,
            arrowprops={"arrowstyle": "-", "color": "gray", "linewidth": 0.7},
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(begin, end)
    axes.set_ylim(-0.35, 2.5)
    axes.set_yticks(list(lanes.values()), ["worker that\nhad the job", "supervisor", "standby"])
    axes.set_xlabel("milliseconds after SIGKILL, logarithmic")
    axes.set_title(f"A worker is killed in the middle of a job: medians of {runs} runs", fontsize=11)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, say what was measured, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--out", default="docs/images/recovery.png")
    arguments = parser.parse_args()
    with vw.Fabric(1, standby=1, custom_nodes=NODES) as fabric:
        runs = [
            run for number in range(arguments.runs) if (run := one_death(fabric, number)) and set(run) >= {*MOMENTS}
        ]
    medians = {moment: statistics.median(run[moment] for run in runs) for moment in MOMENTS}
    for moment, value in medians.items():
        print(f"{moment:10} median {value:8.3f} ms   slowest {max(run[moment] for run in runs):8.3f} ms")
    draw(medians, len(runs), arguments.out)


if __name__ == "__main__":
    main()
