"""What a supervisor asks of its own process, in processes of their own: limits can't be raised again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vortex_worker.supervisor.process import Channels, WorkerProcess

PROGRAM = """
import resource
from vortex_worker.supervisor.process import reserve_descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
reserve_descriptors({workers})
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


SPIN = "print(flush=True)\nwhile True: pass"


def limit_after(workers, soft, hard):
    """What it prints, or its error."""
    program = PROGRAM.format(workers=workers, soft=soft, hard=hard)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or done.stderr.splitlines()[-1]


def test_the_limit_of_open_files_is_raised_as_far_as_the_workers_need():
    assert 64 + 4 * 256 < int(limit_after(256, 64, 4096)) < 4096
    assert limit_after(2, 4096, 4096) == "4096"


def test_more_workers_than_open_files_are_refused_with_the_number_they_take():
    error = limit_after(256, 64, 512)
    assert "ConfigError" in error
    assert "256 workers take about" in error
    assert "this process may have 512" in error


def test_a_killed_process_that_has_not_run_since_is_taken_for_dead():
    """The caller of its job need not wait until a busy machine lets it die."""
    cpu = {min(os.sched_getaffinity(0))}
    spin = f"""
import os
os.sched_setaffinity(0, {cpu})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
print(flush=True)
while True: pass
"""
    mine = os.sched_getaffinity(0)
    at_once = 0
    for _ in range(20):
        with subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            channels = Channels()
            process = WorkerProcess(child.pid, os.pidfd_open(child.pid), channels)
            try:
                assert not process.exiting()
                os.sched_setaffinity(0, cpu)  # so that it can't run while we do
                process.kill()
                at_once += process.exiting()
            finally:
                os.sched_setaffinity(0, mine)
                child.wait()
                channels.close_its()
                process.close()
                os.close(process.socket_fd)
    assert at_once >= 15


def cpu_of(pid):
    """Where it runs, or ran last: proc(5), stat."""
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[36])


@pytest.fixture
def spinning():
    """A process that computes."""
    with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        channels = Channels()
        process = WorkerProcess(child.pid, os.pidfd_open(child.pid), channels)
        yield process
        process.kill()
        child.wait()
        channels.close_its()
        process.close()
        os.close(process.socket_fd)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_worker_leaves_a_cpu_and_may_come_back(spinning):
    allowed = os.sched_getaffinity(0)
    for _ in range(20):  # the kernel may move it, too
        here = min(allowed)
        os.sched_setaffinity(spinning.pid, {here})
        os.sched_setaffinity(spinning.pid, allowed)
        if spinning.leave(here):
            break
    else:
        pytest.fail("it was never where it had been put")
    assert cpu_of(spinning.pid) != here or not spinning.leave(here)
    assert os.sched_getaffinity(spinning.pid) == allowed


def test_a_worker_that_may_be_nowhere_else_stays(spinning):
    here = max(os.sched_getaffinity(0))
    os.sched_setaffinity(spinning.pid, {here})
    assert not spinning.leave(here)
    assert not spinning.leave(here + 1)
    assert os.sched_getaffinity(spinning.pid) == {here}


def test_a_worker_that_is_gone_is_left_alone(spinning):
    here = cpu_of(spinning.pid)
    spinning.kill()
    while not spinning.exiting():
        pass
    assert not spinning.leave(here + 1)
