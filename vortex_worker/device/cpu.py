"""The CPU: always there."""

from __future__ import annotations

import errno
import functools
import os

from vortex_worker.device import Device, message_of


@functools.cache
def device() -> Device:
    """The CPU, with the machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device("cpu", 0, _name(), max(0, memory))


def _name() -> str:
    """The processor's name. Not by ``platform.processor``: that starts ``uname``, which no sandbox allows."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name" and value.strip():
                    return value.strip()
    except OSError:
        pass  # not Linux, or not allowed
    return os.uname().machine


def threads() -> int:
    """How many threads an operation has, unless told otherwise."""
    import torch

    return torch.get_num_threads()


def warm_up(threads: int) -> None:
    """Bring the thread pool to its final size and run oneDNN's and the BLAS's first kernels."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    with torch.inference_mode():
        # Each thread takes at least 32768 elements; one that has nothing to do is not started.
        torch.ones(torch.get_num_threads() << 15).add_(1).sum()
        square = torch.ones(128, 128)
        image, kernel = torch.ones(1, 8, 16, 16), torch.ones(8, 8, 3, 3)
        for dtype in (torch.float32, torch.bfloat16):
            _ = square.to(dtype) @ square.to(dtype)
            _ = torch.nn.functional.conv2d(image.to(dtype), kernel.to(dtype), padding=1)


def empty_cache() -> None:
    """Give free heap pages back: glibc keeps them otherwise."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def is_oom(error: BaseException) -> bool:
    """MemoryError, the system's ENOMEM, or what torch's CPU allocator raises."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(
        sign in message_of(error) for sign in ("can't allocate memory", "not enough memory", "std::bad_alloc")
    )
