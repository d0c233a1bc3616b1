"""``codec.*``: a small job's messages between Python and bytes, beside the protobuf runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vortex_worker._core import codec
from vortex_worker._core.handle import TensorHandle
from vortex_worker.bench.measure import Result, Target, interleaved, median, p99
from vortex_worker.ipc import control_pb2 as pb
from vortex_worker.ipc import protocol

_HANDLE = TensorHandle(2 << 20, 4096, 12, (1024,))


def _refuse(value: Any) -> Any:
    raise TypeError(type(value).__name__)


def _encode() -> bytes:
    return codec.encode_submit(1, 7, "Identity", {"tensor": _HANDLE}, {"seed": 7}, 0, _refuse)


def _encode_by_runtime() -> bytes:
    submit = pb.JobSubmit(job_id=7, op_type="Identity")
    tensor = submit.inputs["tensor"].tensor
    tensor.offset, tensor.nbytes, tensor.dtype = _HANDLE.offset, _HANDLE.nbytes, pb.F32
    tensor.shape.extend(_HANDLE.shape)
    submit.params["seed"].int64 = 7
    frame: bytes = pb.ControlPacket(seq=1, job_submit=submit).SerializeToString()
    return frame


def _result(what: str, ours: Callable[[], object], theirs: Callable[[], object], quick: bool) -> Result:
    mine, reference = interleaved(ours, theirs, rounds=50 if quick else 300, loops=500)
    return Result(
        what, "µs", median(mine) * 1e6, p99(mine) * 1e6,
        "the protobuf runtime (upb) from Python", median(reference) * 1e6, Target("ratio", 0.2, 0.05),
    )  # fmt: skip


def codec_encode(quick: bool) -> Result:
    """A JobSubmit of one tensor and one parameter becomes bytes, the same by both."""
    assert _encode() == _encode_by_runtime()
    return _result("JobSubmit of a tensor and a number → bytes", _encode, _encode_by_runtime, quick)


def codec_decode(quick: bool) -> Result:
    """And back, into plain values and a handle."""
    body = _encode()
    ours, theirs = codec.decode(body), protocol.read_by_runtime(body)
    assert isinstance(ours, codec.JobSubmit)
    assert isinstance(theirs, codec.JobSubmit)
    assert (ours.inputs, ours.params) == (theirs.inputs, theirs.params)
    return _result(
        "bytes → JobSubmit of a tensor and a number",
        lambda: codec.decode(body), lambda: protocol.read_by_runtime(body), quick,
    )  # fmt: skip
