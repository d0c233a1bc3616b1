"""Any bytes and any packet, through everything that reads them: a value, or one of our errors, and nothing else."""

import random

import pytest
from cases import cases
from fuzzer.mutation import mutate_bytes, mutate_message
from fuzzer.packets import all_kinds

from vortex_worker._core.handle import TensorHandle
from vortex_worker.errors import JobError
from vortex_worker.ipc import capabilities, protocol
from vortex_worker.ipc import control_pb2 as pb

SEEDS = [packet.SerializeToString() for packet in all_kinds()]
PLAIN = (type(None), bool, int, float, str, bytes)
Object = protocol.ObjectHandle


def check_value(value):
    """Only what a caller may get; and it can be sent again as it is."""
    protocol.pack(value, lambda handle: handle)
    look = [value]
    while look:
        item = look.pop()
        if isinstance(item, list | dict):
            look += item.values() if isinstance(item, dict) else item
        else:
            assert isinstance(item, (*PLAIN, TensorHandle, Object)), type(item)


def read(body):
    """Everything that the supervisor, and a worker, do with the bytes of one frame."""
    message = protocol.read(body)
    if isinstance(message, protocol.JobSubmit | protocol.JobResult | protocol.JobProgress) and message.malformed:
        raise message.malformed
    if isinstance(message, protocol.JobSubmit | protocol.JobResult):
        results = isinstance(message, protocol.JobResult)
        for values in [message.outputs] if results else [message.inputs, message.params]:
            for value in protocol.resolve(values, lambda handle: handle, Object).values():
                check_value(value)
    if isinstance(message, protocol.JobResult) and message.error is not None:
        error = message.error
        assert isinstance(error, JobError)
        told = [str(error), *error.details, *error.details.values()]
        assert all(c.isprintable() or c in "\n\t" for text in told for c in text)
    if isinstance(message, pb.Handshake):
        capabilities.unpack_ops(message.capabilities)


def mutated(rng):
    packet = pb.ControlPacket.FromString(rng.choice(SEEDS))
    how = rng.random()
    if how < 0.75:
        for _ in range(rng.choice((1, 1, 2, 4, 8))):
            mutate_message(rng, packet)
    body = packet.SerializeToString()
    if how > 0.5:
        body = mutate_bytes(rng, body, tuple(SEEDS))
    if how > 0.95:
        body += rng.choice(SEEDS)  # protobuf merges the two
    return body


@pytest.mark.timeout(3600)
def test_any_packet_is_read_or_refused():
    taken = 0
    for number, rng in cases("packets", 30_000):
        body = mutated(rng)
        try:
            read(body)
            taken += 1
        except JobError:
            pass
        except BaseException as error:
            raise AssertionError(f"case {number} {body.hex()}: {error!r}") from error
    assert taken > number // 4  # else it is no test of what comes after decoding


def test_the_same_seed_makes_the_same_cases():
    assert mutated(random.Random("x")) == mutated(random.Random("x"))
