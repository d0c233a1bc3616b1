"""Tensors over the arena, against torch's own views of the same bytes."""

import gc
import math
import os
import signal
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vortex_worker._core.arena import Arena
from vortex_worker._core.dlpack import Importer
from vortex_worker._core.handle import ARROW_IPC, DTYPE_NAMES, MAX_NDIM, TensorHandle
from vortex_worker._core.lease import LeaseAllocator
from vortex_worker.bridge import client
from vortex_worker.bridge import tensor as bridge
from vortex_worker.bridge.lease import LeaseTensors
from vortex_worker.errors import InvalidHandle, OutOfArena

MIB = 1 << 20
SIZE, DATA = 8 * MIB, 2 * MIB
LEASE, LEASE_SIZE = 4 * MIB, 2 * MIB

dtypes = st.sampled_from(sorted(bridge.DTYPES.items()))
shapes = st.lists(st.integers(0, 5), max_size=5).map(tuple)


def same(a, b):
    """Equal bit for bit: NaNs, and dtypes that can't be compared, too."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if not a.numel():
        return True
    return torch.equal(*(t.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8) for t in (a, b)))


def fill(arena, offset, nbytes, seed, dtype):
    data = np.random.default_rng(seed).integers(0, 2 if dtype is torch.bool else 256, nbytes, dtype=np.uint8)
    arena.write(offset, data)


class Store:
    """Client memory of an arena, and what is live in it."""

    def __init__(self, size=SIZE):
        self.arena = Arena.create(size)
        self.blocks = LeaseAllocator(DATA, size - DATA)

    def allocate(self, nbytes):
        owner = Block(self.blocks, self.blocks.allocate(nbytes))
        return owner.offset, owner


class Block:
    def __init__(self, blocks, offset):
        self.blocks, self.offset = blocks, offset

    def __del__(self):
        self.blocks.free(self.offset)


@pytest.fixture
def store():
    made = Store()
    yield made
    if made.arena.views:  # in frames of an exception that pytest.raises still has
        gc.collect()
    assert made.blocks.live == 0
    made.arena.close()


@pytest.fixture
def worker(store):
    """A worker's tensors over the same arena."""
    fd = f"/proc/self/fd/{store.arena.fd}"
    arena = Arena.attach(os.open(fd, os.O_RDWR), os.open(fd, os.O_RDONLY))
    arena.lease(LEASE, LEASE_SIZE)
    arena.seal_descriptors()
    made = LeaseTensors(arena, LeaseAllocator(LEASE, LEASE_SIZE))
    made.arena = arena  # for the tests
    return made


# ------------------------------------------------------------ handle → tensor


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


# --------------------------------------------------------------- over buffers


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


# ------------------------------------------------------------ tensor → handle


@st.composite
def tensors(draw):
    """Any dtype, shape and strides; contiguous or not; of memory outside the arena."""
    _, dtype = draw(dtypes)
    shape = draw(shapes)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    data = torch.from_numpy(rng.integers(0, 2 if dtype is torch.bool else 256, 16 * 3125, dtype=np.uint8)).view(dtype)
    kind = draw(st.sampled_from(["contiguous", "permuted", "strided", "expanded"]))
    if kind == "strided":
        strides = tuple(draw(st.integers(0, 9)) for _ in shape)
        return data.as_strided(shape, strides, draw(st.integers(0, 7)))
    tensor = data[: math.prod(shape)].view(shape)
    if kind == "permuted":
        return tensor.permute(draw(st.permutations(range(len(shape)))))
    return tensor.unsqueeze(0).expand(2, *shape) if kind == "expanded" else tensor


STORE = Store()


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


# ---------------------------------------------------------------- client side


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


# ---------------------------------------------------------------- worker side


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
