"""What each worker makes in advance: it is there at once, in every worker, and after a death too."""

import os
import signal

import pytest
import torch
from conftest import SETTINGS, pid_of, started, until

import vortex_worker as vw
from vortex_worker.errors import ConfigError, LaunchError

BOX = ("MakeBox", {"value": 3.0})


def jobs_of(fabric, pid):
    return next(w["jobs_done"] for w in fabric.workers() + fabric.standbys() if w["pid"] == pid)


def test_it_is_there_in_every_worker_and_is_not_made_again_after_a_death():
    with vw.Fabric(2, preload=[BOX], **SETTINGS) as fabric:
        fabric.wait_ready(60)
        everyone = fabric.workers() + fabric.standbys()
        assert [worker["jobs_done"] for worker in everyone] == [1, 1, 1]
        job = fabric.submit(*BOX[:1], params=BOX[1])
        box = job.result(60)["box"]
        assert job.attempts == 0  # nobody had to run it
        assert [worker["jobs_done"] for worker in fabric.workers() + fabric.standbys()] == [1, 1, 1]

        gate = fabric.tensor([0])
        busy = started(fabric.submit("Gate", {"gate": gate}, retries=0))
        opened = fabric.submit("OpenBox", {"box": box})
        assert opened.result(60)["value"].item() == 3.0
        first = opened.worker
        gate.fill_(1)
        busy.result(60)
        for _ in range(20):  # it is nowhere at home: whoever is free takes it
            opened = fabric.submit("OpenBox", {"box": box})
            gate.fill_(0)
            assert opened.result(60)["value"].item() == 3.0
        standby = fabric.standbys()[0]["pid"]
        for worker in fabric.workers():
            os.kill(worker["pid"], signal.SIGKILL)
        opened = fabric.submit("OpenBox", {"box": box}, retries=3)
        assert opened.result(60)["value"].item() == 3.0
        assert opened.worker != first
        assert jobs_of(fabric, standby) == 2  # what it made in advance, and this
        fabric.wait_ready(60)
        assert fabric.run("OpenBox", {"box": box})["value"].item() == 3.0


def test_other_params_are_another_job_and_dropping_a_reference_drops_nothing():
    with vw.Fabric(1, standby=0, preload=[BOX], **SETTINGS) as fabric:
        fabric.wait_ready(60)
        other = fabric.submit("MakeBox", params={"value": 4.0})
        assert fabric.run("OpenBox", {"box": other.result(60)["box"]})["value"].item() == 4.0
        assert other.attempts == 1
        for _ in range(3):
            box = fabric.run(*BOX[:1], params=BOX[1])["box"]
            del box
            fabric.run("Identity", {"tensor": 1})  # with it, the worker is told what is dropped
        assert fabric.run("OpenBox", {"box": fabric.run("MakeBox", params={"value": 3.0})["box"]})["value"] == 3.0


def test_one_that_can_not_be_made_is_told_at_once():
    with (
        vw.Fabric(1, preload=[("MakeBocks", {})], **SETTINGS) as fabric,
        pytest.raises(LaunchError, match=r"preload MakeBocks failed: WK-003.*MakeBox"),
    ):
        fabric.wait_ready(60)


def test_one_that_kills_its_workers_is_told_and_not_tried_for_ever():
    with (
        vw.Fabric(1, standby=0, preload=[("Die", {"how": "segv"})], **SETTINGS) as fabric,
        pytest.raises(LaunchError, match="SIGSEGV"),
    ):
        fabric.wait_ready(60)


@pytest.mark.parametrize(
    ("preload", "told"),
    [
        (["MakeBox"], "not 'MakeBox'"),
        ([("MakeBox", {"value": torch.ones(2)})], "not a Tensor"),
        ([("MakeBox",)], r"not \('MakeBox',\)"),
        (7, "not 'int' object is not iterable"),
    ],
)
def test_what_is_no_list_of_jobs_is_refused(preload, told):
    with pytest.raises(ConfigError, match=f"preload takes pairs of an op type and its params as plain data, {told}"):
        vw.Fabric(1, preload=preload)


def test_a_reload_makes_it_anew():
    with vw.Fabric(1, standby=0, preload=[BOX], **SETTINGS) as fabric:
        box = fabric.run(*BOX[:1], params=BOX[1])["box"]
        gate = fabric.tensor([0])
        busy = started(fabric.submit("Gate", {"gate": gate}))
        pid = pid_of(fabric, busy)
        with pytest.raises(TimeoutError):
            fabric.reload(0.05)
        gate.fill_(1)
        busy.result(60)
        until(lambda: any(worker["pid"] != pid for worker in fabric.workers()), "another worker")
        fabric.wait_ready(60)
        assert fabric.run("OpenBox", {"box": box})["value"].item() == 3.0
