"""Tensors over the arena and over buffers, against torch's own views of the same bytes."""

import math
import signal
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import DATA, LEASE, SIZE, dtypes, fill, same, shapes

from vortex_worker._core.arena import Arena
from vortex_worker._core.dlpack import Importer
from vortex_worker._core.handle import ARROW_IPC, DTYPE_NAMES, MAX_NDIM, TensorHandle
from vortex_worker.bridge import tensor as bridge
from vortex_worker.errors import InvalidHandle


def test_dtypes_go_both_ways():
    assert set(bridge.DTYPES) == set(DTYPE_NAMES)
    assert {bridge.DTYPE_NUMBERS[dtype]: dtype for dtype in bridge.DTYPES.values()} == bridge.DTYPES
    with pytest.raises(TypeError, match=r"dtype torch\.quint8 can't travel: torch\.bool"):
        bridge.number_of(torch.quint8)


by_capsule = Importer(None, torch._C._from_dlpack)
ARENA = Arena.create(SIZE)  # of the property tests


def test_which_way_torch_takes_tensors_over():
    assert bridge._importer.direct == hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
    assert not by_capsule.direct
    assert not Importer(object(), None).direct


@settings(deadline=None, max_examples=150)
@given(st.data(), dtypes, shapes, st.integers(0, 40), st.booleans(), st.integers(0, 99))
def test_views_are_what_torch_makes_of_the_same_bytes(data, dtype, shape, slot, strided, seed):
    number, torch_dtype = dtype
    size, offset = torch_dtype.itemsize, DATA + 64 * slot
    strides = tuple(data.draw(st.integers(0, 12)) for _ in shape) if strided else None
    count = math.prod(shape)
    if not strided:
        nbytes = count * size
    else:
        last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if count else -1
        nbytes = (last + 1) * size + data.draw(st.integers(0, 9))  # more memory than it reaches is fine
    fill(ARENA, offset, nbytes, seed, torch_dtype)
    handle = TensorHandle(offset, nbytes, number, shape, strides)

    copy = bytearray(memoryview(ARENA.buffer(offset, nbytes))) + bytes(16)
    flat = torch.frombuffer(copy, dtype=torch.uint8)[: (nbytes + size - 1) // size * size].view(torch_dtype)
    expected = flat[:count].view(shape) if strides is None else flat.as_strided(shape, strides)

    for view in (bridge.view, by_capsule.view, bridge.frombuffer_view):
        tensor = view(ARENA, handle)
        assert same(tensor, expected)
        if view is not bridge.frombuffer_view or count:
            assert tensor.stride() == expected.stride()
            assert not count or tensor.data_ptr() == ARENA.address + offset
        del tensor
        assert ARENA.views == 0


@given(
    st.integers(0, 1 << 64),
    st.integers(0, 1 << 64),
    st.integers(0, 20),
    st.lists(st.integers(-2, 1 << 63), max_size=4),
    st.one_of(st.none(), st.lists(st.integers(-2, 1 << 63), min_size=4, max_size=4)),
)
def test_no_claim_makes_a_tensor_outside_the_arena(offset, nbytes, dtype, shape, strides):
    try:
        tensor = bridge.view(ARENA, TensorHandle(offset, nbytes, dtype, shape, strides and strides[: len(shape)]))
    except InvalidHandle:
        return
    assert not tensor.numel() or ARENA.locate(tensor.data_ptr(), bridge._extent(tensor)) >= DATA


@pytest.mark.parametrize("importer", [bridge._importer, by_capsule], ids=["direct", "capsule"])
def test_a_tensor_keeps_owner_and_mapping(importer):
    arena = Arena.create(SIZE)
    owner = np.zeros(1)
    watch = weakref.ref(owner)
    tensor = importer.view(arena, TensorHandle(DATA, 16, 12, (2, 2)), owner)
    del owner
    row = tensor[1]
    del tensor
    assert arena.views == 1
    with pytest.raises(BufferError, match="1 live views"):
        arena.close()
    row.fill_(3)
    del arena
    assert row.tolist() == [3, 3]
    assert watch() is not None
    del row
    assert watch() is None


def test_views_are_of_the_same_memory(store):
    handle = TensorHandle(DATA, 16, 12, (4,))
    a, b = bridge.view(store.arena, handle), bridge.view(store.arena, handle)
    a[2] = 7
    assert b.tolist() == [0, 0, 7, 0]
    assert not a.requires_grad
    assert a.is_contiguous()


def test_many_dimensions(store):
    shape = (1,) * (MAX_NDIM - 1) + (2,)
    assert bridge.view(store.arena, TensorHandle(DATA, 8, 12, shape)).shape == shape


def test_arrow_handles_are_no_tensors(store):
    with pytest.raises(InvalidHandle, match="read it through ArrowBridge"):
        bridge.view(store.arena, TensorHandle(DATA, 64, 0, (), None, ARROW_IPC))


CHILD = """
import os, sys, torch
from vortex_worker._core.arena import Arena
from vortex_worker._core.handle import TensorHandle
from vortex_worker.bridge.tensor import view
fd = int(sys.argv[1])
worker = Arena.attach(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
worker.lease(4 << 20, 2 << 20)
view(worker, TensorHandle(4 << 20, 16, 12, (4,))).add_(1)
tensor = view(worker, TensorHandle(2 << 20, 16, 12, (4,)))
print(tensor.tolist(), flush=True)
tensor.add_(1)
print("wrote", flush=True)
"""


def test_a_node_that_writes_to_an_input_dies(store):
    bridge.view(store.arena, TensorHandle(DATA, 16, 12, (4,))).copy_(torch.arange(4.0))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(store.arena.fd)], pass_fds=[store.arena.fd],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "[0.0, 1.0, 2.0, 3.0]\n"), done.stderr
    assert bridge.view(store.arena, TensorHandle(DATA, 16, 12, (4,))).tolist() == [0, 1, 2, 3]
    assert bridge.view(store.arena, TensorHandle(LEASE, 16, 12, (4,))).tolist() == [1] * 4


def test_over_a_buffer():
    source = bytearray(np.arange(8, dtype=np.float32).tobytes())
    tensor = bridge.over(memoryview(source)[8:], TensorHandle(0, 24, 12, (2, 3)))
    assert tensor.tolist() == [[2, 3, 4], [5, 6, 7]]
    with pytest.raises(BufferError):  # exported
        source.append(1)
    del tensor
    source.append(1)


@pytest.mark.parametrize("importer", [bridge._importer, by_capsule], ids=["direct", "capsule"])
def test_over_read_only_memory_without_a_warning(importer):
    assert importer.over(bytes(range(8)), TensorHandle(0, 8, 2, (8,))).tolist() == list(range(8))


def test_over_what_can_not_be():
    for source, handle, says in [
        (b"1234", TensorHandle(0, 8, 12, (2,)), "outside the region it must lie in, 0 to 4"),
        (b"1234", TensorHandle(64, 4, 12, (1,)), "outside the region"),
        (memoryview(bytearray(64))[1:], TensorHandle(0, 4, 12, (1,)), "not aligned to the 4 bytes"),
        (memoryview(bytearray(64))[4:], TensorHandle(0, 16, 17, (1,)), "not aligned to the 8 bytes"),
        (b"1234", TensorHandle(0, 4, 0, (), None, ARROW_IPC), "ArrowBridge"),
    ]:
        with pytest.raises(InvalidHandle, match=says):
            bridge.over(source, handle)
    with pytest.raises(BufferError):
        bridge.over(memoryview(b"123456")[::2], TensorHandle(0, 3, 2, (3,)))
    with pytest.raises(TypeError):
        bridge.over("text", TensorHandle(0, 3, 2, (3,)))
