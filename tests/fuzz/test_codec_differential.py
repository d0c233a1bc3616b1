"""The core's codec against the protobuf runtime: the same bytes out, the same messages in, whatever comes.

Messages are drawn with a seed, so that a failure names what to replay. ``VORTEX_CODEC_MESSAGES`` asks for
more of them: a million take some minutes.
"""

import math
import os
import random
import struct

import pytest

from vortex_worker._core import codec
from vortex_worker._core.handle import TensorHandle
from vortex_worker.errors import JobError, ProtocolError
from vortex_worker.ipc import control_pb2 as pb
from vortex_worker.ipc import protocol

MESSAGES = int(os.environ.get("VORTEX_CODEC_MESSAGES", "25000"))  # of each test
TEXTS = ["", "a", "tensor", "samples", "naïve", "\0", "鏡", "😀", "x" * 127, "y" * 128, "é" * 9000]
WHOLE = [0, 1, -1, 63, 64, -64, -65, (1 << 63) - 1, -(1 << 63), 1 << 63, (1 << 64) - 1, 1 << 32]
REAL = [0.0, -0.0, 1.5, math.inf, -math.inf, 5e-324, 1e308]


def refuse(value):
    raise TypeError(type(value).__name__)


# ------------------------------------------------------------------ Python values → bytes


def some_handle(r):
    ndim = r.choice([0, 1, 2, 4, 4, 32])
    strides = tuple(r.randrange(1 << r.choice([1, 20, 62])) for _ in range(ndim)) if ndim and r.random() < 0.3 else None
    return TensorHandle(
        r.choice([0, 64, 1 << 21, (1 << 64) - 64]), r.choice([0, 4096, 1 << 40]), r.randrange(18),
        tuple(r.randrange(1 << r.choice([1, 10, 62])) for _ in range(ndim)), strides, r.choice([0, 0, 0, 1]),
    )  # fmt: skip


def some_value(r, depth=0):
    kind = r.randrange(12 if depth < 5 else 9)
    if kind == 0:
        return some_handle(r)
    if kind == 1:
        return codec.ObjectHandle(r.choice([0, 1, 300, (1 << 64) - 1]), r.choice(TEXTS))
    if kind == 2:
        return r.choice([None, True, False])
    if kind in (3, 4):
        return r.choice(WHOLE) if r.random() < 0.5 else r.randrange(-(1 << 63), 1 << 64)
    if kind == 5:
        return r.choice(REAL) if r.random() < 0.5 else r.uniform(-1e9, 1e9)
    if kind in (6, 7):
        return r.choice(TEXTS)
    if kind == 8:
        return r.randbytes(r.choice([0, 1, 5, 127, 128, 300]))
    if kind == 9:
        return some_map(r, depth + 1)
    return [some_value(r, depth + 1) for _ in range(r.randrange(4))]


def some_map(r, depth=0):
    # In the order in which the runtime writes a map when it is asked for a certain one: of their UTF-8, and of
    # two where one begins the other, the longer first.
    keys = sorted({r.choice(TEXTS[:-1]) for _ in range(r.choice([0, 1, 1, 2, 3]))}, key=lambda k: k.encode() + b"\xff")
    return {key: some_value(r, depth) for key in keys}


def wire_handle(handle):
    return pb.TensorHandle(
        offset=handle.offset, nbytes=handle.nbytes, dtype=handle.dtype, shape=handle.shape,
        strides=handle.strides or (), encoding=handle.encoding,
    )  # fmt: skip


def fill(message, value):
    """A Value by the runtime alone."""
    if isinstance(value, TensorHandle):
        message.tensor.CopyFrom(wire_handle(value))
    elif isinstance(value, codec.ObjectHandle):
        message.object.CopyFrom(pb.ObjectHandle(id=value.id, type=value.type))
    elif value is None:
        message.null = True
    elif isinstance(value, bool):
        message.boolean = value
    elif isinstance(value, int):
        setattr(message, "int64" if -(1 << 63) <= value < 1 << 63 else "uint64", value)
    elif isinstance(value, float):
        message.float64 = value
    elif isinstance(value, str):
        message.text = value
    elif isinstance(value, bytes):
        message.data = value
    elif isinstance(value, list):
        message.list.SetInParent()
        for item in value:
            fill(message.list.items.add(), item)
    else:
        message.map.SetInParent()
        for key, item in value.items():
            fill(message.map.items[key], item)


def in_order(packet):
    return packet.SerializeToString(deterministic=True)


def some_packet(r):
    """The same message by the codec and by the runtime."""
    seq, job_id = r.choice([0, 1, 1 << 40]), r.choice([0, 1, 127, 128, (1 << 64) - 1])
    packet = pb.ControlPacket(seq=seq)
    kind = r.randrange(6)
    if kind in (0, 1):
        inputs, params, op, deadline = some_map(r), some_map(r), r.choice(TEXTS), r.choice([0, 1 << 50])
        packet.job_submit.CopyFrom(pb.JobSubmit(job_id=job_id, op_type=op, deadline=deadline))
        for key, value in inputs.items():
            fill(packet.job_submit.inputs[key], value)
        for key, value in params.items():
            fill(packet.job_submit.params[key], value)
        return codec.encode_submit(seq, job_id, op, inputs, params, deadline, refuse), packet
    if kind in (2, 3):
        outputs, times = some_map(r), tuple(r.choice([0, 5, 1 << 33]) for _ in range(4))
        packet.job_result.CopyFrom(
            pb.JobResult(job_id=job_id, timings=dict(zip(("decode", "map", "execute", "save"), times, strict=True)))
        )
        for key, value in outputs.items():
            fill(packet.job_result.outputs[key], value)
        packed = {key: codec.pack(value, refuse) for key, value in outputs.items()}
        return codec.encode_result(seq, job_id, packed, times), packet
    if kind == 4:
        step, total, text = r.randrange(1 << 32), r.choice([0, 1, (1 << 32) - 1]), r.choice(TEXTS)
        packet.job_progress.CopyFrom(pb.JobProgress(job_id=job_id, step=step, total=total, message=text))
        preview = some_handle(r) if r.random() < 0.5 else None
        if preview is not None:
            packet.job_progress.preview.CopyFrom(wire_handle(preview))
        return codec.encode_progress(seq, job_id, step, total, text, preview), packet
    offsets, objects = ([r.randrange(1 << r.choice([6, 64])) for _ in range(r.choice([0, 1, 3, 60]))] for _ in "ab")
    packet.release.CopyFrom(pb.Release(offsets=offsets, objects=objects))
    return codec.encode_release(seq, offsets, objects), packet


# ------------------------------------------------------------------ comparing what was read


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, JobError):
        return str(a) == str(b)
    return a == b


def fields(message):
    return {name: getattr(message, name) for name in dir(type(message)) if not name.startswith("_")}


def agree(body):
    """Whether the codec took it. Then it must be what the runtime reads; else there is nothing to compare."""
    ours = codec.decode(body)
    if ours is None:
        return False
    theirs = protocol.read_by_runtime(body)  # raises: the codec took what the runtime refuses
    assert type(ours) is type(theirs)
    assert same(fields(ours), fields(theirs)), (fields(ours), fields(theirs))
    return True


# ------------------------------------------------------------------ bytes that no encoder writes


def varint(value, longer=0):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(longer):  # the same number in more bytes than it takes
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def split(body):
    """The fields of a message as (number, wire type, bytes with the tag), or None if it is none."""
    found, at = [], 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = body[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise IndexError

    try:
        while at < len(body):
            start, tag = at, number()
            if tag & 7 == 0:
                number()
            elif tag & 7 == 1:
                at += 8
            elif tag & 7 == 5:
                at += 4
            elif tag & 7 == 2:
                size = number()
                at += size
                if tag < 8 or at > len(body):
                    return None
                found.append((tag >> 3, 2, body[at - size : at]))
                continue
            else:
                return None
            if tag < 8 or at > len(body):
                return None
            found.append((tag >> 3, tag & 7, body[start:at]))
    except IndexError:
        return None
    return found


def unusual(r, body, depth=0):
    """The same message, or nearly: fields moved, doubled, dropped, unknown ones in between, numbers longer."""
    parts = split(body)
    if parts is None or depth > 8 or (depth and r.random() < 0.2):
        return body
    chance = r.random()
    if chance < 0.15:
        r.shuffle(parts)
    elif chance < 0.2 and parts:
        parts.append(r.choice(parts))
    elif chance < 0.25 and parts:
        parts.remove(r.choice(parts))
    elif chance < 0.4:
        alien = r.choice([
            varint(99 << 3) + b"\x07", varint(15 << 3 | 1) + bytes(8), varint(2000 << 3 | 5) + bytes(4),
            varint(77 << 3 | 2) + varint(5) + b"alien", varint(20 << 3 | 3) + varint(20 << 3 | 4), b"\x00\x01",
            varint(r.randrange(1, 12) << 3 | r.choice([0, 1, 2, 3, 4, 5, 6, 7])) + r.randbytes(r.randrange(10)),
        ])  # fmt: skip
        parts.insert(r.randrange(len(parts) + 1), (0, 0, alien))
    out = bytearray()
    for number, type, data in parts:
        if type != 2:
            if type == 0 and r.random() < 0.05:
                data = data[:-1] + varint(data[-1] & 0x7F, r.randrange(12)) if data[-1] < 0x80 else data
            out += data
        else:
            data = unusual(r, data, depth + 1)
            if r.random() < 0.05 and data and all(byte < 0x80 for byte in data):  # a packed run, one by one
                out += b"".join(varint(number << 3) + bytes([byte]) for byte in data)
            else:
                longer = r.randrange(1, 6) if r.random() < 0.02 else 0
                out += varint(number << 3 | 2, longer if r.random() < 0.5 else 0) + varint(len(data), longer) + data
    return bytes(out)


def damaged(r, body):
    body = bytearray(body)
    for _ in range(r.choice([1, 1, 2, 5])):
        if not body:
            break
        at, how = r.randrange(len(body)), r.randrange(4)
        if how == 0:
            body[at] ^= 1 << r.randrange(8)
        elif how == 1:
            body[at] = r.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif how == 2:
            del body[at : at + r.choice([1, 1, 4, 1000])]
        else:
            body[at:at] = r.randbytes(r.choice([1, 2, 8]))
    return bytes(body)


# ------------------------------------------------------------------ the tests


def test_what_we_write_is_what_the_runtime_writes():
    r = random.Random(6)
    for number in range(MESSAGES):
        body, packet = some_packet(r)
        assert body == in_order(packet), number
        assert agree(body), number  # nothing that we write is left to the runtime


def test_what_we_read_the_runtime_reads_the_same():
    r = random.Random(7)
    taken = 0
    for number in range(MESSAGES):
        body, _ = some_packet(r)
        body = damaged(r, body) if r.random() < 0.4 else unusual(r, body)
        try:
            taken += agree(body)
        except ProtocolError as error:
            pytest.fail(f"message {number}: the codec took what the runtime refuses: {error}: {body.hex()}")
    assert taken > MESSAGES / 4  # or it would say little


def test_noise_is_read_alike():
    r = random.Random(8)
    for number in range(MESSAGES):
        inner = r.randbytes(r.randrange(40))
        body = varint(r.choice([4, 5, 6, 8]) << 3 | 2) + varint(len(inner)) + inner
        try:
            agree(body)
        except ProtocolError as error:
            pytest.fail(f"message {number}: the codec took what the runtime refuses: {error}: {body.hex()}")
