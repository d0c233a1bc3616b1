"""One worker of a fabric is a fuzzer, the others are honest: their answers are right, and nothing is left behind.

``VORTEX_FUZZ_CASES`` and ``VORTEX_FUZZ_SEED`` as elsewhere: most cases here cost a worker its life.
"""

import contextlib
import ctypes
import gc
import os
import random
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
from cases import SEED, cases
from fuzzer.speaker import frame

import vortex_worker as vw
from vortex_worker.errors import InvalidHandle, JobError
from vortex_worker.ipc import control_pb2 as pb

SETTINGS = {
    "custom_nodes": Path(__file__).parent / "nodes", "threads": 1, "lease_size": 8 << 20, "client_size": 32 << 20,
    "grace": 0.3,
}  # fmt: skip
PATIENT = 1000  # retries of an honest job: now and then it meets a worker that is about to be killed
GROWTH = 64 << 20  # bytes of private memory that the supervisor may have more at the end


def resident():
    """Bytes of private memory."""
    ctypes.CDLL(None).malloc_trim(0)  # what is free already is nobody's
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise LookupError("RssAnon")


def counts():
    gc.collect()
    lines = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "comm="], capture_output=True, text=True).stdout
    return {
        "children": [name for name in lines.split() if name != "ps"],
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "arenas": Path("/proc/self/maps").read_text().count("vortex-arena"),
        "shm": [name for name in os.listdir("/dev/shm") if "vortex" in name],
    }


@pytest.fixture(scope="module")
def fabric():
    """What it takes while it is attacked, it gives back at its end."""
    with vw.Fabric(1, **SETTINGS) as first:  # what is loaded once stays: that is no leak
        first.run("Honest", {"tensor": torch.ones(4)}, {"number": 1})
    del first
    before, memory = counts(), resident()
    with vw.Fabric(3, standby=1, **SETTINGS) as fabric:
        yield fabric.wait_ready(120)
        gc.collect()
        end = time.monotonic() + 60
        while time.monotonic() < end and any(links_busy(fabric)):
            time.sleep(0.05)
        assert fabric._memory.client_live == 0
    del fabric
    assert counts() == before
    assert resident() - memory < GROWTH


def links_busy(fabric):
    """Whatever is still held of anything that jobs left."""
    for lease in fabric._memory._leases:
        lease.collect()
        yield lease.live
    yield fabric._memory.client_live


class Clients(threading.Thread):
    """Honest jobs, one after the other, as long as it is let."""

    def __init__(self, fabric):
        super().__init__()
        self.fabric, self.stop = fabric, threading.Event()
        self.done, self.slowest, self.problems = 0, 0.0, []
        self.rng = random.Random(SEED)

    def run(self):
        while not self.stop.is_set() and len(self.problems) < 5:
            number, start = self.rng.randrange(1 << 20), time.monotonic()
            tensor = torch.arange(float(self.rng.choice((1, 16, 5000))))
            try:
                out = self.fabric.submit("Honest", {"tensor": tensor}, {"number": number}, retries=PATIENT).result(120)
                if out["number"] != number or not torch.equal(out["tensor"], tensor * number + 1):
                    self.problems.append(f"a wrong answer: {out}")
            except BaseException as error:
                self.problems.append(repr(error))
            self.done += 1
            self.slowest = max(self.slowest, time.monotonic() - start)


@pytest.fixture
def clients(fabric):
    """They ask while the test runs, and got right answers, some of them after it."""
    clients = Clients(fabric)
    clients.start()
    yield clients
    before = clients.done
    end = time.monotonic() + 120
    while clients.done < before + 5 and clients.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    clients.stop.set()
    clients.join(150)
    print(f"{clients.done} honest jobs, the slowest {clients.slowest:.2f} s")
    assert not clients.is_alive(), "an honest job hangs"
    assert not clients.problems, clients.problems
    assert clients.done >= before + 5


def attack(fabric, how, seed, number=0, deadline=3, retries=0):
    """One job of the fuzzer's: its result, or its error."""
    job = fabric.submit(
        "Speak",
        {"tensor": torch.zeros(16)},
        {"how": how, "seed": str(seed), "number": number},
        retries=retries,
        deadline=deadline,
    )
    error = job.exception(120)
    if error is not None:
        assert isinstance(error, JobError)
        assert error.__traceback__ is None  # it would keep what the worker sent for as long as the error
        assert all(c.isprintable() or c in "\n\t" for c in str(error))
        return error
    try:
        result = job.result()
    except InvalidHandle as error:  # an Arrow handle over what is no Arrow stream: found when it is read
        return error
    for value in result.values():
        if isinstance(value, torch.Tensor) and value.is_contiguous():
            value.clone()
    return result


#: How often each is done in an ordinary run.
WAYS = {
    "mutated_packets": 40, "random_bytes": 10, "large_frames": 5, "results_of_other_jobs": 12,
    "one_result_too_many": 12, "what_workers_never_send": 15, "lying_handles": 40, "scribble": 8, "a_byte_at_a_time": 2,
}  # fmt: skip


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", WAYS)
def test_whatever_a_worker_does_others_answer_right(fabric, clients, how):
    for number, _ in cases(how, WAYS[how]):
        attack(fabric, how, f"{SEED} {number}", number)


def test_who_has_lied_is_not_believed_any_more(fabric, clients):
    for number in range(12):
        # Another try where the first meets a worker that an earlier test had send what is only read now.
        assert isinstance(attack(fabric, "lies_before_the_truth", number, retries=1), InvalidHandle)


def test_nor_by_the_next_who_reads_while_the_fabric_is_busy(fabric, clients):
    """Who ends a liar is the fabric's thread; whoever waits for the job may read on before that comes to it."""
    for number in range(3):
        how = {"how": "lies_before_the_truth", "seed": str(number), "number": 0}
        job = fabric.submit("Speak", {"tensor": torch.zeros(16)}, how, deadline=10)
        fabric._crew.call(time.sleep, 0.3)
        while not job.done():
            with contextlib.suppress(TimeoutError):
                job.exception(0.02)
        assert isinstance(job.exception(), InvalidHandle)


@pytest.mark.timeout(3600)
def test_an_end_at_every_byte_of_a_result(fabric, clients):
    handle = pb.TensorHandle(offset=1 << 23, nbytes=64, dtype=pb.F32, shape=[16])
    result = pb.JobResult(job_id=1 << 20, outputs={"tensor": pb.Value(tensor=handle)})
    size = len(frame(pb.ControlPacket(seq=9, job_result=result).SerializeToString()))
    # Tried twice: the first time it may be sent to the worker that has just ended after a whole one.
    ended = [attack(fabric, "ends_inside_a_frame", SEED, cut, retries=1) for cut in range(size + 1)]
    whole = [cut for cut, result in enumerate(ended) if isinstance(result, dict)]
    # Its job's number may take a byte or two less than ours. Only a whole frame counts, and it does.
    assert whole
    assert whole == list(range(whole[0], size + 1))
    assert whole[0] > size - 5


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("how", "number"), [("progress_without_end", 150_000), ("previews_without_end", 80_000), ("log_without_end", 200)]
)
def test_a_flood_is_bounded(fabric, clients, how, number):
    memory = resident()
    attack(fabric, how, SEED, number, deadline=60)
    gc.collect()
    assert resident() - memory < GROWTH


def test_a_worker_that_gets_somewhere_is_not_taken_for_stuck():
    """Its activity counter lies where others can write. What it says on its own socket, they can't unsay."""
    with vw.Fabric(2, stall_timeout=0.6, **SETTINGS) as fabric:
        fabric.wait_ready(120)
        tensor = torch.ones(4)
        params = {"how": "stop_the_clocks", "seed": "1", "number": 3000}
        hostile = fabric.submit("Speak", {"tensor": tensor}, params, retries=0)
        while not hostile.progress.total:
            time.sleep(0.01)
        honest = fabric.submit("Honest", {"tensor": tensor}, {"number": 2, "steps": 40}, retries=0)
        assert honest.result(120)["number"] == 2
        hostile.exception(120)
