"""Any bytes on a worker's socket and in its log, and any result: through the supervisor's own link, lease, memory."""

import gc
import json
import logging
import os
import select
import threading

import pytest
import torch
from cases import cases
from fuzzer.mutation import mutate_bytes, mutate_message, number
from fuzzer.packets import all_kinds
from peer import peer

from vortex_worker._core.handle import TensorHandle
from vortex_worker.bridge.tensor import DTYPE_NUMBERS
from vortex_worker.errors import JobError, LaunchError, ProtocolError
from vortex_worker.ipc import control_pb2 as pb
from vortex_worker.ipc import protocol
from vortex_worker.supervisor.outputs import Outputs, Stored
from vortex_worker.supervisor.task import Work

SEEDS = [packet.SerializeToString() for packet in all_kinds()]


def frame(body):
    return len(body).to_bytes(4, "little") + body


def readable(link):
    return bool(select.select([link.socket.fileno()], [], [], 0)[0])


# ------------------------------------------------------------------------------ the socket


@pytest.mark.timeout(3600)
def test_any_bytes_on_the_socket_are_packets_or_an_error():
    """Whatever came whole before the first bad byte is taken; what follows never is."""
    for case, rng in cases("socket", 4000):
        bodies = [rng.choice(SEEDS) for _ in range(rng.randint(0, 6))]
        bad = rng.choice((b"", b"\0\0\0\0", b"\xff\xff\xff\xff", frame(b"\xff"), frame(b"\x08\x01"), b"\x40\0\0\0half"))
        rest = mutate_bytes(rng, b"".join(map(frame, SEEDS[:3]))) if bad else b""
        stream = b"".join(map(frame, bodies)) + bad + rest
        with peer() as worker:
            taken, error = [], None
            while (stream or worker.link.unread or readable(worker.link)) and error is None:
                size = rng.choice((1, 3, 50, 5000))
                worker.socket.sendall(stream[:size])
                stream = stream[size:]
                try:
                    for message in worker.link.receive(rng.choice((1, 3, 64))):
                        taken.append(type(message))
                except ProtocolError as caught:
                    error = caught
            assert taken[: len(bodies)] == [type(protocol.read(body)) for body in bodies], case
            assert bool(error) == (bad not in (b"", b"\x40\0\0\0half")) or bad[:1] == b"\x40", case


@pytest.mark.timeout(3600)
def test_any_handshakes_are_shaken_or_refused():
    for case, rng in cases("handshakes", 3000):
        with peer() as worker:
            worker.socket.setblocking(False)
            for _ in range(4):
                packet = pb.ControlPacket.FromString(rng.choice(SEEDS[:3]))
                if rng.random() < 0.3:
                    packet.handshake.pid = os.getpid()
                for _ in range(rng.randint(0, 3)):
                    mutate_message(rng, packet)
                try:
                    worker.link.shake_hands(packet.handshake)
                except (JobError, LaunchError):
                    break
                except BaseException as error:
                    raise AssertionError(f"case {case}: {error!r}") from error
                worker.link.describe()


# ----------------------------------------------------------------------------------- the log


class Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def lines():
    handler, log = Kept(), logging.getLogger("vortex_worker.worker")
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    yield handler.lines
    log.removeHandler(handler)
    log.setLevel(level)
    log.propagate = propagate


HONEST = (
    b'{"time": "2026", "level": "info", "worker_id": "w", "job_id": 7, "event": "job.done", "fields": {"ms": 1.25}}\n'
)


@pytest.mark.parametrize(
    "line",
    [
        b'{"time": ' + b"[" * 60_000,
        b'{"time": ' + b'{"a":' * 10_000,
        b'{"time": 1, "level": "info", "event": "\\u001b[2J\\u0007", "fields": {}}',
        b'{"time": 1, "level": "info", "event": "\\ud800", "fields": "\\u202e"}',
        b'{"time": 1, "level": ["info"], "event": 1, "fields": 2}',
        b'{"time": 1, "level": "info", "event": ' + b"9" * 10_000 + b', "fields": 2}',
        b'{"time": 1, "level": "info", "event": ' + b"[" * 800 + b"]" * 800 + b', "fields": 2}',
        b'{"time": 1}',
        b"\x1b]0;owned\x07 \xff\xfe\0",
    ],
)
def test_a_hostile_line_of_the_log_is_text_like_any_other(lines, line):
    with peer() as worker:
        for piece in (line[i : i + 60_000] for i in range(0, len(line), 60_000)):
            os.write(worker.log, piece)
            worker.link.read_log()
        os.write(worker.log, b"\n" + HONEST)
        while not any("job.done" in text for text in lines):
            assert worker.link.read_log()
    assert all(c.isprintable() for text in lines for c in text)


@pytest.mark.timeout(3600)
def test_any_bytes_in_the_log_are_printable_text(lines):
    with peer() as worker:
        worker.link._lines._burst = 1 << 40  # all of them
        for case, rng in cases("log", 5000):
            text = mutate_bytes(rng, HONEST, (json.dumps({"time": "\x1b\ud800", "level": {}}).encode(),))
            os.write(worker.log, text)
            try:
                worker.link.read_log()
            except BaseException as error:
                raise AssertionError(f"case {case} {text!r}: {error!r}") from error
    assert lines
    assert all(c.isprintable() for text in lines for c in text)


def test_a_flood_in_the_log_is_passed_on_in_part_only(lines):
    """By bytes as by lines: long ones would fill who knows what log in no time."""
    with peer() as worker:
        for _ in range(400):  # 24 MiB
            os.write(worker.log, b"x" * 59_999 + b"\n")
            worker.link.read_log()
        assert worker.link._lines.dropped > 0
    assert sum(map(len, lines)) < 8 << 20


# ------------------------------------------------------------------------------------ results


def mutated_result(rng, worker, input_handle):
    """A result of tensors: in the lease, in the input, close to either, or anywhere."""
    lease, result = worker.lease, pb.JobResult(job_id=1)
    near = (lease.offset, lease.offset + lease.size, input_handle.offset, input_handle.offset + input_handle.nbytes)
    for port in range(rng.randint(1, 4)):
        value = result.outputs[f"port{port}"]
        handle = value.tensor if rng.random() < 0.8 else value.list.items.add().tensor
        handle.dtype, items = rng.randint(1, 17), rng.choice((0, 1, 5, 16, 100))
        handle.shape.append(items)
        handle.offset = lease.offset + 64 * rng.randrange(40)
        if rng.random() < 0.2:
            handle.offset = input_handle.offset + 64 * rng.randrange(3)
        handle.nbytes = items * (torch.empty(0, dtype=DTYPES[handle.dtype]).element_size())
        if rng.random() < 0.1:
            handle.strides.append(number(rng, 0, 40))
        if rng.random() < 0.05:
            value.object.id = rng.randrange(5)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        mutate_message(rng, result, near)
    return result


def receive(result, work, worker):
    """As the supervisor does: through the bytes."""
    message = protocol.read(pb.ControlPacket(job_result=result).SerializeToString())
    return Outputs.receive(message, work, worker.link, worker.memory.arena)


DTYPES = {wire: dtype for dtype, wire in DTYPE_NUMBERS.items()}


def handles(value):
    if isinstance(value, Stored):
        yield value.handle
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from handles(item)


@pytest.mark.timeout(3600)
def test_any_result_is_inside_lease_or_input_and_over_nothing_live_or_refused():
    with peer() as worker:
        lease = worker.lease
        offset, owner = worker.memory.allocate(128)
        given = TensorHandle(offset, 128, 2, (128,))
        work = Work("Fuzz", {"tensor": given}, {}, [(given, owner)])
        kept, accepted = [], 0
        for case, rng in cases("results", 12_000):
            live = [(h.offset, max(h.nbytes, 1)) for outputs in kept for h in outputs_in(outputs, lease)]
            assert lease.live == len(live), case
            result = mutated_result(rng, worker, given)
            try:
                outputs = receive(result, work, worker)
            except JobError:
                outputs = None
            except BaseException as error:
                raise AssertionError(f"case {case}: {error!r}") from error
            if outputs is not None:
                accepted += 1
                for handle in handles(outputs._values):
                    start, end = handle.offset, handle.offset + handle.nbytes
                    assert start % 64 == 0, case
                    if given.offset <= start < given.offset + given.nbytes:
                        assert end <= given.offset + given.nbytes, case
                        continue
                    assert lease.offset <= start, case
                    assert end <= lease.offset + lease.size, case
                    assert all(start >= at + size or start + max(handle.nbytes, 1) <= at for at, size in live), case
                    live.append((start, max(handle.nbytes, 1)))
                if rng.random() < 0.2:
                    look_at(outputs, case)
                kept.append(outputs)
            outputs = None
            while len(kept) > rng.randrange(12):
                kept.pop(rng.randrange(len(kept)))
            lease.collect()
        assert accepted > 1000 or accepted > case // 20
        kept.clear()
        gc.collect()
        lease.collect()
        assert lease.live == 0


def outputs_in(outputs, lease):
    return [h for h in handles(outputs._values) if lease.offset <= h.offset < lease.offset + lease.size + 1]


def look_at(outputs, case):
    """As the job's caller would: tensors of what it says, in readable memory."""
    try:
        loaded = outputs.load()
    except JobError:
        return  # an Arrow handle over what is no Arrow stream
    for value in loaded.values():
        if isinstance(value, torch.Tensor) and 0 < value.numel() < 10_000:
            value.view(-1)[:1].clone() if value.is_contiguous() else value.flatten()[:1].clone()


# ----------------------------------------------------------------- what one frame can cost


def test_a_message_as_large_as_a_frame_takes_no_longer_than_its_bytes():
    """Of the text in an error or a progress report, only what is shown is looked at."""
    text = "\0" * (16 << 20)
    assert len(protocol.printable(text)) < 100_000
    assert len(protocol.printable(text, 100)) < 1000


def test_a_result_of_too_many_tensors_is_refused():
    with peer() as worker:
        result = pb.JobResult(job_id=1)
        items = result.outputs["many"].list.items
        for index in range(20_000):
            items.add().tensor.CopyFrom(pb.TensorHandle(offset=worker.lease.offset + 64 * index, dtype=1, shape=[0]))
        with pytest.raises(ProtocolError, match="the most"):
            receive(result, Work("Fuzz", {}, {}), worker)
        worker.lease.collect()
        assert worker.lease.live == 0


def test_more_releases_than_a_frame_holds_are_sent_in_several():
    """A worker chooses how many objects, and of which numbers, it hands out: and so what is released at once."""
    with peer(max_frame=4096) as worker:
        wanted = [(1 << 64) - 1 - i for i in range(3000)]
        worker.link.dropped_objects.extend(wanted)
        worker.link._released.extend([(1 << 44) - 64] * 500)  # as far as an arena reaches
        read = []

        def drain():
            while len(read) < len(wanted):
                size = int.from_bytes(exactly(worker.socket, 4), "little")
                assert size <= 4096
                packet = pb.ControlPacket.FromString(exactly(worker.socket, size))
                read.extend(packet.release.objects)

        reader = threading.Thread(target=drain)
        reader.start()
        try:
            worker.link.flush_releases()
        finally:
            worker.socket.shutdown(1)
        reader.join(60)
        assert read == wanted


def exactly(sock, size):
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        assert part
        data += part
    return data


def test_before_it_is_ready_a_worker_gets_no_room_for_large_packets():
    """A megabyte of empty messages becomes fifty once it is parsed; handshakes are far smaller than results may be."""
    with peer() as worker:
        body = pb.ControlPacket(handshake=pb.Handshake(phase=3, worker_id="x" * (9 << 20))).SerializeToString()
        sender = threading.Thread(target=send_all, args=(worker.socket, frame(body)))
        sender.start()
        with pytest.raises(ProtocolError, match="handshake"):
            next_packets(worker.link)
        worker.link.socket.close()
        sender.join()


def next_packets(link):
    while not (packets := list(link.receive())):
        pass
    return packets


def send_all(sock, data):
    try:
        sock.sendall(data)
    except OSError:
        pass
