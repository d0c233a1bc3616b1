"""Workers and zygotes that die at each step of their lives: no job is lost, delivered twice, or wrong."""

import collections
import contextlib
import logging
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from killer import counts, live_of
from mixture import PATIENT, SETTINGS, Jobs

import vortex_worker as vw

FOLDER = Path(__file__).parent / "steps"
STAGES, MEMBER = "vortex_worker.sandbox.stages:Sandbox", "vortex_worker.membership:Membership"
MAIN, ENGINE, HANDLER = "vortex_worker.main", "vortex_worker.engine:Engine", "vortex_worker.ipc.handler:Handler"
STEPS = {
    "start and the joining handshake": [
        "fork",
        f"before {STAGES}.isolate #1",
        f"after {STAGES}.isolate #1",
        f"after {STAGES}.bootstrap #1",
        f"before {MAIN}:load_builtin #1",
        f"after {MAIN}:load_builtin #1",
        "before vortex_worker.membership:join #1",
        "before vortex_worker.ipc.protocol:decode #1",  # it has said hello, and not heard the answer
        "after vortex_worker.membership:join #1",
    ],
    "lockdown, the locked and the ready handshake": [
        f"before {STAGES}.lock_down #1",
        "before vortex_worker._core.lockdown:canary #1",
        f"after {STAGES}.lock_down #1",
        f"before {MEMBER}.announce_locked #1",
        f"after {MEMBER}.announce_locked #1",
        f"after {STAGES}.seal #1",
        f"before {MAIN}:load_custom #1",
        f"before {MEMBER}.announce_ready #1",
        f"after {MEMBER}.announce_ready #1",
    ],
    "a job, its save, its result and its release": [  # the first of a worker may be its rehearsal
        f"before {ENGINE}.run #3",
        f"before {ENGINE}._save #3",
        f"after {ENGINE}._save #4",
        f"before {HANDLER}._send_result #2",
        f"after {HANDLER}._send_result #2",
        f"before {ENGINE}.release #2",
        f"after {ENGINE}.release #2",
    ],
    "the end": [f"before {MEMBER}.leave #1", f"after {MEMBER}.leave #1"],
    "a fork, of the zygote": ["before fork", "after fork"],
}


class Watcher(logging.Handler):
    """Reads in the log which step a worker has come to, and kills those that stand there."""

    def __init__(self):
        super().__init__()
        self.seen = collections.Counter()

    def emit(self, record):
        found = re.search(r"(falls|stands) at (.*), pid (\d+)", record.getMessage())
        if found:
            how, step, pid = found.groups()
            self.seen[step, how] += 1
            if how == "stands":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def watcher():
    log, watcher = logging.getLogger("vortex_worker.worker"), Watcher()
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(watcher)
    yield watcher
    log.removeHandler(watcher)
    log.setLevel(level)


@pytest.mark.parametrize("step", STEPS)
def test_a_death_at(step, watcher, monkeypatch, tmp_path):
    before = counts()
    file = tmp_path / "forks"
    paths = filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("PYTHON_VORTEX_STEPS", ",".join(STEPS[step]))
    monkeypatch.setenv("PYTHON_VORTEX_STEPS_FILE", str(file))

    def wanted():
        """Steps that no worker has come to yet, in each way."""
        forks = collections.Counter(file.read_text().splitlines()) if file.exists() else {}
        by_fork = {one for one in STEPS[step] if "fork" in one and f"falls at {one}" not in forks}
        others = {(one, how) for one in STEPS[step] if "fork" not in one for how in ("falls", "stands")}
        return by_fork | (others - set(watcher.seen))

    with vw.Fabric(2, standby=1, **SETTINGS) as fabric:
        jobs, choose = Jobs(fabric, None, seed=1), random.Random(1)
        end, number = time.monotonic() + 200, 0
        while wanted() and time.monotonic() < end:
            for _ in range(20):
                number += 1
                jobs.submit(number, choose.choice(["work", "work", "use"]))
            jobs.finish()
            ready = [w["pid"] for w in fabric.workers() if w["stage"] == "ready"]
            if step == "the end":
                fabric.reload(60)
            elif ready:  # so that there are forks
                with contextlib.suppress(ProcessLookupError):
                    os.kill(choose.choice(ready), signal.SIGKILL)
        assert wanted() == set(), f"never came to {wanted()}; {file.read_text()}"
        assert jobs.problems == []
        assert len(jobs.ends) == number
        assert set(jobs.ends.values()) == {1}
        jobs.things.clear()
        assert fabric.run("Work", {"tensor": torch.ones(2)}, {"number": 3}, retries=PATIENT)["number"] == 3
        assert live_of(fabric) == 0
    assert counts() == before
