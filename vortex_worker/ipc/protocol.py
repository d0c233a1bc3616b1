"""Messages ⇄ bytes, and Python values ⇄ ``Value``. Knows no socket.

The hot messages (JobSubmit, JobProgress, JobResult, Release) go through the core's codec, and are its
classes. The others, and hot ones in shapes too rare for it, go through the protobuf runtime and the
generated classes of ``proto/control.proto``. This module adds what the schema can't say: one body per
packet, what makes no sense in a value, and how errors travel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from vortex_worker._core import codec
from vortex_worker._core.codec import JobProgress, JobResult, JobSubmit, ObjectHandle, Release, pack, resolve, stage
from vortex_worker._core.handle import TensorHandle
from vortex_worker.errors import JOB_ERRORS, ExecutionError, JobError, ProtocolError, ValidationError
from vortex_worker.ipc import control_pb2 as pb

__all__ = [
    "PROTOCOL_VERSION",
    "Encoder",
    "JobProgress",
    "JobResult",
    "JobSubmit",
    "Message",
    "ObjectHandle",
    "Question",
    "Release",
    "decode",
    "pack",
    "pack_error",
    "printable",
    "read",
    "resolve",
    "stage",
    "unpack",
    "unpack_error",
]  # fmt: skip

PROTOCOL_VERSION = 1
_PROBLEMS = "problems"  # of a ValidationError's details: one a line
_MAX_DEPTH = 32  # of nested lists and maps; protobuf's own parser stops at 100 messages


class Question(JobSubmit):
    """A job that asks a node something: ``question`` is one of ``Question`` in the schema, by name."""

    def __init__(self, *fields: Any, question: int) -> None:
        super().__init__(*fields)
        known = pb.Question.DESCRIPTOR.values_by_number.get(question)
        self.question = known.name if known else str(question)


#: What a packet's body may be.
Message = (
    JobSubmit | JobProgress | JobResult | Release
    | pb.Handshake | pb.HandshakeAck | pb.JobCancel | pb.Ping | pb.Pong | pb.Shutdown | pb.Fault
)  # fmt: skip

#: Gives the value a tensor handle or an object handle stands for.
Load = Callable[[TensorHandle], Any]
LoadObject = Callable[[int, str], Any]


def read(body: bytes) -> Message:
    """One frame's body → the message in its packet.

    A hot message whose values make no sense is ``malformed``: that is for whoever acts on it to say.

    Raises:
        ProtocolError: not a ControlPacket, or one without a body that this version knows.
    """
    message = codec.decode(body)
    return message if message is not None else read_by_runtime(body)


def read_by_runtime(body: bytes) -> Message:
    """``read``, through the protobuf runtime alone."""
    packet = decode(body)
    message = getattr(packet, packet.WhichOneof("body") or "")
    convert = _HOT.get(type(message))
    hot: Message = message if convert is None else convert(message)
    return hot


def decode(body: bytes) -> pb.ControlPacket:
    """One frame's body → packet, as the protobuf runtime's class.

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

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    def encode(self, **body: Any) -> bytes:
        """``encode(ping=pb.Ping(nonce=1))`` → the frame's body."""
        frame: bytes = pb.ControlPacket(seq=self._next(), **body).SerializeToString()
        return frame

    def handshake(self, message: pb.Handshake, op_types: bytes = b"") -> bytes:
        """A Handshake, its capabilities with ``op_types`` besides, as ``capabilities.pack_ops`` gave them.

        Those are most of it, and the same in all workers: appended as they are, since of a message that comes
        twice the fields are merged.
        """
        field = _field(pb.Handshake.CAPABILITIES_FIELD_NUMBER, op_types)
        return self.encode(handshake=message) + _field(pb.ControlPacket.HANDSHAKE_FIELD_NUMBER, field)

    def submit(
        self,
        job_id: int,
        op_type: str,
        inputs: dict[str, Any],
        params: dict[str, Any],
        deadline: int,
        save: codec.Save,
        question: int = 0,
    ) -> bytes:
        """A JobSubmit. ``save``, and errors, as in ``pack``."""
        self._seq += 1
        frame: bytes = codec.encode_submit(self._seq, job_id, op_type, inputs, params, deadline, save)
        if question:  # too rare for the codec; of a message that comes twice, the fields are merged
            asked = pb.JobSubmit(question=question)  # type: ignore[arg-type] # an open enum: a number
            frame += pb.ControlPacket(job_submit=asked).SerializeToString()
        return frame

    def progress(self, job_id: int, step: int, total: int, message: str, preview: TensorHandle | None = None) -> bytes:
        """A JobProgress."""
        return codec.encode_progress(self._next(), job_id, step, total, message, preview)

    def result(self, job_id: int, outputs: dict[str, bytes], timings: tuple[int, int, int, int]) -> bytes:
        """A JobResult of a job that succeeded. ``outputs``: by port, each as ``pack`` gave it."""
        self._seq += 1
        return codec.encode_result(self._seq, job_id, outputs, timings)

    def failure(self, job_id: int, error: JobError, timings: tuple[int, int, int, int] = (0, 0, 0, 0)) -> bytes:
        """A JobResult of a job that failed."""
        decode, map, execute, save = timings
        spent = pb.Timings(decode=decode, map=map, execute=execute, save=save)
        return self.encode(job_result=pb.JobResult(job_id=job_id, error=pack_error(error), timings=spent))

    def release(self, offsets: list[int], objects: list[int]) -> bytes:
        """A Release."""
        return codec.encode_release(self._next(), offsets, objects)


def _field(number: int, body: bytes) -> bytes:
    """A field of bytes on the wire (protobuf.dev, Encoding): its tag, its length, itself. Nothing for nothing."""
    if not body:
        return b""
    head = bytearray((number << 3 | 2,))
    size = len(body)
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((*head, size)) + body


# ------------------------------------------------- hot messages, by the runtime


def _submit(message: pb.JobSubmit) -> JobSubmit:
    try:
        inputs, params = _values(message.inputs), _values(message.params)
    except JobError as error:
        return JobSubmit(message.job_id, message.op_type, {}, {}, message.deadline, error)
    if message.question:
        return Question(message.job_id, message.op_type, inputs, params, message.deadline, question=message.question)
    return JobSubmit(message.job_id, message.op_type, inputs, params, message.deadline)


def _result(message: pb.JobResult) -> JobResult:
    t = message.timings
    timings = (t.decode, t.map, t.execute, t.save)
    if message.HasField("error"):
        return JobResult(message.job_id, {}, unpack_error(message.error), timings)
    try:
        return JobResult(message.job_id, _values(message.outputs), None, timings)
    except JobError as error:
        return JobResult(message.job_id, {}, None, timings, error)


def _progress(message: pb.JobProgress) -> JobProgress:
    preview = malformed = None
    if message.HasField("preview"):
        try:
            preview = unpack_handle(message.preview)
        except JobError as error:
            malformed = error
    return JobProgress(message.job_id, message.step, message.total, message.message, preview, malformed)


def _release(message: pb.Release) -> Release:
    return Release(list(message.offsets), list(message.objects))


_HOT: dict[type, Callable[[Any], Message]] = {
    pb.JobSubmit: _submit, pb.JobResult: _result, pb.JobProgress: _progress, pb.Release: _release
}  # fmt: skip


def _values(values: Any) -> dict[str, Any]:
    return {key: unpack(value, _itself, ObjectHandle) for key, value in values.items()}


def _itself(handle: TensorHandle) -> TensorHandle:
    return handle


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
    shown = text[:limit]  # first: a frame can hold 16 MiB of it, and letter by letter that takes half a minute
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in shown)
    return shown if len(text) <= limit and len(shown) <= limit else shown[:limit] + "…"


def _clean(text: str) -> str:
    """``text`` without lone surrogates, which UTF-8 can't carry."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
