"""One valid packet or more of every kind: where mutation begins."""

from __future__ import annotations

from typing import Any

from vortex_worker._core.handle import TensorHandle
from vortex_worker.errors import ValidationError
from vortex_worker.executor.ports import OpSpec, Param, Port
from vortex_worker.ipc import capabilities, protocol
from vortex_worker.ipc import control_pb2 as pb

LEASE = (4 << 20, 2 << 20)  # offset, size


def values(*items: Any) -> dict[str, pb.Value]:
    """Python values, handles among them, by made-up names, as messages."""
    out = {}
    for index, item in enumerate(items):
        out[f"port{index}"] = pb.Value.FromString(protocol.pack(item, lambda value: value))
    return out


def all_kinds() -> list[pb.ControlPacket]:
    """Fresh ones, to be changed."""
    handle = TensorHandle(LEASE[0], 96, 12, (2, 3, 4))
    strided = TensorHandle(LEASE[0] + 4096, 400, 12, (3, 5), (10, 1))
    arrow = TensorHandle(LEASE[0] + 8192, 1000, 0, (), None, 1)
    plain = values(None, True, -5, (1 << 64) - 1, 2.5, "text", b"bytes", [1, [2, {"k": [None]}]], {"a": {"b": "c"}})
    tensors = values(handle, strided, arrow, [handle, {"deep": [strided]}], protocol.ObjectHandle(7, "MODEL"))
    nodes = [
        OpSpec(
            "KSampler",
            (Port("model", "MODEL"), Port("latent", "LATENT", optional=True, aliases=("latent_image",))),
            (Port("latent", "LATENT"),),
            (
                Param("steps", "INT", default=20, minimum=1, maximum=10_000, doc="how many"),
                Param("sampler", "CHOICE", default="euler", choices=("euler", "heun")),
                Param("seed", "INT"),
            ),
            doc="Samples.",
        ),
        OpSpec("Identity", (Port("tensor", "*"),), (Port("tensor", "*"),), (), mutates_inputs=True),
    ]
    able = pb.Capabilities(
        devices=[pb.Device(type="cpu", name="a processor", memory=1 << 33)],
        dtypes=list(range(1, 18)),
        torch_version="2.13.0",
    )
    able.MergeFromString(capabilities.pack_ops(nodes))
    report = pb.SandboxReport(policy="execute", layers=["landlock", "seccomp-execute"], landlock_abi=6, enforced=True)
    broken = pb.PluginError(plugin="nodes/broken.py", message="ImportError: no", traceback="  File …\n")
    error = protocol.pack_error(ValidationError("no", {"port": "x"}, problems=["one", "two"]))
    return [
        pb.ControlPacket(seq=1, handshake=pb.Handshake(protocol_version=1, worker_id="w0.1", pid=7, phase=1)),
        pb.ControlPacket(seq=2, handshake=pb.Handshake(phase=2, capabilities=able, sandbox=report)),
        pb.ControlPacket(seq=3, handshake=pb.Handshake(phase=3, capabilities=able, plugin_errors=[broken] * 2)),
        pb.ControlPacket(seq=4, job_progress=pb.JobProgress(job_id=1, step=2, total=3, message="half")),
        pb.ControlPacket(seq=5, job_result=pb.JobResult(job_id=1, outputs=plain, timings=pb.Timings(execute=5))),
        pb.ControlPacket(seq=6, job_result=pb.JobResult(job_id=1, outputs=tensors)),
        pb.ControlPacket(seq=7, job_result=pb.JobResult(job_id=1, error=error)),
        pb.ControlPacket(seq=8, pong=pb.Pong(nonce=3)),
        pb.ControlPacket(seq=9, fault=pb.Fault(code="WK-013", reason="what?")),
        pb.ControlPacket(seq=10, job_submit=pb.JobSubmit(job_id=1, op_type="Identity", inputs=tensors, params=plain)),
        pb.ControlPacket(seq=11, job_cancel=pb.JobCancel(job_id=1)),
        pb.ControlPacket(seq=12, release=pb.Release(offsets=[LEASE[0], 1 << 40], objects=[1, 2])),
        pb.ControlPacket(seq=13, ping=pb.Ping(nonce=1)),
        pb.ControlPacket(seq=14, shutdown=pb.Shutdown(reason="the end")),
        pb.ControlPacket(seq=15, handshake_ack=pb.HandshakeAck(accepted=True, slot=3, lease_size=LEASE[1])),
    ]
