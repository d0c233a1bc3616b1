"""Tensors into the arena: what is stored is what comes back, and what can't be is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import DATA, SIZE, STORE, dtypes, same, tensors

from vortex_worker._core.handle import TensorHandle
from vortex_worker.bridge import tensor as bridge
from vortex_worker.errors import InvalidHandle, OutOfArena


@settings(deadline=None, max_examples=150)
@given(tensors())
def test_what_is_stored_is_what_comes_back(tensor):
    handle, owner = bridge.store(STORE.arena, tensor, STORE.allocate)
    handle.check(DATA, SIZE - DATA)
    assert handle.offset == owner.offset
    assert handle.strides is None
    back = bridge.view(STORE.arena, handle, owner)
    assert same(back, tensor)
    # In the arena now: no second copy, and any view of it has a handle of its own.
    if tensor.numel():
        assert bridge.locate(STORE.arena, back) == handle
    assert bridge.is_view_of(STORE.arena, back, handle) == bool(tensor.numel())
    assert STORE.blocks.live == 1
    del back, owner
    assert STORE.blocks.live == 0


@settings(deadline=None, max_examples=100)
@given(dtypes, st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_views_in_the_arena_are_located_as_they_lie(dtype, shape, data):
    number, torch_dtype = dtype
    offset, owner = STORE.allocate(bridge.nbytes_of(shape, torch_dtype))
    tensor = bridge.empty(STORE.arena, offset, shape, torch_dtype, owner)
    del owner
    view = tensor.permute(data.draw(st.permutations(range(len(shape)))))
    dim = data.draw(st.integers(0, len(shape) - 1))
    view = view.narrow(dim, 0, data.draw(st.integers(1, view.shape[dim])))
    if data.draw(st.booleans()):
        view = view.unsqueeze(0).expand(3, *view.shape)
    handle = bridge.locate(STORE.arena, view)
    handle.check(DATA, SIZE - DATA)
    assert (handle.offset, handle.dtype, handle.shape) == (offset, number, tuple(view.shape))
    assert handle.strides == (None if view.is_contiguous() else view.stride())
    again = bridge.view(STORE.arena, handle)
    assert again.data_ptr() == view.data_ptr()
    assert again.shape == view.shape
    assert view.is_contiguous() or again.stride() == view.stride()
    assert bridge.is_view_of(STORE.arena, view, handle)


def test_what_has_no_handle_of_its_own(store):
    tensor = bridge.view(store.arena, TensorHandle(DATA, 400, 12, (10, 10)))
    assert bridge.locate(store.arena, torch.zeros(3)) is None
    assert bridge.locate(store.arena, tensor[:0]) is None
    assert bridge.locate(store.arena, tensor[1:]) is None  # off a cache line
    assert bridge.locate(store.arena, tensor.flatten()[16:]).offset == DATA + 64
    assert bridge.locate(store.arena, torch.view_as_complex(tensor.view(10, 5, 2)).conj()) is None
    assert bridge.locate(store.arena, tensor.to_sparse()) is None
    assert bridge.locate(store.arena, torch.empty(3, device="meta")) is None
    assert bridge.locate(store.arena, tensor.view(1, 10, 10).view((1,) * 33 + (100,))) is None
    header = bridge.over(store.arena.buffer(0, 64), TensorHandle(0, 64, 2, (64,)))
    assert bridge.locate(store.arena, header) is None


def test_is_view_of(store):
    handle = TensorHandle(DATA, 64, 12, (4, 4))
    tensor = bridge.view(store.arena, handle)
    assert bridge.is_view_of(store.arena, tensor, handle)
    assert bridge.is_view_of(store.arena, tensor.view_as(tensor), handle)
    assert bridge.is_view_of(store.arena, tensor, TensorHandle(DATA, 64, 12, (4, 4), (4, 1)))
    assert bridge.is_view_of(store.arena, tensor.T, TensorHandle(DATA, 64, 12, (4, 4), (1, 4)))
    for other in (tensor.T, tensor[:2], tensor.view(torch.int32), tensor.view(16), tensor.clone()):
        assert not bridge.is_view_of(store.arena, other, handle)
    elsewhere = TensorHandle(DATA + 64, 64, 12, (4, 4))
    assert not bridge.is_view_of(store.arena, tensor, elsewhere)


def test_lazy_conjugation_and_negation_are_done_before_they_travel(store):
    values = torch.tensor([1 + 2j, 3 - 4j])
    conjugate = values.conj()
    negative = values.conj().imag
    assert conjugate.is_conj()
    assert negative.is_neg()
    for tensor in (conjugate, negative):
        handle, owner = bridge.store(store.arena, tensor, store.allocate)
        assert torch.equal(bridge.view(store.arena, handle), tensor.resolve_conj().resolve_neg())
        del owner


def test_gradients_stay_behind(store):
    leaf = torch.ones(3, requires_grad=True)
    for tensor in (leaf, leaf * 2, leaf[::2], torch.nn.Parameter(torch.ones(2))):
        handle, _ = bridge.store(store.arena, tensor, store.allocate)
        assert not bridge.view(store.arena, handle).requires_grad
    with torch.inference_mode():
        bridge.store(store.arena, torch.ones(3) * 2, store.allocate)


class Wrapper(torch.Tensor):
    """A tensor without memory of its own, such as torchao's."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __tensor_flatten__(self):
        return [], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(str(func))


@pytest.mark.filterwarnings("ignore")  # torch calls its quantized, nested and CSR tensors deprecated or beta
def test_tensors_that_can_not_travel(store):
    for tensor, says in [
        (torch.eye(3).to_sparse(), "sparse_coo tensor can't travel: make it dense"),
        (torch.eye(3).to_sparse_csr(), "sparse_csr tensor"),
        (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8), "quantized tensor can't travel: dequantize"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested tensor"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "nested tensor"),
        (torch.empty(3, device="meta"), "meta tensor has no data"),
        (torch.ones((1,) * 33), "33 dimensions can't travel: 32 is the most"),
        (torch.empty(4, dtype=torch.float8_e8m0fnu), "float8_e8m0fnu can't travel"),
        (Wrapper(torch.ones(3)), "Wrapper has no plain memory"),
    ]:
        with pytest.raises(TypeError, match=says):
            bridge.store(store.arena, tensor, store.allocate)


@pytest.mark.parametrize("shape", [(-1,), (2, -3), (2.0,), ("3",), (None,)])
def test_shapes_that_can_not_be(shape):
    with pytest.raises(InvalidHandle, match="it takes whole numbers, 0 or more"):
        bridge.nbytes_of(shape, torch.float32)


def test_sizes():
    assert bridge.nbytes_of((), torch.float64) == 8
    assert bridge.nbytes_of((0, 1 << 70), torch.float64) == 0
    assert bridge.nbytes_of((np.int64(3), torch.Size([2])[0]), torch.bfloat16) == 12
    with pytest.raises(InvalidHandle, match="no memory is that large"):
        bridge.nbytes_of((1 << 40, 1 << 40), torch.uint8)


def test_no_room(store):
    with pytest.raises(OutOfArena, match="8388608 bytes are wanted"):
        bridge.store(store.arena, torch.empty(SIZE, dtype=torch.uint8), store.allocate)
