"""The CPU: always there."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from vortex_worker.device import Device, message_of

if TYPE_CHECKING:
    import torch

_NO_MEMORY = ("can't allocate memory", "not enough memory", "std::bad_alloc")
#: All that oneDNN's C++ interface says (dnnl.hpp), whatever the reason. What oneDNN can't do fails before, and in other
#: words: "could not create a primitive descriptor for …".
_NO_PRIMITIVE = ("could not create a primitive", "could not execute a primitive")
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # <malloc.h>
_LARGE = 32 << 20  # 32 MiB, the most that glibc takes: from there on, an allocation has a mapping of its own
_STEP, _LARGE_STEP = 128 << 10, 4 << 20  # 128 KiB, glibc's own, and 4 MiB of addresses that the heap grows by
_KEPT = 256 << 20  # 256 MiB of free memory that a worker keeps at most
_limit = 0  # bytes of private memory that this process may have; 0: no limit


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
    """Bring the thread pool to its final size, and multiply a matrix."""
    import torch

    keep_memory()
    if threads:
        torch.set_num_threads(threads)
    with torch.inference_mode():
        if torch.get_num_threads() > 1:
            # Each thread takes at least 32768 elements; one that has nothing to do is not started.
            torch.ones(torch.get_num_threads() << 15).add_(1).sum()
        _ = torch.ones(128, 128) @ torch.ones(128, 128)


@functools.cache  # a fork has it from its zygote
def keep_memory() -> None:
    """Have the C library keep what a step frees for the next step, which allocates the same (mallopt(3)).

    It would else give buffers of some MB back to the kernel, and take new pages for each: thousands of faults a step.
    """
    _mallopt(_M_MMAP_THRESHOLD, _LARGE)  # else, as soon as the other is set, everything above 128 KiB has its own
    _mallopt(_M_TRIM_THRESHOLD, _KEPT)


@contextlib.contextmanager
def growing() -> Iterator[None]:
    """Have the heap grow by large steps meanwhile, as imports make it grow. A limit of memory would count the last."""
    _mallopt(_M_TOP_PAD, _LARGE_STEP)
    yield
    _mallopt(_M_TOP_PAD, _STEP)


def _mallopt(parameter: int, value: int) -> None:
    """mallopt(3), where the C library has it."""
    import ctypes

    if call := getattr(ctypes.CDLL(None), "mallopt", None):
        call(parameter, value)


def first_kernels() -> list[Callable[[], object]]:
    """The first products and convolutions: oneDNN generates code for each kind and number of threads."""
    import torch

    def multiply(dtype: torch.dtype) -> None:
        with torch.inference_mode():
            _ = torch.ones(128, 128, dtype=dtype) @ torch.ones(128, 128, dtype=dtype)

    def convolve(dtype: torch.dtype) -> None:
        with torch.inference_mode():
            image, kernel = torch.ones(1, 8, 16, 16, dtype=dtype), torch.ones(8, 8, 3, 3, dtype=dtype)
            _ = torch.nn.functional.conv2d(image, kernel, padding=1)

    return [
        partial(work, dtype)
        for dtype, work in [(torch.float32, convolve), (torch.bfloat16, multiply), (torch.bfloat16, convolve)]
    ]


def forbid_code() -> None:
    """Do without oneDNN, which writes a kernel for each shape as it meets it."""
    import torch

    torch.backends.mkldnn.set_flags(_enabled=False)  # type: ignore[no-untyped-call]


def empty_cache() -> None:
    """Give free heap pages back: glibc keeps them otherwise."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def limit_memory(size: int) -> None:
    """Take oneDNN's word for a failure that has no reason as one of memory: there is a limit to meet."""
    global _limit
    _limit = size


def bound() -> str:
    """What bounds the memory of this process, in words. After lockdown, the kernel doesn't say any more."""
    return f"this worker has a memory_limit of {_limit}" if _limit else f"this machine has {device().memory}"


def is_oom(error: BaseException) -> bool:
    """MemoryError, the system's ENOMEM, or what torch's CPU allocator raises; under a limit, oneDNN too."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, RuntimeError):
        return False
    text = message_of(error)
    return any(sign in text for sign in _NO_MEMORY) or (bool(_limit) and text in _NO_PRIMITIVE)
