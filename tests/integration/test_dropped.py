"""A fabric that nobody closed: its jobs end, and then it does, with a word of warning."""

import gc

import pytest
from conftest import SETTINGS, until

import vortex_worker as vw


def test_one_that_is_dropped_ends_with_a_warning():
    held = [fabric := vw.Fabric(1, **SETTINGS).wait_ready(60)]
    pids = [worker["pid"] for worker in fabric.workers() + fabric.standbys()]
    result = fabric.run("Identity", {"tensor": fabric.tensor([1.0, 2.0])})["tensor"]
    del fabric
    with pytest.warns(ResourceWarning, match="a Fabric was not closed"):
        held.clear()
    until(lambda: not any(map(is_there, pids)), "the end of its workers")
    assert result.tolist() == [1.0, 2.0]


def test_jobs_of_one_that_is_dropped_end_first():
    with pytest.warns(ResourceWarning):
        job = vw.Fabric(1, standby=0, **SETTINGS).submit("Identity", {"tensor": 7})
    assert job.result(60) == {"tensor": 7}


def test_one_that_was_closed_is_silent(recwarn):
    with vw.Fabric(1, standby=0, **SETTINGS) as fabric:
        fabric.run("Identity", {"tensor": 7})
    del fabric
    gc.collect()
    assert not [warning for warning in recwarn if warning.category is ResourceWarning]


def is_there(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
