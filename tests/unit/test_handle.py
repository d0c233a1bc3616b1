"""Handles: the check against an oracle that can't overflow, and every way to lie in one."""

import math
import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vortex_worker._core import handle as handles
from vortex_worker._core.handle import ARROW_IPC, DTYPE_NAMES, MAX_NDIM, RAW, TensorHandle, itemsize
from vortex_worker.errors import InvalidHandle

REGION = (2 << 20, 1 << 20)  # offset, size
ITEMSIZES = {
    "bool": 1, "u8": 1, "u16": 2, "u32": 4, "u64": 8, "i8": 1, "i16": 2, "i32": 4, "i64": 8,
    "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "f8_e4m3fn": 1, "f8_e5m2": 1, "c64": 8, "c128": 16,
}  # fmt: skip
U64 = (1 << 64) - 1
I64 = (1 << 63) - 1


def test_dtypes_are_those_of_the_wire():
    from vortex_worker.ipc import control_pb2 as pb

    wire = {number: name.removeprefix("DTYPE_").lower() for name, number in pb.DType.items() if number}
    assert set(wire) == set(DTYPE_NAMES) == set(range(1, 18))
    assert {DTYPE_NAMES[n]: itemsize(n) for n in DTYPE_NAMES} == ITEMSIZES


@pytest.mark.parametrize("unknown", [0, 18, -1, 1 << 40, 1.0, "f32", None])
def test_itemsize_of_an_unknown_dtype_is_0(unknown):
    assert itemsize(unknown) == 0


def test_fields():
    handle = TensorHandle(64, 24, 12, (2, 3), (3, 1))
    assert (handle.offset, handle.nbytes, handle.dtype, handle.encoding) == (64, 24, 12, RAW)
    assert (handle.shape, handle.strides) == ((2, 3), (3, 1))
    assert TensorHandle(64, 24, 12, [2, 3]).strides is None
    assert TensorHandle(0, U64, 0xFFFFFFFF, (I64, -I64 - 1), encoding=7).nbytes == U64
    with pytest.raises(AttributeError):
        handle.offset = 0


def test_equality_and_hash():
    a, b = TensorHandle(64, 24, 12, (2, 3)), TensorHandle(64, 24, 12, [2, 3])
    assert a == b
    assert hash(a) == hash(b)
    assert len({a, b, TensorHandle(64, 24, 12, (2, 3), (3, 1))}) == 2  # given strides are not none
    assert a != "a"


def test_repr_says_what_it_is():
    assert repr(TensorHandle(64, 24, 12, (2, 3))) == "<TensorHandle f32[2, 3] at 64, 24 bytes>"
    assert "strides (1, 2)" in repr(TensorHandle(64, 24, 11, (2, 3), (1, 2)))
    assert "dtype 99" in repr(TensorHandle(64, 24, 99, ()))
    assert "Arrow IPC" in repr(TensorHandle(64, 24, 0, (), None, ARROW_IPC))


class Index:
    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


def test_anything_with_an_index_is_a_number():
    assert TensorHandle(Index(64), Index(4), Index(12), (Index(1),)) == TensorHandle(64, 4, 12, (1,))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((-1, 0, 1), "offset is -1"),
        ((1 << 64, 0, 1), "offset is 18446744073709551616"),
        ((1.0, 0, 1), "offset is 1.0"),
        (("0", 0, 1), "offset is '0'"),
        ((None, 0, 1), "offset is None"),
        ((0, -1, 1), "nbytes is -1"),
        ((0, 1 << 200, 1), "nbytes is 16"),
        ((0, 0, -1), "dtype is -1"),
        ((0, 0, 1 << 32), "dtype is 4294967296"),
        ((0, 0, 1, (1, 1 << 63)), r"shape\[1\] is 9223372036854775808"),
        ((0, 0, 1, (-(1 << 63) - 1,)), r"shape\[0\] is -9223372036854775809"),
        ((0, 0, 1, (1.5,)), r"shape\[0\] is 1.5"),
        ((0, 0, 1, (1,), (1 << 63,)), r"strides\[0\] is"),
        ((0, 0, 1, (1,), ("x",)), r"strides\[0\] is 'x'"),
        ((0, 0, 1, (), None, -1), "encoding is -1"),
        ((0, 0, 1, (1,), ()), "strides are 0 for 1 dimensions"),
        ((0, 0, 1, (), (1,)), "strides are 1 for 0 dimensions"),
        ((0, 0, 1, (1,) * 33), "shape has 33 dimensions: at most 32"),
    ],
)
def test_numbers_that_do_not_fit_their_field(arguments, field):
    with pytest.raises(InvalidHandle, match=field):
        TensorHandle(*arguments)


def refusal(*arguments, region=REGION):
    with pytest.raises(InvalidHandle) as caught:
        TensorHandle(*arguments).check(*region)
    assert caught.value.code == "WK-002"
    return caught.value.message


START, SIZE = REGION
END = START + SIZE


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((START + 32, 4, 12, (1,)), f"offset is {START + 32}: it must be a multiple of 64"),
        ((START + 1, 0, 12, (0,)), "it must be a multiple of 64"),
        ((START - 64, 4, 12, (1,)), f"outside the region it must lie in, {START} to {END}"),
        ((END - 64, 68, 12, (17,)), "outside the region"),
        ((END, 4, 12, (1,)), "outside the region"),
        ((END + 64, 0, 12, (0,)), "outside the region"),
        ((START, U64, 2, (1,)), "outside the region"),
        ((U64 - 63, 64, 2, (64,)), "outside the region"),
        ((U64 - 63, START + 64, 2, (64,)), "outside the region"),
        ((START, 4, 0, (1,)), "dtype is 0: it must be one of 1 to 17"),
        ((START, 4, 18, (1,)), "dtype is 18"),
        ((START, 4, 0xFFFFFFFF, (1,)), "dtype is 4294967295"),
        ((START, 4, 12, (1,), None, 2), "encoding is 2"),
        ((START, 4, 12, (-1,)), r"shape is [-1]: dimension 0 is negative"),
        ((START, 4, 12, (1, -I64 - 1)), "dimension 1 is negative"),
        ((START, 4, 12, (2,)), "shape [2] of f32 takes 8 bytes, nbytes is 4"),
        ((START, 8, 12, (1,)), "shape [1] of f32 takes 4 bytes, nbytes is 8"),
        ((START, 4, 12, ()), ""),  # a scalar: fine, see below
        ((START, 0, 12, ()), "shape [] of f32 takes 4 bytes, nbytes is 0"),
        ((START, 4, 12, (0,)), "shape [0] of f32 takes 0 bytes, nbytes is 4"),
        ((START, 64, 2, (1 << 62, 4, 16)), "reach further than memory does"),
        ((START, 0, 2, (1 << 62, 4, 16, 0)), "reach further than memory does"),
        ((START, 64, 13, (1 << 61,)), "reach further than memory does"),
        ((START, 64, 12, (2, 2), (-1, 1)), "strides are [-1, 1]: stride 0 is negative"),
        ((START, 12, 12, (2, 2), (2, 1)), "reaches 16 bytes, nbytes is 12"),
        ((START, 64, 12, (2,), (I64,)), "reach further than memory does"),
        ((START, 64, 12, (3, 3), (I64, I64)), "reach further than memory does"),
        ((START, 64, 17, (2,), (1 << 60,)), "reach further than memory does"),
        ((START, 64, 12, (), None, ARROW_IPC), "an Arrow IPC handle must have no dtype, shape or strides"),
        ((START, 64, 0, (64,), None, ARROW_IPC), "an Arrow IPC handle must have no dtype, shape or strides"),
        ((START, 64, 0, (), (), ARROW_IPC), "an Arrow IPC handle must have no dtype, shape or strides"),
        ((START, SIZE + 1, 0, (), None, ARROW_IPC), "outside the region"),
    ],
)
def test_refusals_name_what_is_wrong_what_was_found_and_what_is_accepted(arguments, says):
    if says:
        assert says in refusal(*arguments)
    else:
        TensorHandle(*arguments).check(*REGION)


@pytest.mark.parametrize(
    "arguments",
    [
        (START, SIZE, 2, (SIZE,)),
        (END, 0, 2, (0,)),
        (START, 16, 17, ()),
        (START, 0, 12, (0, 1 << 62)),
        (START, 0, 12, (0, 3), (I64, I64)),
        (START, 4, 12, (5, 7), (0, 0)),
        (START, SIZE, 12, (5, 7), (7, 1)),  # more memory than it reaches
        (START, 4, 12, (1,) * MAX_NDIM),
        (START, 4, 12, (1,) * MAX_NDIM, (I64,) * MAX_NDIM),
        (START, SIZE, 0, (), None, ARROW_IPC),
    ],
)
def test_the_edges_of_what_is_accepted(arguments):
    TensorHandle(*arguments).check(*REGION)


def test_a_region_that_reaches_the_end_of_all_numbers():
    TensorHandle(U64 - 127, 64, 2, (64,)).check(U64 - 127, U64)
    assert "outside" in refusal(U64 - 127, 64, 2, (64,), region=(U64 - 63, U64))
    assert "outside" in refusal(0, 4, 12, (1,), region=(0, 0))


near_region = st.one_of(
    st.integers(-3, 3).map(lambda k: START + 64 * k),
    st.integers(-3, 3).map(lambda k: END + 64 * k),
    st.integers(START // 64, END // 64).map(lambda k: 64 * k),
    st.integers(0, U64),
    st.integers(0, 130).map(lambda k: U64 - k),
)
sizes = st.one_of(st.integers(0, 6), st.integers(0, 6), st.integers(-2, I64), st.sampled_from([I64, 1 << 62, 1 << 32]))
strides = st.one_of(st.integers(0, 40), st.integers(0, 40), st.integers(-3, I64), st.sampled_from([I64, 1 << 61]))


@st.composite
def claims(draw):
    shape = tuple(draw(st.lists(sizes, max_size=5)))
    steps = draw(st.one_of(st.none(), st.tuples(*[strides] * len(shape))))
    dtype = draw(st.integers(0, 19))
    honest = abs(math.prod(shape)) * itemsize(dtype)
    nbytes = draw(st.one_of(st.just(min(honest, U64)), st.integers(0, SIZE + 200), st.integers(0, U64)))
    return draw(near_region), nbytes, dtype, shape, steps


def lies(offset, nbytes, dtype, shape, steps):
    """Whether the claim is false, in numbers without an end."""
    if offset % 64 or offset < START or offset + nbytes > END or not 1 <= dtype <= 17 or min(shape, default=0) < 0:
        return True
    count = math.prod(shape)
    if math.prod(n for n in shape if n) > I64 or count * itemsize(dtype) > I64:
        return True
    if steps is None:
        return count * itemsize(dtype) != nbytes
    if min(steps, default=0) < 0:
        return True
    last = sum((n - 1) * step for n, step in zip(shape, steps, strict=True)) if count else -1
    return (last + 1) * itemsize(dtype) > nbytes


@given(claims())
def test_the_check_agrees_with_an_oracle_that_can_not_overflow(claim):
    handle = TensorHandle(*claim)
    if lies(*claim):
        with pytest.raises(InvalidHandle):
            handle.check(*REGION)
    else:
        handle.check(*REGION)


@given(claims())
def test_a_handle_gives_back_what_it_was_made_of(claim):
    handle = TensorHandle(*claim)
    assert operator.attrgetter("offset", "nbytes", "dtype", "shape", "strides")(handle) == claim
    assert handle == TensorHandle(*claim)


def test_module_has_its_names():
    assert handles.MAX_NDIM == 32
    assert (handles.RAW, handles.ARROW_IPC) == (0, 1)
