"""The CPU: always there."""

from __future__ import annotations

import os
import platform

from vortex_worker.device import Device


def device() -> Device:
    """The CPU, with the machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device("cpu", 0, platform.processor() or platform.machine(), memory)


def warm_up(threads: int) -> None:
    """Bring the thread pool to its final size and run oneDNN's and the BLAS's first kernels."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    with torch.inference_mode():
        torch.ones(1 << 16).add_(1).sum()  # large enough to be split over the pool
        square = torch.ones(128, 128)
        _ = square @ square
        _ = square.bfloat16() @ square.bfloat16()
        image = torch.ones(1, 8, 16, 16)
        _ = torch.nn.functional.conv2d(image, torch.ones(8, 8, 3, 3), padding=1)


def empty_cache() -> None:
    """Give free heap pages back: glibc keeps them otherwise."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def is_oom(error: BaseException) -> bool:
    """MemoryError, or what torch's CPU allocator raises."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in str(error) or "not enough memory" in str(error)
    )
