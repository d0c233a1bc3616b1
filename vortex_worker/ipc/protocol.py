"""Messages ⇄ bytes, and Python values ⇄ ``Value``. Knows no socket.

The generated classes of ``proto/control.proto`` are used as they are; this module adds what the
schema can't say: one body per packet, no zero job id, which Python types travel and how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import DecodeError

from vortex_worker._core.handle import TensorHandle
from vortex_worker.errors import JOB_ERRORS, ExecutionError, JobError, ProtocolError, ValidationError
from vortex_worker.ipc import control_pb2 as pb

PROTOCOL_VERSION = 1
_PROBLEMS = "problems"  # of a ValidationError's details: one a line
_MAX_DEPTH = 32  # of nested lists and maps; protobuf's own parser stops at 100 messages

#: Gives the value a tensor handle or an object handle stands for.
Load = Callable[[TensorHandle], Any]
LoadObject = Callable[[int, str], Any]
#: Fills a ``pb.Value`` for a value that is not plain data; raises TypeError when it can't travel.
Save = Callable[[Any, "pb.Value"], None]


def decode(body: bytes) -> pb.ControlPacket:
    """One frame's body → packet.

    Raises:
        ProtocolError: not a ControlPacket, or one without a body that this version knows.
    """
    packet = pb.ControlPacket()
    try:
        packet.ParseFromString(body)
    except (DecodeError, RecursionError) as error:
        raise ProtocolError(f"a frame of {len(body)} bytes is not a ControlPacket: {error}") from None
    if packet.WhichOneof("body") is None:
        raise ProtocolError(f"a ControlPacket of {len(body)} bytes has no body that protocol version 1 knows")
    return packet


class Encoder:
    """Numbers the packets of one direction."""

    def __init__(self) -> None:
        self._seq = 0

    def encode(self, **body: Any) -> bytes:
        """``encode(ping=pb.Ping(nonce=1))`` → the frame's body."""
        self._seq += 1
        frame: bytes = pb.ControlPacket(seq=self._seq, **body).SerializeToString()
        return frame


# ------------------------------------------------------------------- values


def pack(value: Any, into: pb.Value, save: Save, depth: int = 0) -> None:
    """Write a Python value into ``into``.

    None, bool, int (64-bit, signed or unsigned), float, str, bytes, list, tuple and dict with str
    keys are plain data; anything else goes to ``save``.

    Raises:
        TypeError, ValueError: it can't travel; the message says what it is.
    """
    kind = type(value)
    if kind is TensorHandle:
        pack_handle(value, into.tensor)
    elif value is None:
        into.null = True
    elif kind is bool:
        into.boolean = value
    elif kind is int:
        _pack_int(value, into)
    elif kind is float:
        into.float64 = value
    elif kind is str:
        into.text = value
    elif kind in (bytes, bytearray, memoryview):
        into.data = bytes(value)
    elif kind in (list, tuple):
        _check_depth(depth)
        into.list.SetInParent()
        add = into.list.items.add
        for item in value:
            pack(item, add(), save, depth + 1)
    elif isinstance(value, Mapping):
        _check_depth(depth)
        into.map.SetInParent()
        items = into.map.items
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a dict's keys must be str, not {type(key).__name__} ({key!r:.40})")
            pack(item, items[key], save, depth + 1)
    elif isinstance(value, bool | int | float | str | bytes):  # subclasses, such as an IntEnum or numpy.float64
        base: type = next(base for base in (bool, int, float, str, bytes) if isinstance(value, base))
        pack(base(value), into, save, depth)
    elif isinstance(value, list | tuple):
        pack(list(value), into, save, depth)
    else:
        save(value, into)


def _pack_int(value: int, into: pb.Value) -> None:
    if -(1 << 63) <= value < 1 << 63:
        into.int64 = value
    elif 0 <= value < 1 << 64:
        into.uint64 = value
    else:
        raise ValueError(f"{value} does not fit in 64 bits")


def _check_depth(depth: int) -> None:
    if depth >= _MAX_DEPTH:
        raise ValueError(f"lists and dicts are nested deeper than {_MAX_DEPTH}")


def unpack(value: pb.Value, load: Load, load_object: LoadObject, depth: int = 0) -> Any:
    """The Python value of ``value``.

    Raises:
        ProtocolError: no kind is set, or it is nested too deeply.
        Whatever ``load`` and ``load_object`` raise.
    """
    kind = value.WhichOneof("kind")
    if kind == "tensor":
        return load(unpack_handle(value.tensor))
    if kind == "object":
        return load_object(value.object.id, value.object.type)
    if kind == "null":
        return None
    if kind == "list":
        _check_received_depth(depth)
        return [unpack(item, load, load_object, depth + 1) for item in value.list.items]
    if kind == "map":
        _check_received_depth(depth)
        return {key: unpack(item, load, load_object, depth + 1) for key, item in value.map.items.items()}
    if kind is None:
        raise ProtocolError("a Value has no kind that protocol version 1 knows")
    return getattr(value, kind)


def _check_received_depth(depth: int) -> None:
    if depth >= _MAX_DEPTH:
        raise ProtocolError(f"lists and maps are nested deeper than {_MAX_DEPTH}")


def pack_handle(handle: TensorHandle, into: pb.TensorHandle) -> None:
    """Write a handle into its message."""
    into.offset = handle.offset
    into.nbytes = handle.nbytes
    into.dtype = handle.dtype  # type: ignore[assignment] # proto3 enums are open: any number travels
    into.shape.extend(handle.shape)
    if handle.strides is not None:
        into.strides.extend(handle.strides)
    into.encoding = handle.encoding  # type: ignore[assignment]


def unpack_handle(message: pb.TensorHandle) -> TensorHandle:
    """A handle as it was received: not checked against any region yet."""
    strides = tuple(message.strides)
    return TensorHandle(
        message.offset, message.nbytes, message.dtype, tuple(message.shape), strides or None, message.encoding
    )


# ------------------------------------------------------------------- errors


def pack_error(error: JobError) -> pb.Error:
    """A job's error for the wire."""
    details = dict(error.details)
    if isinstance(error, ValidationError):
        details[_PROBLEMS] = "\n".join(problem.replace("\n", " ") for problem in error.problems)
    return pb.Error(
        code=error.code,
        message=_clean(error.message),
        details={_clean(k): _clean(v) for k, v in details.items()},
        retryable=error.retryable,
    )


def unpack_error(message: pb.Error) -> JobError:
    """A job's error as received; a code that this version doesn't know becomes an ExecutionError."""
    details = {printable(key): printable(text) for key, text in message.details.items()}
    cls = JOB_ERRORS.get(message.code, ExecutionError)
    if cls.code != message.code:
        details["code"] = printable(message.code)
    if cls is ValidationError and _PROBLEMS in details:
        problems = details.pop(_PROBLEMS).split("\n")
        return ValidationError(printable(message.message), details, message.retryable, problems=problems)
    return cls(printable(message.message), details, message.retryable)


def printable(text: str, limit: int = 20_000) -> str:
    """Text from a worker, fit for a terminal: escape sequences and the like written out, length bounded."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else text[:limit] + "…"


def _clean(text: str) -> str:
    """``text`` without lone surrogates, which UTF-8 can't carry."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
