"""A hostile worker: whatever is asked of it, it writes to the control socket, the log and shared memory by itself.

Each way takes a seed and does the same again for it. Where that was not enough to have it killed, it goes on like an
honest worker, with a result that may be one too many: a worker that is silent for good is what deadlines are for.
"""

from __future__ import annotations

import ctypes
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from vortex_worker._core.handle import TensorHandle
from vortex_worker.executor import AbstractExecutor, Param, Port
from vortex_worker.ipc import control_pb2 as pb

from .mutation import mutate_bytes, mutate_message
from .packets import all_kinds

_libc = ctypes.CDLL(None, use_errno=True)


class Honest(AbstractExecutor):
    """A tensor that only this input and this number give, in so many steps of 50 ms."""

    op_type = "Honest"
    input_ports = (Port("tensor", "TENSOR"),)
    output_ports = (Port("tensor", "TENSOR"), Port("number", "INT"))
    params = (Param("number", "INT"), Param("steps", "INT", default=0))

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        self.context.progress(0, params["steps"] + 1)
        for step in range(params["steps"]):
            time.sleep(0.05)
            self.context.progress(step + 1, params["steps"] + 1)
        return {"tensor": inputs["tensor"] * params["number"] + 1, "number": params["number"]}


class Speak(AbstractExecutor):
    """Does one of ``WAYS``, by a seed."""

    op_type = "Speak"
    input_ports = (Port("tensor", "TENSOR"),)
    output_ports = (Port("tensor", "*"),)
    params = (Param("how", "STRING"), Param("seed", "STRING"), Param("number", "INT", default=0))

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        worker = Worker(self.context.job_id, random.Random(params["seed"]), params["number"])
        WAYS[params["how"]](worker)
        return {"tensor": inputs["tensor"]}


class Worker:
    """What hostile code finds in its own process: socket, lease, header and slots, its job and that job's input."""

    def __init__(self, job_id: int, rng: random.Random, number: int) -> None:
        self.job_id, self.rng, self.number = job_id, rng, number
        handler = _above("handler.py", "_socket").f_locals["self"]
        self.socket: int = handler._socket.fileno()
        engine = _above("engine.py", "_tensors")
        arena = engine.f_locals["self"]._tensors._arena
        self.lease: tuple[int, int] = (arena.lease_offset, arena.lease_size)
        self.lease_address: int = arena.lease_address
        self.middle = self.lease[1] // 2  # of the lease: at its beginning are results of honest jobs that it ran before
        self.input: TensorHandle = engine.f_locals["submit"].inputs["tensor"]
        self.head = next(head for head in _pointers(arena) if head not in (0, arena.address))

    def send(self, raw: bytes) -> None:
        """All of it, however long that takes."""
        at = 0
        while at < len(raw):
            sent = _libc.send(self.socket, raw[at:], len(raw) - at, 0)
            if sent < 0:
                raise OSError(ctypes.get_errno(), "send")
            at += sent

    def packet(self, **body: Any) -> None:
        self.send(frame(pb.ControlPacket(seq=1, **body).SerializeToString()))

    def result(self, **fields: Any) -> bytes:
        """The frame of a result: one tensor where no honest job's lies, but for ``fields``."""
        handle = {"offset": self.lease[0] + self.middle, "nbytes": 64, "dtype": pb.F32, "shape": [16]} | fields
        outputs = {"tensor": pb.Value(tensor=pb.TensorHandle(**handle))}
        packet = pb.ControlPacket(seq=9, job_result=pb.JobResult(job_id=self.job_id, outputs=outputs))
        return frame(packet.SerializeToString())


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "little") + body


def wait() -> None:
    """For the end, which is to come from outside."""
    time.sleep(0.5)


# ------------------------------------------------------------------------------------- the socket


def mutated_packets(worker: Worker) -> None:
    """Packets of every kind, changed; some of its own job, so that they get further."""
    rng = worker.rng
    seeds = [packet.SerializeToString() for packet in all_kinds()]
    for _ in range(50):
        packet = rng.choice(all_kinds())
        kind = packet.WhichOneof("body")
        if kind in ("job_result", "job_progress"):
            getattr(packet, kind).job_id = worker.job_id
        for _ in range(rng.randint(0, 4)):
            mutate_message(rng, packet, (*worker.lease, worker.input.offset))
        body = packet.SerializeToString()
        worker.send(frame(mutate_bytes(rng, body, tuple(seeds)) if rng.random() < 0.3 else body))
    wait()


def random_bytes(worker: Worker) -> None:
    """Noise, or a stream of frames with noise in it."""
    rng = worker.rng
    stream = b"".join(frame(packet.SerializeToString()) for packet in all_kinds()[3:8])
    for _ in range(4):
        worker.send(rng.randbytes(rng.randint(1, 3000)) if rng.random() < 0.5 else mutate_bytes(rng, stream, (stream,)))
    wait()


def ends_inside_a_frame(worker: Worker) -> None:
    """A good result, of which ``number`` bytes are sent; then the process ends."""
    worker.send(worker.result()[: worker.number])
    _libc._exit(0)


def a_byte_at_a_time(worker: Worker) -> None:
    """A good result, slowly. Then it goes on as an honest worker would: its own result is one too many."""
    for byte in worker.result():
        worker.send(bytes([byte]))
        time.sleep(0.002)


def progress_without_end(worker: Worker) -> None:
    """Progress reports as fast as they can be written, in large pieces; then it is done."""
    report = pb.JobProgress(job_id=worker.job_id, step=1, total=2, message="\x1b[2J" * worker.rng.randint(0, 20))
    piece = frame(pb.ControlPacket(job_progress=report).SerializeToString()) * 500
    for _ in range(worker.number // 500):
        worker.send(piece)


def previews_without_end(worker: Worker) -> None:
    """Previews of one place after the other, and not a look at what comes back."""
    places = min(worker.lease[1] // 64, 1 << 14)
    for start in range(0, worker.number, 500):
        piece = b""
        for index in range(start, start + 500):
            at = worker.lease[0] + 64 * (index % places)
            handle = pb.TensorHandle(offset=at, nbytes=64, dtype=pb.U8, shape=[64])
            report = pb.JobProgress(job_id=worker.job_id, step=1, total=2, preview=handle)
            piece += frame(pb.ControlPacket(job_progress=report).SerializeToString())
        worker.send(piece)
    wait()


def large_frames(worker: Worker) -> None:
    """Frames as large as they may be, of the cheapest content there is; or the beginning of one that is larger."""
    most = 16 << 20
    inner = {
        0: lambda size: b"\x3a\x00" * (size // 2),  # Handshake.plugin_errors, each empty
        1: lambda size: b"\x12\x00" * (size // 2),  # JobResult.outputs, likewise
        2: lambda size: b"\x22" + _varint(size - 8) + b"\0" * (size - 8),  # a message of zeros
    }
    kind = worker.rng.randrange(4)
    if kind == 3:
        worker.send((most + 1).to_bytes(4, "little") + b"\0" * 100_000)
    else:
        content = inner[kind](most - 64)
        if kind:
            content = b"\x08" + _varint(worker.job_id) + content
        tag = {0: b"\x12", 1: b"\x32", 2: b"\x2a"}[kind]
        worker.send(frame(tag + _varint(len(content)) + content))
    wait()


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def results_of_other_jobs(worker: Worker) -> None:
    """Results and progress of jobs that other workers run, or ran, or will."""
    job = max(1, worker.job_id + worker.rng.choice((-2, -1, 1, 2, 3, 1000)))
    if worker.rng.random() < 0.7:
        worker.packet(job_result=pb.JobResult(job_id=job, outputs={"tensor": pb.Value(int64=666)}))
    else:
        worker.packet(job_progress=pb.JobProgress(job_id=job, step=1, total=2))
    wait()


def one_result_too_many(worker: Worker) -> None:
    """Its result, twice or more: the second comes when it has no job, or has the next one, of another number."""
    for _ in range(worker.rng.randint(1, 4)):
        worker.send(worker.result(offset=worker.lease[0] + worker.middle + 64 * worker.rng.randrange(100)))


def what_workers_never_send(worker: Worker) -> None:
    """Handshakes once more, and what only a supervisor says: jobs, releases, of its own memory and of others'."""
    packets = [
        packet for packet in all_kinds() if packet.WhichOneof("body") not in ("job_result", "job_progress", "pong")
    ]
    worker.send(frame(worker.rng.choice(packets).SerializeToString()))
    wait()


# ------------------------------------------------------------------------------------------ memory


def lying_handles(worker: Worker) -> None:
    """Results whose tensors lie outside, across, over each other, in other leases, or where numbers end."""
    rng = worker.rng
    (start, size), given = worker.lease, worker.input
    result = pb.JobResult(job_id=worker.job_id)
    for port in range(rng.randint(1, 4)):
        lie = rng.randrange(8)
        offset, nbytes, shape, strides = start + 64 * rng.randrange(100), 64, [16], []
        if lie == 0:
            offset = rng.choice((start - 64, start + size, start + size - 32, start + rng.choice((1, 4, 63))))
        elif lie == 1:
            offset, nbytes = rng.choice(((start + size - 64, 128), ((1 << 64) - 64, 128), (0, 64), (64, 64)))
        elif lie == 2:
            offset = start + rng.choice((-1, 1)) * size * rng.randint(1, 3)  # a lease of somebody else
        elif lie == 3:
            offset, nbytes, shape = given.offset, given.nbytes + 64, [given.nbytes // 4 + 16]
        elif lie == 4:
            shape = rng.choice(([1 << 32, 1 << 32, 16], [0, 1 << 62, 4], [(1 << 64) - 1], [17], [16] * 40))
        elif lie == 5:
            shape, strides = [4, 4], rng.choice(([1 << 40, 1], [-4, 1], [4], [0, 0], [(1 << 63) - 1] * 2))
        elif lie == 6:
            offset = start  # as often as it is drawn: over itself
        handle = result.outputs[f"port{port}"].tensor
        handle.offset, handle.nbytes, handle.dtype = offset, nbytes, rng.choice((12, 12, 12, 0, 99))
        handle.shape.extend(shape)
        handle.strides.extend(strides)
        handle.encoding = rng.choice((0, 0, 0, 0, 1, 7))
    worker.packet(job_result=result)
    wait()


def lies_before_the_truth(worker: Worker) -> None:
    """A result in somebody else's lease, and right after it, while it is being killed for that, a good one."""
    worker.send(worker.result(offset=worker.lease[0] + worker.lease[1]))
    time.sleep(worker.rng.random() * 0.001)
    worker.send(worker.result())
    wait()


def scribble(worker: Worker) -> None:
    """Writes over header, all slots and its own lease without a pause, before, while and after it hands out a result
    that lies there; then goes on to its own result, one too many.

    In the middle of the lease: results of honest jobs that this worker ran before it can change as long as they are
    held. That is so (docs/sandbox.md), and would only be taken for wrong answers here.
    """
    stop = threading.Event()

    def write() -> None:
        rng = random.Random(worker.number)
        noise = rng.randbytes(64 + 256 * 64)
        while not stop.is_set():
            ctypes.memmove(worker.head, noise, len(noise))
            ctypes.memmove(worker.lease_address + worker.middle, noise, 4096)
            ctypes.memset(worker.head, 0xFF if rng.random() < 0.5 else 0, len(noise))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(worker.rng.random() * 0.3)
    fields: dict[str, Any] = {"nbytes": 4096, "shape": [1024]}
    if worker.rng.random() < 0.5:
        fields |= {"shape": [], "dtype": 0, "encoding": 1}  # as an Arrow stream, which is being rewritten
    worker.send(worker.result(**fields))
    time.sleep(worker.rng.random() * 0.5)
    stop.set()
    for thread in threads:
        thread.join()


def stop_the_clocks(worker: Worker) -> None:
    """Keeps every word of every slot at what it was, so that nobody seems to get anywhere."""
    size = 256 * 64
    still = ctypes.string_at(worker.head + 64, size)
    end = time.monotonic() + worker.number / 1000
    while time.monotonic() < end:
        for _ in range(100):
            ctypes.memmove(worker.head + 64, still, size)
        worker.packet(job_progress=pb.JobProgress(job_id=worker.job_id, step=1, total=2))


# --------------------------------------------------------------------------------------------- log


def log_without_end(worker: Worker) -> None:
    """Megabytes to its log: lines long and short, endless ones, lookalikes of our own. Then it is done."""
    rng = worker.rng
    lines = [
        b"\n" * 60_000,
        b"x" * 65_000,
        b'{"time": ' + b"[" * 60_000 + b"\n",
        b'{"time": 1, "level": "error", "event": "\\u001b]0;owned\\u0007", "fields": {}}\n' * 100,
        rng.randbytes(60_000),
    ]
    for _ in range(worker.number):
        line = rng.choice(lines)
        _libc.write(2, line, len(line))


WAYS: dict[str, Callable[[Worker], None]] = {
    way.__name__: way
    for way in (
        mutated_packets, random_bytes, ends_inside_a_frame, a_byte_at_a_time, progress_without_end,
        previews_without_end, large_frames, results_of_other_jobs, one_result_too_many, what_workers_never_send,
        lying_handles, lies_before_the_truth, scribble, stop_the_clocks, log_without_end,
    )
}  # fmt: skip


def _above(file: str, attribute: str) -> Any:
    """The first frame above whose ``self``, of a module of that name, has the attribute."""
    found: Any = sys._getframe(1)
    while found is not None:
        if found.f_code.co_filename.endswith(file) and hasattr(found.f_locals.get("self"), attribute):
            return found
        found = found.f_back
    raise LookupError(attribute)


def _pointers(arena: Any) -> list[int]:
    """Where the arena's object has header and slots mapped read-write: it leads to a struct that begins with a
    count, the address of the whole, its size, and theirs.
    """
    words = (ctypes.c_uint64 * 8).from_address(id(arena))[2:]
    heap = [word for word in words if word > 1 << 30 and word % 16 == 0]
    structs = [(ctypes.c_uint64 * 4).from_address(word)[:] for word in heap]
    return [head for _, base, _, head in structs if base == arena.address]
