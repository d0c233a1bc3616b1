"""The same for a long time: memory does not grow, latency stays, and every result is right.

``VORTEX_SOAK_SECONDS`` (4; a soak proper is 1800) says how long, ``VORTEX_SOAK_PICTURE`` where to draw what memory
and latency did, as PNG, SVG or PDF::

    VORTEX_SOAK_SECONDS=1800 VORTEX_SOAK_PICTURE=soak.png pytest tests/chaos/test_soak.py
"""

import contextlib
import itertools
import os
import statistics
import threading
import time
from typing import NamedTuple

import pytest
import torch
from killer import Killer, counts, counts_of, descendants
from mixture import PATIENT, SETTINGS, Jobs

import vortex_worker as vw

SECONDS = float(os.environ.get("VORTEX_SOAK_SECONDS", "4"))
PICTURE = os.environ.get("VORTEX_SOAK_PICTURE", "")
MIB = 1 << 20


class Sample(NamedTuple):
    """What was seen in one interval."""

    time: float  # s since the beginning
    supervisor: float  # MiB of this process
    workers: float  # the same of the zygote and all workers together; what they share counts once
    arena: float  # MiB of shared memory that have pages
    median: float  # ms, of jobs from call to result
    worst: float
    deaths: int  # until now


class Monitor(threading.Thread):
    """Samples a fabric until it is told to stop."""

    def __init__(self, fabric, killer, interval):
        super().__init__(daemon=True)
        self.fabric, self.killer, self.interval = fabric, killer, interval
        self.stop = threading.Event()
        self.latencies = []  # s; appended to by who runs jobs
        self.samples = []

    def run(self):
        begun = time.monotonic()
        arena = self.fabric._memory.arena.fd
        while not self.stop.wait(self.interval):
            latencies, self.latencies = self.latencies, []
            if latencies:
                self.samples.append(
                    Sample(
                        time.monotonic() - begun,
                        memory_of(os.getpid()) / MIB,
                        sum(memory_of(pid) for pid, _ in descendants()) / MIB,
                        os.fstat(arena).st_blocks * 512 / MIB,
                        statistics.median(latencies) * 1e3,
                        max(latencies) * 1e3,
                        sum(self.killer.sent.values()),
                    )
                )


def memory_of(pid):
    """Bytes of a process, of what it shares its part (proc(5), PSS). 0 once it is gone; root only, for workers."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
        return 1024 * sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return 0


@pytest.mark.timeout(SECONDS + 600)
def test_nothing_grows_while_workers_die():
    with vw.Fabric(2, **SETTINGS) as fabric:  # what is loaded once stays: that is no leak
        fabric.run("Work", {"tensor": torch.ones(4)}, {"number": 1})
    outside = counts()
    with vw.Fabric(2, standby=1, queue=64, **SETTINGS) as fabric:
        fabric.wait_ready(120)
        before = counts_of(fabric)
        killer = Killer(fabric, seed=1, pause=0.5)
        monitor = Monitor(fabric, killer, max(0.2, SECONDS / 600))
        jobs = Jobs(fabric, killer, seed=1)
        killer.start()
        monitor.start()
        number, end = 0, time.monotonic() + SECONDS
        while time.monotonic() < end:
            number += 1
            jobs.submit(number)
            begun = time.monotonic()
            jobs.check(*jobs.submit_timed(number))
            monitor.latencies.append(time.monotonic() - begun)
            time.sleep(0.004)  # a service, not a benchmark
        jobs.finish()
        for thread in (killer, monitor):
            thread.stop.set()
            thread.join()
        assert not jobs.problems, jobs.problems[:10]
        assert set(jobs.ends.values()) == {1}
        jobs.things.clear()
        fabric.reload(120)
        assert fabric.run("Work", {"tensor": torch.ones(2)}, {"number": 3}, retries=PATIENT)["number"] == 3
        assert counts_of(fabric) == before
    assert counts() == outside
    if PICTURE:
        draw(monitor.samples, 2 * number, PICTURE)
    quarter = len(monitor.samples) // 4
    for what in ("supervisor", "workers", "arena"):
        values = [getattr(sample, what) for sample in monitor.samples]
        early, late = values[quarter : 2 * quarter], values[-quarter:]
        assert statistics.median(late) < 1.25 * statistics.median(early) + 32, f"{what}: {early} → {late}"


def draw(samples, jobs, path):
    """Memory above, latency below, over time; each death a tick."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    minutes = [sample.time / 60 for sample in samples]
    figure, (memory, latency) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 6), layout="constrained")
    for what, label, colour in (
        ("workers", "zygote and three workers", "tab:blue"),
        ("supervisor", "supervisor", "tab:orange"),
        ("arena", "shared memory", "tab:green"),
    ):
        memory.plot(minutes, [getattr(sample, what) for sample in samples], label=label, color=colour, linewidth=1.2)
    memory.set_ylabel("MiB")
    memory.set_ylim(bottom=0)
    latency.plot(minutes, [s.worst for s in samples], label="slowest of an interval", color="tab:red", linewidth=0.8)
    latency.plot(minutes, [s.median for s in samples], label="median", color="black", linewidth=1.2)
    latency.set_yscale("log")
    latency.set_ylabel("call to result, ms")
    latency.set_xlabel("minutes")
    died = [now.time / 60 for last, now in itertools.pairwise(samples) if now.deaths > last.deaths]
    bottom = latency.get_ylim()[0]
    latency.plot(died, [bottom] * len(died), "|", color="tab:gray", markersize=9, clip_on=False)
    figure.suptitle(f"{jobs:,} jobs, {samples[-1].deaths:,} workers and zygotes killed, every result right")
    for axes in (memory, latency):
        axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
