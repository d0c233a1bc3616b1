"""What a worker says to its supervisor: frames on the control socket, past the engine."""

from __future__ import annotations

from typing import Any

from vortex_worker.ipc import control_pb2 as pb

from .registry import CHECKS, attack
from .tools import module, os


def send(world: Any, **body: Any) -> None:
    data = pb.ControlPacket(**body).SerializeToString()
    os.write(world.socket, len(data).to_bytes(4, "little") + data)


def handle(offset: int, nbytes: int) -> pb.Value:
    return pb.Value(tensor=pb.TensorHandle(offset=offset, nbytes=nbytes, dtype=pb.DType.U8, shape=[nbytes]))


@attack("forged", CHECKS)
def result_in_a_lease_of_a_sibling(world: Any) -> None:
    """A result whose tensor lies in another worker's lease: it would be released, and overwritten, as its own."""
    job = world.node.context.job_id
    send(world, job_result=pb.JobResult(job_id=job, outputs={"loot": handle(world.sibling_result, 64)}))
    module("time").sleep(1)


@attack("forged", CHECKS)
def result_outside_the_arena(world: Any) -> None:
    """A result whose tensor begins before the data, at the header that all workers write."""
    job = world.node.context.job_id
    send(world, job_result=pb.JobResult(job_id=job, outputs={"loot": handle(64, 64)}))
    module("time").sleep(1)
