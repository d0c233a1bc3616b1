"""Tensors and arrays of a client's, placed in its memory of the arena."""

import numpy as np
import pytest
import torch

from vortex_worker.bridge import client
from vortex_worker.bridge import tensor as bridge


def test_place_copies_what_is_elsewhere_and_only_that(store):
    handle, owner = client.place(store.arena, torch.arange(4), store.allocate)
    tensor = bridge.view(store.arena, handle, owner)
    del owner
    again, kept = client.place(store.arena, tensor, store.allocate)
    assert again == handle
    assert kept is tensor
    assert store.blocks.live == 1
    inner, _ = client.place(store.arena, tensor[1:], store.allocate)  # off a cache line: a copy
    assert inner.offset != handle.offset


def arrays():
    array = np.arange(12, dtype=np.int16).reshape(3, 4)
    readonly = array.copy()
    readonly.setflags(write=False)
    record = np.zeros(3, dtype=[("a", "u1"), ("b", "<f4")])
    yield from (array, array.T, array[::-1], array[:, ::-2], readonly, np.broadcast_to(array[0], (2, 4)), record["b"])
    yield from (np.float32(1.5), np.array(7), np.zeros((0, 3)), np.array([True, False]), np.array([1j]))


@pytest.mark.parametrize("array", list(arrays()), ids=str)
def test_arrays(store, array):
    handle, owner = client.place(store.arena, array, store.allocate)
    assert np.array_equal(bridge.view(store.arena, handle, owner).numpy(), array)


def test_anything_with_dlpack_is_an_array(store):
    class Array:
        def __dlpack__(self, **arguments):
            return torch.arange(3).__dlpack__(**arguments)

        def __dlpack_device__(self):
            return torch.arange(3).__dlpack_device__()

    handle, owner = client.place(store.arena, Array(), store.allocate)
    assert bridge.view(store.arena, handle, owner).tolist() == [0, 1, 2]


@pytest.mark.parametrize("value", [object(), "text", {1}, np.array(["text"]), np.array([None])], ids=str)
def test_what_is_no_array(store, value):
    with pytest.raises(TypeError):
        client.place(store.arena, value, store.allocate)


def test_empty_and_copy(store):
    tensor = client.empty(store.arena, (2, 3), None, store.allocate)
    assert (tensor.shape, tensor.dtype) == ((2, 3), torch.float32)
    assert bridge.locate(store.arena, tensor) is not None
    assert client.empty(store.arena, (), torch.bfloat16, store.allocate).shape == ()
    assert client.empty(store.arena, (0, 3), torch.int8, store.allocate).numel() == 0
    for value in ([[1.5, 2.0]], 3, (True, False), np.ones(3), tensor):
        copied = client.copy(store.arena, value, store.allocate)
        assert torch.equal(copied, torch.as_tensor(value))
        assert bridge.locate(store.arena, copied) is not None
    assert client.copy(store.arena, tensor, store.allocate).data_ptr() != tensor.data_ptr()
