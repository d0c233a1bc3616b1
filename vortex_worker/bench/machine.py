"""The machine a figure was taken on: a figure without it means nothing."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import vortex_worker


def describe() -> dict[str, object]:
    """Processor, memory, kernel, versions, and what may disturb the figures."""
    return {
        "cpu": _first("/proc/cpuinfo", "model name") or platform.processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "virtual": "hypervisor" in (_first("/proc/cpuinfo", "flags") or ""),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "unknown",
        "load": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "vortex_worker": vortex_worker.__version__,
        **{name: metadata.version(name) for name in ("torch", "numpy", "pyarrow", "protobuf")},
    }


def sentence(machine: dict[str, object]) -> str:
    """The machine in one line."""
    kind = "virtual machine" if machine["virtual"] else "machine"
    return (
        f"{machine['cpu']}, {machine['cpus']} CPUs ({kind}), {machine['memory_gib']} GiB, Linux {machine['kernel']}, "
        f"Python {machine['python']}, torch {machine['torch']}; governor {machine['governor']}, load {machine['load']} at the start"  # noqa: E501
    )


def confession(machine: dict[str, object], quick: bool) -> list[str]:
    """What the figures do not tell, a sentence each."""
    told = [
        "Nothing here ran on a GPU, and nothing went over a network.",
        "Each figure is of one machine that was otherwise as idle as its load says; throughput under contention, other "
        "processors and other kernels are not measured.",
        "The median and the 99th percentile are those of one run. Only ratios, whose two sides were measured in the "
        "same run, compare between machines.",
    ]
    if machine["virtual"]:
        told.append(
            "A virtual machine's processors can be taken away for milliseconds: look at medians, doubt the p99."
        )
    if machine["governor"] != "performance":
        told.append(f"The frequency governor is {machine['governor']}: clocks may have changed between two figures.")
    if quick:
        told.append("--quick: too few repetitions for a figure to be quoted.")
    return told


def _read(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None


def _first(path: str, key: str) -> str | None:
    for line in (_read(path) or "").splitlines():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return None
