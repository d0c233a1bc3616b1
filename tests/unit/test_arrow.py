"""Arrow and tensors, against pyarrow's own reading of the same bytes; and bytes that lie."""

import gc
import math
import struct

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vortex_worker._core.arena import Arena
from vortex_worker._core.handle import ARROW_IPC, TensorHandle
from vortex_worker.bridge import arrow_ipc
from vortex_worker.bridge.arrow import ArrowBridge
from vortex_worker.errors import InvalidHandle

SIZE, DATA = 8 << 20, 2 << 20
NUMBERS = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
TORCH_DTYPES = [
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.float32, torch.float64,
]  # fmt: skip
BRIDGE = ArrowBridge()


def stream(*batches, options=None, schema=None):
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, schema or batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return out.getvalue().to_pybytes()


def column(array):
    return stream(pa.record_batch([array], names=["x"]))


def message(array):
    out = pa.BufferOutputStream()
    pa.ipc.write_tensor(pa.Tensor.from_numpy(array), out)
    return out.getvalue().to_pybytes()


def random_array(dtype, shape, seed=0):
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8).view(dtype).reshape(shape)


def as_bytes(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def refusal(data):
    with pytest.raises(InvalidHandle) as caught:
        BRIDGE.arrow_to_tensor(data)
    return caught.value.message


# --------------------------------------------------------------- Arrow → torch

dtypes = st.sampled_from(NUMBERS)


@settings(deadline=None)
@given(dtypes, st.integers(0, 50), st.integers(0, 9), st.integers(0, 9))
def test_plain_columns(dtype, length, before, after):
    array = random_array(dtype, (before + length + after,))
    tensor = BRIDGE.arrow_to_tensor(column(pa.array(array).slice(before, length)))
    assert tensor.shape == (length,)
    assert as_bytes(tensor) == array[before : before + length].tobytes()


@settings(deadline=None)
@given(st.data(), dtypes, st.integers(0, 6), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 3))
def test_fixed_shape_tensor_columns(data, dtype, rows, row, before):
    """Against the specification's words; ``to_numpy_ndarray`` of pyarrow 26 gets most permutations wrong."""
    values = random_array(dtype, (before + rows + 1, *row))
    storage = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), math.prod(row))
    permutation = data.draw(st.one_of(st.none(), st.permutations(range(len(row)))))
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(dtype), row, permutation=permutation)
    array = pa.ExtensionArray.from_storage(kind, storage.slice(before, rows))
    tensor = BRIDGE.arrow_to_tensor(column(array))
    expected = values[before : before + rows].transpose(0, *(1 + dim for dim in permutation or range(len(row))))
    assert tuple(tensor.shape) == expected.shape
    assert as_bytes(tensor) == np.ascontiguousarray(expected).tobytes()
    if permutation is None and rows:
        assert array.to_numpy_ndarray().tobytes() == expected.tobytes()


@settings(deadline=None)
@given(dtypes, st.lists(st.integers(0, 4), max_size=4), st.booleans())
def test_tensor_messages(dtype, shape, fortran):
    array = random_array(dtype, tuple(shape))
    data = message(np.asfortranarray(array) if fortran and shape else array)
    tensor = BRIDGE.arrow_to_tensor(data)
    assert tuple(tensor.shape) == array.shape
    assert as_bytes(tensor) == array.tobytes()
    assert pa.ipc.read_tensor(pa.BufferReader(data)).to_numpy().tobytes() == array.tobytes()


def test_dtypes():
    for name, dtype in zip(NUMBERS, TORCH_DTYPES, strict=True):
        assert BRIDGE.arrow_to_tensor(column(pa.array(np.zeros(2, name)))).dtype is dtype
        assert BRIDGE.arrow_to_tensor(message(np.zeros((2, 2), name))).dtype is dtype


def address(buffer):
    return np.frombuffer(buffer, np.uint8).ctypes.data


def test_nothing_is_copied_and_the_source_stays():
    array = np.arange(1000.0).reshape(10, 100)
    for data in (bytearray(message(array)), bytearray(column(BRIDGE.tensor_to_arrow(torch.from_numpy(array))))):
        tensor = BRIDGE.arrow_to_tensor(data)
        assert 0 < tensor.data_ptr() - address(data) < len(data)
        with pytest.raises(BufferError):
            data.append(0)
        row = tensor[3]
        del tensor
        assert row.tolist() == array[3].tolist()
        del row
        data.append(0)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, pa.py_buffer, lambda data: np.frombuffer(data, "u1")])
def test_any_buffer_will_do(wrap):
    assert BRIDGE.arrow_to_tensor(wrap(column(pa.array([1, 2, 3])))).tolist() == [1, 2, 3]


def test_in_the_arena():
    arena = Arena.create(SIZE)
    data = column(pa.array([1.5, 2.5]))
    arena.write(DATA, data)
    tensor = BRIDGE.arrow_to_tensor(arena.buffer(DATA, len(data)))
    assert tensor.tolist() == [1.5, 2.5]
    assert arena.locate(tensor.data_ptr(), 16) >= DATA
    with pytest.raises(BufferError, match="1 live views"):
        arena.close()
    del tensor
    arena.close()


def test_ends_of_a_stream():
    data = column(pa.array([1, 2, 3]))
    assert data.endswith(b"\xff\xff\xff\xff\0\0\0\0")
    for end in (b"", b"\0" * 8, b"\xff\xff\xff\xff\0\0\0\0", b"\xff\xff\xff\xff\0\0\0\0" + b"whatever" * 9):
        assert BRIDGE.arrow_to_tensor(data[:-8] + end).tolist() == [1, 2, 3]


def test_a_stream_without_batches_has_no_rows():
    assert BRIDGE.arrow_to_tensor(stream(schema=pa.schema([("x", pa.int16())]))).shape == (0,)
    kind = pa.fixed_shape_tensor(pa.float32(), (2, 3))
    assert BRIDGE.arrow_to_tensor(stream(schema=pa.schema([("x", kind)]))).shape == (0, 2, 3)


def test_no_nulls_but_a_bitmap_of_them():
    """Other writers than Arrow's own write the bitmap, too."""
    array = pa.Array.from_buffers(pa.int32(), 3, [pa.py_buffer(b"\x07"), pa.py_buffer(np.arange(3, dtype="i4"))])
    assert BRIDGE.arrow_to_tensor(column(array)).tolist() == [0, 1, 2]


# ---------------------------------------------------------------- what can't be

FIXED = pa.fixed_shape_tensor(pa.int32(), (2,))
BITS = pa.fixed_shape_tensor(pa.bool_(), (2,))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (column(pa.array([1, None, 3])), "has 1 nulls, and tensors have none: fill them first"),
        (column(pa.array([True, False])), "booleans as bits, which no tensor can view: cast them to uint8"),
        (column(pa.array(["a"])), "column of string is no tensor"),
        (column(pa.array([[1, 2]])), "column of list<"),
        (column(pa.array([{"a": 1}])), "column of struct<"),
        (column(pa.array([1]).dictionary_encode()), "column of dictionary<"),
        (column(pa.array([1], pa.timestamp("s"))), "column of timestamp"),
        (column(pa.array([1], pa.decimal128(5))), "column of decimal128"),
        (column(pa.array([None], pa.null())), "column of null"),
        (column(pa.array([[1, 2]], pa.list_(pa.int32(), 2))), "column of fixed_size_list"),
        (column(pa.ExtensionArray.from_storage(FIXED, pa.array([[1, 2], None], FIXED.storage_type))), "has 1 nulls"),
        (column(pa.ExtensionArray.from_storage(FIXED, pa.array([[1, None]], FIXED.storage_type))), "has 1 nulls"),
        (column(pa.ExtensionArray.from_storage(BITS, pa.array([[True, False]], BITS.storage_type))), "as bits"),
        (stream(pa.record_batch([pa.array([1]), pa.array([2])], names=["a", "b"])), "has 2 columns: it must have one"),
        (stream(pa.record_batch([], names=[])), "has 0 columns"),
        (stream(*[pa.record_batch([pa.array([1])], names=["a"])] * 2), "more than one record batch: combine them"),
        (stream(pa.record_batch([pa.array(range(99))], names=["a"]),
                options=pa.ipc.IpcWriteOptions(compression="lz4")), "compressed"),
        (stream(pa.record_batch([pa.array(range(99))], names=["a"]),
                options=pa.ipc.IpcWriteOptions(use_legacy_format=True)), "no Arrow IPC message at byte 0"),
        (b"", "ends before its schema"),
        (b"\xff\xff\xff\xff\0\0\0\0", "ends before its schema"),
        (b"\0" * 64, "no Arrow IPC message at byte 0"),
        (b"\xff\xff\xff\xff", "truncated: 4 bytes of a message at byte 0"),
        (b"PAR1" + b"\0" * 60, "no Arrow IPC message"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff" + b"\0" * 60, "has -1 bytes of metadata"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f" + b"\0" * 60, "has 2147483647 bytes of metadata: at most"),
        (b"\xff\xff\xff\xff\x40\0\0\0" + b"\0" * 60, "truncated: a message reaches to 72 of 68 bytes"),
    ],
)  # fmt: skip
def test_what_can_not_be_viewed(data, says):
    assert says in refusal(data)


def test_files_are_not_streams():
    out = pa.BufferOutputStream()
    batch = pa.record_batch([pa.array([1])], names=["a"])
    with pa.ipc.new_file(out, batch.schema) as writer:
        writer.write_batch(batch)
    assert "no Arrow IPC message at byte 0" in refusal(out.getvalue())


def test_other_kinds_of_messages():
    data = column(pa.array([1]).dictionary_encode())
    batch = data.index(b"\xff\xff\xff\xff", 8)
    assert "of kind 2: only schema, record batch and tensor" in refusal(data[batch:])


def test_batches_in_the_wrong_place():
    data = column(pa.array([1, 2, 3]))
    schema_end = data.index(b"\xff\xff\xff\xff", 8)
    assert "does not begin with its schema" in refusal(data[schema_end:])
    assert "no record batch behind its schema" in refusal(data[:schema_end] + data[:schema_end])


def test_misaligned_memory():
    data = column(pa.array([1.0, 2.0]))
    memory = bytearray(len(data) + 16)
    begin = -address(memory) % 8 + 1
    memory[begin : begin + len(data)] = data
    assert "not aligned to the 8 bytes" in refusal(memoryview(memory)[begin:])


# ------------------------------------------------------------- bytes that lie


def in_bounds(data):
    """Read it: an error that is ours, or a tensor that lies in the bytes and can be read."""
    try:
        tensor = BRIDGE.arrow_to_tensor(data)
    except InvalidHandle:
        return None
    if tensor.numel():
        assert min(tensor.stride(), default=0) >= 0
        last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        begin = tensor.data_ptr() - address(data)
        assert begin >= 0
        assert begin + (last + 1) * tensor.element_size() <= len(data)
    return tensor


PERMUTED = pa.ExtensionArray.from_storage(
    pa.fixed_shape_tensor(pa.float32(), (2, 3), permutation=[1, 0]),
    pa.FixedSizeListArray.from_arrays(pa.array(np.arange(42, dtype="f4")), 6),
)
SAMPLES = [column(pa.array(np.arange(7, dtype="i2"))), column(PERMUTED), message(np.arange(6.0).reshape(2, 3)),
           message(np.asfortranarray(np.arange(6.0).reshape(2, 3)))]  # fmt: skip
sample = pytest.mark.parametrize("data", SAMPLES, ids=["column", "tensors", "message", "fortran"])


@sample
def test_cut_off_anywhere(data):
    full = BRIDGE.arrow_to_tensor(data)
    for length in range(len(data)):
        tensor = in_bounds(data[:length])
        assert tensor is None or tensor.numel() == 0 or torch.equal(tensor, full)


@sample
@pytest.mark.parametrize("value", [0, 1, 0x7F, 0x80, 0xFF])
def test_any_byte_changed(data, value):
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] = value
        in_bounds(changed)


@sample
@pytest.mark.parametrize("value", [-1, -(1 << 63), (1 << 63) - 1, 1 << 62, 1 << 32, 1 << 20, 0, 3])
def test_any_long_changed(data, value):
    """Lengths, offsets, shapes and strides are i64 at multiples of 4."""
    for at in range(0, len(data) - 8, 4):
        changed = bytearray(data)
        struct.pack_into("<q", changed, at, value)
        in_bounds(changed)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(SAMPLES), st.lists(st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=8)), max_size=4)
)
def test_any_bytes_changed(data, changes):
    changed = bytearray(data)
    for at, piece in changes:
        changed[at % len(data) : at % len(data) + len(piece)] = piece
    in_bounds(changed)


@settings(deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes(data, framed):
    in_bounds(b"\xff\xff\xff\xff" + struct.pack("<i", len(data)) + data + bytes(64) if framed else data)


def test_lengths_that_lie():
    """The numbers an attacker would change, by name."""
    data = column(pa.array(np.arange(7, dtype="i8")))
    seven, size = struct.pack("<q", 7), struct.pack("<q", 56)
    assert data.count(seven) >= 2  # the batch's length, and its array's; further on, the value 7 isn't there
    for length in (-1, 8, 9, 1 << 61, (1 << 63) - 1):
        refusal(data.replace(seven, struct.pack("<q", length)))
    for nbytes in (-8, 8, 48, 55):
        refusal(data.replace(size, struct.pack("<q", nbytes)))


def test_metadata_that_changes_while_it_is_read(monkeypatch):
    """The writer may be another process with this memory mapped: only a copy is ever looked at."""
    data = bytearray(column(PERMUTED))
    parse = arrow_ipc._parse.__wrapped__

    def scribble_and_parse(metadata):
        at = bytes(data).find(metadata)
        if at >= 0:
            data[at : at + len(metadata)] = b"\xff" * len(metadata)
        return parse(metadata)

    monkeypatch.setattr(arrow_ipc, "_parse", scribble_and_parse)
    tensor = BRIDGE.arrow_to_tensor(data)
    assert tensor.tolist() == PERMUTED.to_numpy_ndarray().tolist()


# --------------------------------------------------------------- torch → Arrow


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_tensors_become_arrays_over_the_same_memory(dtype):
    for shape in [(5,), (0,), (2, 3), (4, 1, 2), (0, 3), (1,)]:
        tensor = torch.arange(math.prod(shape)).to(dtype).reshape(shape)
        array = BRIDGE.tensor_to_arrow(tensor)
        array.validate(full=True)
        assert len(array) == shape[0]
        if tensor.numel():
            values = array if tensor.dim() == 1 else array.storage.flatten()
            assert values.buffers()[1].address == tensor.data_ptr()
        if tensor.dim() > 1:
            assert isinstance(array, pa.FixedShapeTensorArray)
            assert array.type.shape == list(shape[1:])
        back = BRIDGE.arrow_to_tensor(column(array))
        assert back.dtype is dtype
        assert back.tolist() == tensor.tolist()


def test_an_array_keeps_its_tensor():
    arena = Arena.create(SIZE)
    from vortex_worker.bridge.tensor import view

    array = BRIDGE.tensor_to_arrow(view(arena, TensorHandle(DATA, 16, 12, (4,))))
    gc.collect()
    assert arena.views == 1
    assert array.to_pylist() == [0] * 4
    del array
    gc.collect()
    arena.close()


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.ones(3, dtype=torch.bool), "no plain numbers of torch.bool"),
        (torch.ones(3, dtype=torch.bfloat16), "no plain numbers of torch.bfloat16"),
        (torch.ones(3).to(torch.float8_e5m2), "no plain numbers of torch.float8_e5m2"),
        (torch.ones(3, dtype=torch.complex64), "no plain numbers of torch.complex64"),
        (torch.ones(3, 4).T, "only a contiguous tensor on the CPU"),
        (torch.ones(3, dtype=torch.complex64).conj().imag, "only a contiguous tensor on the CPU"),
        (torch.tensor(1.0), "reshape it to"),
        (torch.ones(2, 0), "rows of no elements"),
        (torch.empty(2, device="meta"), "no data"),
        (torch.eye(2).to_sparse(), "sparse"),
    ],
    ids=str,
)
def test_tensors_that_can_not_become_arrow(tensor, says):
    with pytest.raises(TypeError, match=says):
        BRIDGE.tensor_to_arrow(tensor)


def test_gradients_stay_behind():
    assert BRIDGE.tensor_to_arrow(torch.ones(2, requires_grad=True)).to_pylist() == [1, 1]


def test_written_into_a_buffer():
    tensor = torch.arange(12, dtype=torch.int32).reshape(3, 4)
    for write in (BRIDGE.write_stream, BRIDGE.write_tensor):
        sink = bytearray(4096)
        used = write(tensor, sink)
        assert torch.equal(BRIDGE.arrow_to_tensor(memoryview(sink)[:used]), tensor)
        for size in (0, 1, 100, used - 1):
            with pytest.raises(ValueError, match=f"the buffer of {size} bytes is too small"):
                write(tensor, bytearray(size))
        with pytest.raises(ValueError, match="4096 bytes is read-only"):
            write(tensor, bytes(4096))


def test_tensor_messages_of_any_shape():
    for shape in [(), (0, 3), (2, 0), (1,)]:
        sink = bytearray(4096)
        used = BRIDGE.write_tensor(torch.ones(shape), sink)
        assert BRIDGE.arrow_to_tensor(memoryview(sink)[:used]).shape == shape


def test_stored_in_the_arena():
    arena = Arena.create(SIZE)
    asked = []

    def allocate(nbytes):
        asked.append(nbytes)
        return DATA + 64, "owner"

    tensor = torch.randn(7, 5)
    handle, owner = BRIDGE.store(arena, tensor, allocate)
    assert owner == "owner"
    assert handle == TensorHandle(DATA + 64, asked[0], 0, (), None, ARROW_IPC)
    handle.check(arena.data_offset, arena.data_size)
    data = arena.buffer(handle.offset, handle.nbytes)
    assert torch.equal(BRIDGE.arrow_to_tensor(data), tensor)
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        assert reader.read_all().column(0).chunk(0).to_numpy_ndarray().tolist() == tensor.tolist()
    del data, reader
    gc.collect()
    arena.close()
