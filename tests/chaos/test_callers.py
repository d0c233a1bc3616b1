"""Threads of one program, each with another way to wait, to give up waiting, or to cancel, while workers are killed.

``VORTEX_CHAOS_CALLS`` (60) for each thread, and ``VORTEX_CHAOS_SEED`` (1), make it longer, or another one.
"""

import asyncio
import collections
import contextlib
import faulthandler
import os
import random
import threading
import time

import pytest
import torch
from killer import Killer, counts_of
from mixture import PATIENT, SETTINGS

import vortex_worker as vw
from vortex_worker.errors import Cancelled, DeadlineExceeded

CALLS = int(os.environ.get("VORTEX_CHAOS_CALLS", "60"))
SEED = int(os.environ.get("VORTEX_CHAOS_SEED", "1"))
ENOUGH = 120.0 + CALLS  # s, after which whatever has not ended never will


class Caller(threading.Thread):
    """Calls in every way, and holds each job to its right result and to one end."""

    WAYS = ("do_run", "impatient", "many", "cancelled", "beside", "late", "watched", "awaited")

    def __init__(self, fabric, number, killer):
        super().__init__(daemon=True)
        self.fabric, self.killer, self.random = fabric, killer, random.Random(f"{SEED} {number}")
        self.now, self.problems, self.ends, self.made = "", [], collections.Counter(), 0

    def run(self):
        for _ in range(CALLS):
            self.now = self.random.choice(self.WAYS)
            try:
                getattr(self, self.now)()
            except BaseException as error:
                self.problems.append(f"{self.now}: {error!r}")
        self.now = ""

    def call(self):
        """What to call, and the only right answer."""
        number = self.random.randrange(1000)
        return ("Work", {"tensor": torch.arange(4.0)}, {"number": number}), number

    def check(self, result, number):
        if result["number"] != number or not torch.equal(result["tensor"], torch.arange(4.0) * number):
            self.problems.append(f"{self.now}: {result} for {number}")
        self.killer.ended += 1

    def submit(self, **options):
        call, number = self.call()
        job = self.fabric.submit(*call, retries=PATIENT, **options)
        self.count(job)
        return job, number

    def count(self, job):
        self.made += 1
        job.add_done_callback(lambda job: self.ends.update([job.id]))

    def pause(self):
        time.sleep(self.random.choice((0.0, 1e-4, 1e-3)))

    def may_fail(self, job, number, kind):
        error = job.exception(ENOUGH)
        if error is None:
            self.check(job.result(), number)
        elif not isinstance(error, kind):
            self.problems.append(f"{self.now}: {error!r}")

    def do_run(self):
        call, number = self.call()
        self.check(self.fabric.run(*call, retries=PATIENT), number)

    def impatient(self):
        job, number = self.submit()
        while not job.done():
            with contextlib.suppress(TimeoutError):
                job.result(self.random.choice((0.0, 1e-6, 1e-4, 1e-3)))
        self.check(job.result(0), number)

    def many(self):
        calls, numbers = zip(*(self.call() for _ in range(self.random.randint(1, 40))), strict=True)
        jobs = self.fabric.submit_many(calls, retries=PATIENT)
        for job in jobs:
            self.count(job)
        pairs = list(zip(jobs, numbers, strict=True))
        self.random.shuffle(pairs)
        for job, number in pairs:
            self.check(job.result(ENOUGH), number)

    def cancelled(self):
        jobs = [self.submit() for _ in range(self.random.randint(1, 5))]
        self.pause()
        for job, _ in jobs[:: self.random.choice((1, 2))]:
            job.cancel()
            job.cancel()
        for job, number in jobs:
            self.may_fail(job, number, Cancelled)

    def beside(self):
        """Two wait for one job, and one of them cancels it."""
        job, number = self.submit()
        other = threading.Thread(target=job.wait, daemon=True)
        other.start()
        self.pause()
        if self.random.random() < 0.5:
            job.cancel()
        self.may_fail(job, number, Cancelled)
        other.join(ENOUGH)
        if other.is_alive():
            self.problems.append(f"the other waits for {job} for ever")

    def late(self):
        job, number = self.submit(deadline=self.random.choice((1e-6, 1e-3, 5e-3)))
        if self.random.random() < 0.5:
            job.cancel()
        self.may_fail(job, number, (DeadlineExceeded, Cancelled))

    def watched(self):
        job, number = self.submit()
        job.on_progress(lambda job: self.pause())
        self.check(job.result(ENOUGH), number)

    def awaited(self):
        async def both():
            (call, number), (other, _) = self.call(), self.call()
            given_up = asyncio.create_task(self.fabric.arun(*other, retries=PATIENT))
            await asyncio.sleep(0)
            kept = asyncio.create_task(self.fabric.arun(*call, retries=PATIENT))
            await asyncio.sleep(self.random.choice((0.0, 1e-3)))
            given_up.cancel()
            await asyncio.wait([given_up], timeout=ENOUGH)
            self.check(await asyncio.wait_for(kept, ENOUGH), number)

        asyncio.run(both())


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workers", [1, 3])
def test_however_they_wait_each_job_ends_once_with_its_right_result(workers):
    with vw.Fabric(workers, standby=1, queue=64, **SETTINGS) as fabric:
        fabric.wait_ready(120)
        fabric.run("Work", {"tensor": torch.ones(2)}, {"number": 3})
        before = counts_of(fabric)
        killer = Killer(fabric, SEED, every=25, zygotes=0.0, starve=0.0)
        killer.SIGNALS = (9,)
        callers = [Caller(fabric, number, killer) for number in range(6)]
        for thread in (killer, *callers):
            thread.start()
        end = time.monotonic() + ENOUGH
        for caller in callers:
            caller.join(max(0.0, end - time.monotonic()))
        killer.stop.set()
        killer.join()
        stuck = [caller.now for caller in callers if caller.is_alive()]
        if stuck:
            faulthandler.dump_traceback(all_threads=True)
        print(dict(killer.sent), sum(caller.made for caller in callers))
        assert not stuck
        assert [problem for caller in callers for problem in caller.problems] == []
        assert killer.sent
        fabric.drain(60)
        for caller in callers:
            assert len(caller.ends) == caller.made
            assert set(caller.ends.values()) == {1}
        fabric.wait_ready(60)
        assert counts_of(fabric) == before
