"""Jobs of every kind, each with the result or the error it must have: for the chaos tests and the soak."""

import collections
import random
import re
from pathlib import Path

import torch

from vortex_worker.errors import Cancelled, ExecutionError, JobError, ObjectLost, OOMSoft, SandboxViolation, WorkerLost

SETTINGS = {
    "custom_nodes": Path(__file__).parent / "nodes", "threads": 1, "lease_size": 32 << 20, "client_size": 64 << 20,
    "grace": 0.3, "heartbeat_ms": 20, "heartbeat_timeout": 1.0, "memory_limit": 4 << 30,
}  # fmt: skip
PATIENT = 1_000_000  # retries of a job that must succeed, whatever happens to its workers


class Jobs:
    """Submits jobs of every kind, and holds each to its right result or its right error."""

    KINDS = ("work", "use", "segv", "socket", "mine", "raise", "oom", "cancel")
    WEIGHTS = (900, 60, 2, 2, 2, 20, 4, 10)

    def __init__(self, fabric, killer, seed):
        self.fabric = fabric
        self.killer = killer
        self.random = random.Random(seed)
        self.kinds = collections.Counter()
        self.errors = collections.Counter()
        self.ends = collections.Counter()  # how often each job ended, by id
        self.problems = []
        self.mines = []  # jobs that leave a denied call behind
        self.waiting = collections.deque()
        self.things = {}

    def submit(self, number, kind=None):
        """One job, of any kind, and a check of the oldest once 48 wait."""
        kind = kind or self.random.choices(self.KINDS, self.WEIGHTS)[0]
        self.kinds[kind] += 1
        job, expected = getattr(self, "submit_" + kind, self.submit_poison)(kind, number)
        job.add_done_callback(lambda job: self.ends.update([job.id]))
        self.waiting.append((job, kind, expected))
        while len(self.waiting) > 48:
            self.check(*self.waiting.popleft())

    def submit_work(self, kind, number):
        tensor = torch.arange(64.0) + number
        return self.fabric.submit("Work", {"tensor": tensor}, {"number": number}, retries=PATIENT), tensor * number

    def submit_timed(self, number):
        """One more, to be checked at once."""
        job, expected = self.submit_work("work", number)
        return job, "work", expected

    def submit_cancel(self, kind, number):
        job, expected = self.submit_work(kind, number)
        job.cancel()
        return job, expected

    def submit_use(self, kind, number):
        which, tensor = self.random.randrange(4), torch.arange(64.0) + number
        while which not in self.things:
            try:
                made = self.fabric.run("Make", params={"number": which}, retries=PATIENT)
            except JobError as error:
                self.judge(error, "make", error.details.get("worker"))
            else:
                self.things[which] = made["thing"]
        job = self.fabric.submit("Use", {"thing": self.things[which], "tensor": tensor}, retries=PATIENT)
        return job, torch.full((1000,), float(which)) + tensor.sum()

    def submit_mine(self, kind, number):
        # Where it lies must be known. A job that may be run again is given ahead, too, and may be taken back from a
        # worker that had begun it after all: then it would lie in two.
        job = self.fabric.submit("Mine", params={"seconds": self.random.uniform(0.0, 0.05)}, retries=0)
        self.mines.append(job)
        return job, None

    def submit_oom(self, kind, number):
        return self.fabric.submit("Hog", retries=PATIENT), OOMSoft

    def submit_poison(self, kind, number):
        # One that is killed from outside before it gets so far is lost like any other.
        expected = {"raise": ExecutionError, "socket": (SandboxViolation, WorkerLost), "segv": WorkerLost}[kind]
        retries = PATIENT if kind == "raise" else 3
        return self.fabric.submit("Poison", params={"how": kind}, retries=retries), expected

    def check(self, job, kind, expected):
        error = job.exception(600)
        if self.killer:
            self.killer.ended += 1
        if error is not None:
            self.errors[error.code] += 1
        if kind in ("segv", "socket", "raise", "oom"):
            if not isinstance(error, expected):
                self.judge(error, kind, job.worker)
        elif error is not None:
            right = {"cancel": Cancelled, "mine": WorkerLost}.get(kind, ())
            if not isinstance(error, right):
                self.judge(error, kind, job.worker)
        elif isinstance(expected, torch.Tensor) and not torch.equal(job.result()["tensor"], expected):
            self.problems.append(f"{kind}: a wrong result")

    def judge(self, error, kind, worker):
        """An innocent job's error: right only where the same process held something that wasn't."""
        mined = {job.worker for job in self.mines}
        said = str(error)
        short = isinstance(error, OOMSoft) or "MemoryError" in said or "can't start new thread" in said
        if isinstance(error, ObjectLost):  # says why it could not be made again, and where
            worker = next(iter(re.findall(r"worker (w[\d.]+)", said)), worker)
            if "SandboxViolation" in said and worker in mined:
                return
            if ("OOMSoft" in said or short) and self.killer and self.killer.starved:
                return
        if isinstance(error, SandboxViolation) and worker in mined:
            return
        if short and self.killer and worker in self.killer.starved:
            return
        self.problems.append(f"{kind}: {error!r} in {worker}")

    def finish(self):
        while self.waiting:
            self.check(*self.waiting.popleft())
