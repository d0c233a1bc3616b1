"""Outputs of a worker's in its lease: copied only where they must be, and freed with their last user."""

import gc
import os

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from stored import DATA, LEASE, LEASE_SIZE, SIZE, STORE

from vortex_worker._core.arena import Arena
from vortex_worker._core.handle import ARROW_IPC, TensorHandle
from vortex_worker._core.lease import LeaseAllocator
from vortex_worker.bridge import tensor as bridge
from vortex_worker.bridge.lease import LeaseTensors
from vortex_worker.errors import InvalidHandle, OutOfArena


def test_an_output_from_empty_is_not_copied(worker):
    tensor = worker.empty((2, 3), torch.bfloat16)
    tensor.fill_(1.5)
    handle = worker.save(tensor)
    assert handle == TensorHandle(LEASE, 12, 11, (2, 3))
    assert worker._allocator.live == 1
    del tensor
    assert worker._allocator.live == 1  # the supervisor still has it
    worker.release(handle.offset)
    assert worker._allocator.live == 0
    worker.release(handle.offset)  # no error
    assert worker.exported == 0


def test_a_block_lives_as_long_as_its_last_user(worker):
    tensor = worker.empty((16,))
    handle = worker.save(tensor)
    worker.release(handle.offset)
    assert worker._allocator.live == 1  # the node keeps the tensor
    worker.begin()
    assert worker._allocator.live == 1
    del tensor
    assert worker._allocator.live == 0


def test_strided_outputs_keep_their_strides(worker):
    tensor = worker.empty((4, 4))
    handle = worker.save(tensor.T[:2])
    assert handle.strides == (1, 4)
    assert handle.offset == LEASE
    assert worker._allocator.live == 1


def test_one_memory_is_handed_over_once(worker):
    tensor = worker.empty((16,))
    first, second = worker.save(tensor), worker.save(tensor)
    assert second.offset >= first.offset + first.nbytes
    worker.begin()
    third = worker.save(tensor)  # kept by the node from the job before
    assert third.offset not in (first.offset, second.offset)
    assert worker.exported == 3


def test_an_input_returned_is_not_copied(worker, store):
    bridge.view(store.arena, TensorHandle(DATA, 64, 12, (4, 4))).copy_(torch.eye(4))
    handle = TensorHandle(DATA, 64, 12, (4, 4))
    tensor = worker.load(handle)
    assert torch.equal(tensor, torch.eye(4))
    assert worker.save(tensor) == handle
    assert worker.save(tensor.T).strides == (1, 4)
    assert worker.save(tensor[:2]).nbytes == 32
    assert worker._allocator.live == 0
    worker.begin()
    assert worker.save(tensor).offset >= LEASE  # an input of the job before: not this one's to return


def test_other_outputs_are_copied(worker):
    for value in (torch.arange(3), np.arange(3), np.arange(3)[::-1], torch.arange(8)[::3], torch.tensor(3.0)):
        handle = worker.save(value)
        assert torch.equal(
            bridge.view(worker.arena, handle), torch.as_tensor(np.ascontiguousarray(value)).reshape(handle.shape)
        )
        worker.release(handle.offset)
    assert worker._allocator.live == 0
    inner = worker.empty((32,))[16:]  # in the lease, but not where a block begins
    assert worker.save(inner).offset != LEASE + 64


def test_a_full_lease(worker):
    kept = worker.empty((LEASE_SIZE // 4,))
    with pytest.raises(OutOfArena):
        worker.empty((1,))
    with pytest.raises(OutOfArena):
        worker.save(torch.ones(1))
    del kept
    with pytest.raises(OutOfArena):
        worker.empty((1,))  # the job that made it could still return it
    worker.begin()
    worker.empty((1,))


def test_tensors_in_reference_cycles_do_not_fill_the_lease(worker):
    cycle = [worker.empty((LEASE_SIZE // 4,))]
    cycle.append(cycle)
    worker.begin()
    del cycle
    gc.disable()
    try:
        worker.empty((LEASE_SIZE // 4,))
    finally:
        gc.enable()


def test_bad_inputs(worker):
    for handle in (TensorHandle(SIZE, 64, 12, (4, 4)), TensorHandle(0, 64, 0, (), None, ARROW_IPC)):
        with pytest.raises(InvalidHandle):
            worker.load(handle)
    with pytest.raises(TypeError, match="sparse"):
        worker.save(torch.eye(3).to_sparse())
    with pytest.raises(InvalidHandle, match="whole numbers"):
        worker.empty((-1,))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["empty", "save", "drop", "release", "begin"]), max_size=60), st.randoms())
def test_no_block_is_lost_or_freed_early(steps, random):
    fd = f"/proc/self/fd/{STORE.arena.fd}"
    arena = Arena.attach(os.open(fd, os.O_RDWR), os.open(fd, os.O_RDONLY))
    arena.lease(LEASE, LEASE_SIZE)
    tensors = LeaseTensors(arena, allocator := LeaseAllocator(LEASE, LEASE_SIZE))
    held, exported = [], {}
    for number, step in enumerate(steps):
        if step == "empty":
            held.append((tensors.empty((random.randint(1, 50),)).fill_(number), number))
        elif step == "save":
            tensor, value = random.choice(held) if held else (torch.full((5,), number), number)
            handle = tensors.save(tensor)
            exported[handle.offset] = handle, value
        elif step == "drop" and held:
            held.pop(random.randrange(len(held)))
        elif step == "release" and exported:
            tensors.release(exported.pop(random.choice(list(exported)))[0].offset)
        elif step == "begin":
            tensors.begin()
        tensor = None  # the loop's own reference
        assert all((tensor == value).all() for tensor, value in held)
        assert all((bridge.view(STORE.arena, handle) == value).all() for handle, value in exported.values())
        assert tensors.exported == len(exported)
    assume(held or exported)
    held.clear()
    tensors.begin()
    for offset in exported:
        tensors.release(offset)
    assert allocator.live == 0
    arena.close()
