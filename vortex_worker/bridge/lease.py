"""A worker's tensors in its lease: allocated, exported, given back.

A block is freed by its last owner: the tensors that view it, and, once its handle was exported,
the table of exports until the supervisor releases it. So neither side can pull memory from under
the other.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from vortex_worker._core.handle import ARROW_IPC, TensorHandle
from vortex_worker.bridge import tensor as bridge
from vortex_worker.errors import OutOfArena

if TYPE_CHECKING:
    from vortex_worker._core.arena import Arena
    from vortex_worker._core.lease import LeaseAllocator


class Block:
    """Allocated memory of the lease; free again when nothing refers to it."""

    __slots__ = ("_allocator", "offset")

    def __init__(self, allocator: LeaseAllocator, nbytes: int) -> None:
        self.offset = -1
        self._allocator = allocator
        self.offset = allocator.allocate(nbytes)

    def __del__(self) -> None:
        if self.offset >= 0:
            self._allocator.free(self.offset)


class LeaseTensors:
    """Tensors between a worker's jobs and the arena."""

    def __init__(self, arena: Arena, allocator: LeaseAllocator) -> None:
        self._arena = arena
        self._allocator = allocator
        self._fresh: dict[int, Block] = {}  # made by `empty` in the job that runs
        self._exported: dict[int, Block] = {}  # handed to the supervisor, not released yet
        self._inputs: list[TensorHandle] = []  # of the job that runs

    def begin(self) -> None:
        """A job begins: nothing of the one before counts any more."""
        self._fresh.clear()
        self._inputs.clear()

    def load(self, handle: TensorHandle) -> torch.Tensor:
        """An input's tensor: a read-only view. InvalidHandle if the handle is bad."""
        if handle.encoding == ARROW_IPC:
            from vortex_worker.bridge.arrow import ArrowBridge

            handle.check(self._arena.data_offset, self._arena.data_size)
            return ArrowBridge().arrow_to_tensor(self._arena.buffer(handle.offset, handle.nbytes))
        tensor = bridge.view(self._arena, handle)
        self._inputs.append(handle)
        return tensor

    def empty(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        """An uninitialised tensor in the lease: returned as an output, it is not copied.

        Raises:
            OutOfArena: the lease has no room.
        """
        dtype = dtype or torch.get_default_dtype()
        block = self._block(bridge.nbytes_of(shape, dtype))
        tensor = bridge.empty(self._arena, block.offset, shape, dtype, block)
        self._fresh[block.offset] = block
        return tensor

    def save(self, value: Any) -> TensorHandle:
        """The handle of an output, tensor or array. No copy if it is from ``empty``, or a view of an input.

        Raises:
            OutOfArena: the lease has no room.
            TypeError: a kind of tensor that can't travel.
        """
        tensor = bridge.as_tensor(value)
        handle = bridge.locate(self._arena, tensor)
        if handle is not None:
            block = self._fresh.pop(handle.offset, None)
            if block is not None:
                self._exported[block.offset] = block
                return handle
            for given in self._inputs:
                if given.covers(handle):
                    return handle
        if not tensor.numel():  # torch doesn't know where that is: as good as a view of an input without bytes
            places = [given.offset for given in self._inputs if not given.nbytes]
            if places:
                return bridge.store(self._arena, tensor, lambda nbytes: (places[0], None))[0]
        handle, block = bridge.store(self._arena, tensor, self._allocate)
        self._exported[handle.offset] = block
        return handle

    def _allocate(self, nbytes: int) -> tuple[int, Any]:
        block = self._block(nbytes)
        return block.offset, block

    def _block(self, nbytes: int) -> Block:
        try:
            return Block(self._allocator, nbytes)
        except OutOfArena:
            gc.collect()  # tensors in reference cycles, such as those of tracebacks, keep blocks
        try:
            return Block(self._allocator, nbytes)
        except OutOfArena as error:
            error.message += (
                "; results that are still held take some, and Fabric's lease_size= or --lease-size gives more"
            )
            raise

    def release(self, offset: int) -> None:
        """The supervisor no longer needs the handle at ``offset``. One that isn't exported is no error."""
        self._exported.pop(offset, None)

    def is_exported(self, offset: int) -> bool:
        """Whether the supervisor holds the handle at ``offset``."""
        return offset in self._exported

    @property
    def exported(self) -> int:
        """Count of live handles."""
        return len(self._exported)
