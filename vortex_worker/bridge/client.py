"""The supervisor's side of the bridge: the client's tensors into the arena.

``allocate`` gives ``(offset, owner)`` of client memory for so many bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

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
    tensor = value if isinstance(value, torch.Tensor) else bridge.as_tensor(value)
    handle = bridge.locate(arena, tensor)
    return (handle, tensor) if handle is not None else bridge.store(arena, tensor, allocate)


def empty(arena: Arena, shape: Sequence[int], dtype: torch.dtype | None, allocate: Allocate) -> torch.Tensor:
    """An uninitialised tensor in client memory."""
    dtype = dtype or torch.get_default_dtype()
    offset, owner = allocate(bridge.nbytes_of(shape, dtype))
    return bridge.empty(arena, offset, shape, dtype, owner)


def copy(arena: Arena, value: Any, allocate: Allocate) -> torch.Tensor:
    """A copy of a tensor, array or list in client memory."""
    tensor = torch.tensor(value) if isinstance(value, list | tuple | int | float) else bridge.as_tensor(value)
    handle, owner = bridge.store(arena, tensor, allocate)
    return bridge.view(arena, handle, owner)
