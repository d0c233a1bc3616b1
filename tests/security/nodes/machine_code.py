"""Ways to run instructions of one's own, and work that torch would make some for."""

from __future__ import annotations

import ctypes
import mmap
import platform
from typing import Any

import torch

from vortex_worker.executor import AbstractExecutor, Param, Port

_RETURN_42 = {"x86_64": b"\xb8\x2a\0\0\0\xc3", "aarch64": b"\x40\x05\x80\x52\xc0\x03\x5f\xd6"}[platform.machine()]
_READ, _WRITE, _EXEC = 1, 2, 4
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def memory(protection: int) -> int:
    address = _libc.mmap(None, mmap.PAGESIZE, protection, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    return int(address)


def protect(address: int, protection: int) -> None:
    page = address & -mmap.PAGESIZE
    if _libc.mprotect(page, 2 * mmap.PAGESIZE if page + mmap.PAGESIZE < address + 64 else mmap.PAGESIZE, protection):
        raise OSError(ctypes.get_errno(), "mprotect")


def call(address: int) -> int:
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)())


def mapped_for_all() -> int:
    address = memory(_READ | _WRITE | _EXEC)
    ctypes.memmove(address, _RETURN_42, len(_RETURN_42))
    return call(address)


def written_then_opened() -> int:
    address = memory(_READ | _WRITE)
    ctypes.memmove(address, _RETURN_42, len(_RETURN_42))
    protect(address, _READ | _WRITE | _EXEC)
    return call(address)


def written_then_turned() -> int:
    address = memory(_READ | _WRITE)
    ctypes.memmove(address, _RETURN_42, len(_RETURN_42))
    protect(address, _READ | _EXEC)
    return call(address)


def over_a_library() -> int:
    """The instructions of a function of the C library that nobody calls."""
    address = ctypes.cast(_libc.fcvt, ctypes.c_void_p).value
    assert address is not None
    protect(address, _READ | _WRITE | _EXEC)
    ctypes.memmove(address, _RETURN_42, len(_RETURN_42))
    return call(address)


def callback() -> int:
    """Not an attack: ctypes has to make code for it."""
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 42)())


WAYS = {
    function.__name__: function
    for function in (
        mapped_for_all, written_then_opened, written_then_turned, over_a_library, callback,
    )
}  # fmt: skip


class RunCode(AbstractExecutor):
    """Says what the way gave, or how it was refused."""

    op_type = "RunCode"
    output_ports = (Port("said", "STRING"),)
    params = (Param("way", "STRING"),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"said": str(WAYS[params["way"]]())}
        except (OSError, MemoryError) as error:
            return {"said": type(error).__name__}


class Convolve(AbstractExecutor):
    """What oneDNN writes kernels for: a convolution, and bf16."""

    op_type = "Convolve"
    input_ports = (Port("image", "TENSOR"), Port("kernel", "TENSOR"))
    output_ports = (Port("image", "TENSOR"), Port("square", "TENSOR"))

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        square = inputs["image"][0, 0].bfloat16()
        return {"image": torch.nn.functional.conv2d(inputs["image"], inputs["kernel"]), "square": square @ square.T}
