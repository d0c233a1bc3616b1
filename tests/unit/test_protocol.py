"""Values ⇄ messages, checked against protobuf's own runtime; malformed packets."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vortex_worker._core.handle import TensorHandle
from vortex_worker.errors import JOB_ERRORS, ExecutionError, JobError, ProtocolError
from vortex_worker.ipc import control_pb2 as pb
from vortex_worker.ipc import protocol


def refuse(value):
    raise TypeError(type(value).__name__)


def round_trip(value):
    again = pb.Value.FromString(protocol.pack(value, refuse))
    return protocol.unpack(again, lambda handle: handle, lambda number, type: (number, type))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),  # noqa: E501
    max_leaves=20,
)  # fmt: skip


def same(a, b):
    return type(a) is type(b) and a == b


@given(plain)
def test_plain_values_survive_exactly(value):
    assert same(round_trip(value), value)


@pytest.mark.parametrize("seed", [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -1, -(1 << 63)])
def test_64_bit_seeds_survive_exactly(seed):
    assert same(round_trip(seed), seed)


def test_floats_that_are_no_numbers_survive():
    assert math.isnan(round_trip(math.nan))
    assert round_trip(-math.inf) == -math.inf


def test_true_is_not_one():
    assert round_trip([True, 1]) == [True, 1]
    assert round_trip(True) is True


def test_handles_travel_whole():
    for handle in (
        TensorHandle(1 << 21, 24, 12, (2, 3)),
        TensorHandle((1 << 63) + 64, 0, 1, ()),
        TensorHandle(0, 96, 13, (2, 2), (4, 1)),
        TensorHandle(64, 500, 0, (), None, 1),
    ):
        assert round_trip(handle) == handle


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1])
def test_integers_beyond_64_bits_are_refused(value):
    with pytest.raises(ValueError, match="64 bits"):
        round_trip(value)


def test_deep_nesting_is_refused_on_both_sides():
    deep = []
    for _ in range(40):
        deep = [deep]
    with pytest.raises(ValueError, match="deeper"):
        round_trip(deep)
    message = value = pb.Value()
    for _ in range(40):
        value.list.SetInParent()
        value = value.list.items.add()
    value.null = True
    with pytest.raises(ProtocolError, match="deeper"):
        protocol.unpack(message, None, None)


def test_keys_must_be_strings():
    with pytest.raises(TypeError, match="keys"):
        round_trip({1: 2})


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xff\xff\xff",  # no field number
        b"\x12\xff\xff\xff\xff\x0f",  # a length beyond the end
        pb.ControlPacket(seq=1).SerializeToString(),  # no body
        b"\x9a\x06\x00",  # only field 99: a body of a later version
    ],
)
def test_malformed_packets_are_protocol_errors(body):
    with pytest.raises(ProtocolError):
        protocol.decode(body)


def test_unknown_fields_are_ignored():
    body = pb.ControlPacket(ping=pb.Ping(nonce=3)).SerializeToString() + b"\xa0\x06\x07"
    assert protocol.decode(body).ping.nonce == 3


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(body):
    try:
        packet = protocol.decode(body)
    except ProtocolError:
        return
    assert packet.WhichOneof("body")


def test_a_value_of_no_kind_is_refused():
    with pytest.raises(ProtocolError, match="no kind"):
        protocol.unpack(pb.Value(), None, None)


def test_packets_are_numbered():
    encoder = protocol.Encoder()
    frames = [encoder.encode(ping=pb.Ping()) for _ in range(3)]
    assert [protocol.decode(frame).seq for frame in frames] == [1, 2, 3]


@pytest.mark.parametrize("code", JOB_ERRORS)
def test_errors_keep_code_message_and_details(code):
    error = JOB_ERRORS[code]("something\ud800 broke", {"port": "x"}, retryable=True)
    again = protocol.unpack_error(pb.Error.FromString(protocol.pack_error(error).SerializeToString()))
    assert (type(again), again.code, again.details, again.retryable) == (type(error), code, {"port": "x"}, True)
    assert "broke" in again.message


def test_every_problem_of_a_validation_error_survives():
    error = JOB_ERRORS["WK-004"]("Op: a; b", problems=["input 'a' is\nbad", "'b' is missing"])
    again = protocol.unpack_error(protocol.pack_error(error))
    assert again.problems == ["input 'a' is bad", "'b' is missing"]
    assert again.details == {}


def test_an_unknown_code_is_kept_as_a_detail():
    again = protocol.unpack_error(pb.Error(code="WK-099", message="new"))
    assert isinstance(again, ExecutionError)
    assert again.details["code"] == "WK-099"


def test_every_error_code_is_taken_once():
    codes = [cls.code for cls in JobError.__subclasses__() if cls.__module__ == JobError.__module__]
    assert sorted(codes) == [f"WK-{n:03}" for n in range(1, 14)]


def test_an_error_can_not_write_to_the_terminal_of_who_reads_it():
    hostile = pb.Error(
        code="WK-006\x1b[2J", message="\x1b]0;owned\x07 first\nsecond", details={"k\x9b": "\u202ex" * 90_000}
    )
    error = protocol.unpack_error(hostile)
    text = error.message + "".join(error.details) + "".join(error.details.values())
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "first\nsecond" in error.message
    assert len(error.details["k\\x9b"]) < 30_000


@pytest.mark.parametrize("count", [0, 1, 3, 4000])
def test_a_handshake_with_its_nodes_appended_is_one_message(count):
    """Lengths of 1, 2 and 3 bytes."""
    names = [f"Node{number}" for number in range(count)]
    ops = [pb.OpType(name=name, doc="words") for name in names]
    plain = pb.Handshake(pid=7, phase=pb.Handshake.READY, capabilities=pb.Capabilities(torch_version="2"))
    frame = protocol.Encoder().handshake(plain, pb.Capabilities(op_types=ops).SerializeToString())
    whole = pb.Handshake()
    whole.CopyFrom(plain)
    whole.capabilities.op_types.extend(ops)
    assert protocol.decode(frame) == pb.ControlPacket(seq=1, handshake=whole)
    assert protocol.read(frame) == whole
