"""The supervisor's side of the bridge: the client's tensors into the arena.

``allocate`` gives ``(offset, owner)`` of client memory for so many bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from vortex_worker._core.arena import Arena
from vortex_worker._core.handle import TensorHandle
from vortex_worker.bridge import tensor as bridge

Allocate = Callable[[int], tuple[int, Any]]


def place(arena: Arena, value: Any, allocate: Allocate) -> tuple[TensorHandle, Any]:
    """A value's handle, and what keeps its memory: no copy where it lies in the arena already.

    Raises:
        TypeError: it is no tensor or array, or of a kind that can't travel.
        OutOfArena: no room.
    """
    tensor = _as_tensor(value)
    bridge.require_plain(tensor)
    handle = bridge.locate(arena, tensor)
    return (handle, tensor) if handle is not None else bridge.store(arena, tensor, allocate)


def empty(arena: Arena, shape: Sequence[int], dtype: torch.dtype | None, allocate: Allocate) -> torch.Tensor:
    """An uninitialised tensor in client memory."""
    dtype = dtype or torch.get_default_dtype()
    offset, owner = allocate(bridge.nbytes_of(shape, dtype))
    return bridge.empty(arena, offset, shape, dtype, owner)


def copy(arena: Arena, value: Any, allocate: Allocate) -> torch.Tensor:
    """A copy of a tensor, array or list in client memory."""
    tensor = torch.tensor(value) if isinstance(value, list | tuple | int | float) else _as_tensor(value)
    handle, owner = bridge.store(arena, tensor, allocate)
    return bridge.view(arena, handle, owner)


def _as_tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        # Neither read-only memory nor negative strides have a place in a tensor: those are copied.
        plain = array.flags.writeable and all(stride >= 0 for stride in array.strides)
        return torch.from_numpy(array if plain else array.copy())
    if hasattr(value, "__dlpack__"):
        return from_dlpack(value)
    raise TypeError(
        f"{type(value).__name__} can't be sent to a worker: it takes tensors, arrays, resident objects, "
        "None, bool, int, float, str, bytes, and lists and dicts of these"
    )
