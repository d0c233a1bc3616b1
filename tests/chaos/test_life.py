"""A fabric's life as a state machine: whatever is asked of it in whatever order, each job ends once, and rightly."""

import contextlib
import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from killer import counts, live_of
from mixture import SETTINGS

import vortex_worker as vw
from vortex_worker.errors import Cancelled, WorkerLost

EXAMPLES = int(os.environ.get("VORTEX_LIFE_EXAMPLES", "8"))


class Life(RuleBasedStateMachine):
    """Real workers; the rules are what callers and bad luck may do."""

    fabric = None

    @initialize()
    def begin(self):
        self.jobs = []  # (job, its right result, whether it was cancelled, how often it ended)
        self.gates = []
        self.things = {}

    def note(self, job, expected):
        ends = []
        job.add_done_callback(ends.append)
        self.jobs.append((job, expected, [], ends))

    @rule(number=st.integers(-1000, 1000), retries=st.integers(0, 2), priority=st.integers(-1, 1))
    def work(self, number, retries, priority):
        tensor = torch.arange(8.0)
        job = self.fabric.submit(
            "Work", {"tensor": tensor}, {"number": number}, retries=retries, priority=priority, block=False
        )
        self.note(job, tensor * number)

    @rule(numbers=st.lists(st.integers(-1000, 1000), max_size=30), retries=st.integers(0, 2), held=st.booleans())
    def burst(self, numbers, retries, held):
        """More than there are workers: some of them wait in one, behind another that may be long after all."""
        tensor = torch.arange(8.0)
        calls = [("Work", {"tensor": tensor}, {"number": number}) for number in numbers]
        expected = [tensor * number for number in numbers]
        if held:
            gate = self.fabric.tensor([0.0])
            self.gates.append(gate)
            calls.insert(0, ("Wait", {"gate": gate}))
            expected.insert(0, torch.ones(1))
        for job, right in zip(self.fabric.submit_many(calls, retries=retries), expected, strict=True):
            self.note(job, right)

    @rule(retries=st.integers(0, 2))
    def hold(self, retries):
        """A job that keeps its worker until the gate is opened."""
        gate = self.fabric.tensor([0.0])
        self.gates.append(gate)
        self.note(self.fabric.submit("Wait", {"gate": gate}, retries=retries), torch.ones(1))

    @rule()
    def let_go(self):
        if self.gates:
            self.gates.pop(0).fill_(1.0)

    @rule(number=st.integers(0, 2), retries=st.integers(0, 2))
    def use(self, number, retries):
        """A job at an object's home, which may be gone."""
        if number not in self.things:
            self.open_gates()
            with contextlib.suppress(WorkerLost):
                self.things[number] = self.fabric.run("Make", params={"number": number}, retries=5)["thing"]
        if number in self.things:
            inputs = {"thing": self.things[number], "tensor": torch.ones(4)}
            self.note(self.fabric.submit("Use", inputs, retries=retries), torch.full((1000,), number + 4.0))

    @rule(number=st.integers(0, 2))
    def forget(self, number):
        self.things.pop(number, None)

    @rule(index=st.integers(0, 30))
    def cancel(self, index):
        if self.jobs:
            job, _, cancelled, _ = self.jobs[index % len(self.jobs)]
            cancelled.append(True)
            job.cancel()

    @rule(index=st.integers(0, 2), number=st.sampled_from([signal.SIGKILL, signal.SIGSEGV]))
    def kill(self, index, number):
        workers = self.fabric.workers() + self.fabric.standbys()
        if index < len(workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(workers[index]["pid"], number)

    @rule()
    def reload(self):
        self.open_gates()
        self.fabric.reload(60)

    def open_gates(self):
        for gate in self.gates:
            gate.fill_(1.0)
        self.gates.clear()

    def teardown(self):
        self.open_gates()
        self.check_jobs()
        self.jobs.clear()
        self.things.clear()
        self.fabric.wait_ready(60)
        assert len(self.fabric.workers()) == 2
        assert live_of(self.fabric) == 0

    def check_jobs(self):
        for job, expected, cancelled, ends in self.jobs:
            error = job.exception(60)
            if error is None:
                assert torch.equal(job.result()["tensor"], expected)
            elif isinstance(error, Cancelled):
                assert cancelled
            else:  # ObjectLost only tells of a worker that was lost while it made the object again
                assert isinstance(error, WorkerLost) or "WorkerLost" in str(error), repr(error)
            assert ends == [job]


@pytest.mark.timeout(600)
def test_whatever_happens_in_whatever_order():
    with vw.Fabric(1, **SETTINGS) as fabric:
        fabric.run("Work", {"tensor": torch.ones(4)}, {"number": 1})
    before = counts()
    with vw.Fabric(2, standby=1, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        Life.fabric = fabric
        run_state_machine_as_test(
            Life,
            settings=settings(
                max_examples=EXAMPLES, stateful_step_count=30, deadline=None, print_blob=False,
                suppress_health_check=list(HealthCheck),
            ),
        )  # fmt: skip
        Life.fabric = None
    assert counts() == before
