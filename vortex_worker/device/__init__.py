"""Where tensors are computed: choosing a device, warming it up, telling its errors apart.

Imports torch only inside its functions: a worker says who it is before it imports torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vortex_worker.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Device:
    """One device: ``type`` is ``cpu``, ``cuda`` or ``mps``; ``memory`` in bytes."""

    type: str
    index: int
    name: str
    memory: int

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device(self.type) if self.type == "cpu" else torch.device(self.type, self.index)


def available() -> list[Device]:
    """Every device of this machine, the fastest first: CUDA, then MPS, then the CPU."""
    from vortex_worker.device import cpu, cuda, metal

    return [*cuda.devices(), *metal.devices(), cpu.device()]


def choose(name: str = "auto") -> Device:
    """The device called ``auto`` (the first there is), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        ConfigError: there is no such device here.
    """
    devices = available()
    if name == "auto":
        return devices[0]
    kind, colon, index = name.partition(":")
    for device in devices:
        if device.type == kind and (not colon or index == str(device.index)):
            return device
    there = ", ".join(f"{d.type}:{d.index}" if d.type != "cpu" else "cpu" for d in devices)
    raise ConfigError(f"device is {name[:80]!r}, which is not here: there are auto, {there}")


def warm_up(device: Device, threads: int = 0) -> None:
    """Start everything that any first job would otherwise pay for: thread pool, first kernels, contexts.

    Must run before lockdown: threads can't be created, nor code be mapped, as freely after it.

    Args:
        threads: of one operation; 0 leaves torch its own choice.
    """
    from vortex_worker.device import cpu, cuda

    cpu.warm_up(threads)
    if device.type == "cuda":
        cuda.warm_up(device)


def pin(device: Device, address: int, nbytes: int) -> None:
    """Keep this memory where the device can reach it by itself. Before lockdown. Nothing to do for the CPU.

    Raises:
        ConfigError: it can't be had.
    """
    from vortex_worker.device import cuda

    if device.type == "cuda":
        cuda.pin(address, nbytes)


def first_kernels() -> list[Callable[[], object]]:
    """What only some jobs need, each to be run once where nobody waits: it takes about a millisecond."""
    from vortex_worker.device import cpu

    return cpu.first_kernels()


def forbid_code() -> None:
    """Have torch compute without machine code that it makes as it runs. Convolutions and bf16 get slower, bf16 much."""
    from vortex_worker.device import cpu

    cpu.forbid_code()


def limit_memory(size: int) -> None:
    """Say that this process may have so many bytes of memory: what may be a failure of memory then is one."""
    from vortex_worker.device import cpu

    cpu.limit_memory(size)


def seed_anew() -> None:
    """Give the global generators of torch and NumPy seeds of their own: after a fork, they are the parent's."""
    import numpy
    import torch

    # Not torch.seed(), which notes a stack for each kind of device that could come one day: 3 ms.
    torch.default_generator.seed()
    # CUDA's generators when its context is made (cuda.warm_up): so much as asking for a card starts a thread.
    if sys.platform == "darwin" and torch.backends.mps.is_available():
        torch.mps.seed()
    numpy.random.seed(int.from_bytes(os.urandom(4), "little"))  # a number, not an array: a third of the page faults


def empty_cache() -> None:
    """Give unused memory of the allocators back."""
    from vortex_worker.device import cpu, cuda, metal

    cuda.empty_cache()
    metal.empty_cache()
    cpu.empty_cache()


def is_oom(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, on any device."""
    from vortex_worker.device import cpu, cuda, metal

    return cpu.is_oom(error) or cuda.is_oom(error) or metal.is_oom(error)


def is_device_error(error: BaseException) -> bool:
    """Whether ``error`` is a device's failure rather than the node's."""
    from vortex_worker.device import cuda

    return cuda.is_device_error(error)


def is_sticky(error: BaseException) -> bool:
    """Whether the device stays unusable for this process."""
    from vortex_worker.device import cuda

    return cuda.is_sticky(error)


def message_of(error: BaseException) -> str:
    """``str(error)``; empty where that itself fails, as a node's own exception may."""
    try:
        return str(error)
    except BaseException:
        return ""
