"""When a supervisor ends, in whatever way, its processes end by themselves, and those of others go on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import NODES, SETTINGS, pid_of, started, until

import vortex_worker as vw

#: A supervisor of its own: says which processes are its, and is busy until it is ended.
PROGRAM = """
import json, os, sys, time
import vortex_worker as vw
settings, state, end = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
fabric = vw.Fabric(2, standby=1, **settings)

def parent(pid):
    return int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])

def children():
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if parent(name) == os.getpid():
                    found.add(int(name))
            except OSError:
                pass
    return found

if state == "starting":
    while not (pids := children()):
        time.sleep(0.001)
else:
    fabric.wait_ready(60)
    pids = children() | {worker["pid"] for worker in fabric.workers() + fabric.standbys()}
    assert len(pids) == 4
    jobs = [fabric.submit(*job) for job in json.loads(sys.argv[4])]
    while not all(job.progress.total for job in jobs):
        time.sleep(0.001)
    if "orphaned" in state:
        nursery = fabric._crew.nursery
        first = nursery._zygote
        pids.remove(first.pid)
        first.kill()
        while nursery._zygote in (None, first) or not nursery._zygote.ready:
            time.sleep(0.001)
        fabric.scale(3)  # forked by the new one, which knows of the others by then
        fabric.wait_ready(60)
        pids |= {nursery._zygote.pid} | {worker["pid"] for worker in fabric.workers()}
print(json.dumps(sorted(pids)), flush=True)
if end == "raise":
    raise KeyError("as asked")
elif end == "exit":
    sys.exit(0)
time.sleep(3600)
"""
JOBS = {
    "starting": [],
    "idle": [],
    "in a node": [["Sleep", {}, {"seconds": 3600}]] * 2,
    "stuck": [["Stuck"]] * 2,
    "deaf to it": [["Deaf"]] * 2,
    "orphaned and deaf to it": [["Deaf"]] * 2,  # the zygote that forked them had died, and there is another
}


def ended(pid):
    """Whether it has ended; somebody else is to reap it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def opened_below(folder, pid):
    """Files below ``folder`` that a process has mapped or open."""
    try:
        with open(f"/proc/{pid}/maps") as maps:
            found = [line.split()[-1] for line in maps]
        found += [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:  # it is gone, or not dumpable and we are not root
        return []
    return [path for path in found if path.startswith(folder)]


def run(state, end):
    """A supervisor, and the pids of its processes once it is where it should be."""
    settings = SETTINGS | {"custom_nodes": str(NODES)}
    arguments = [json.dumps(settings), state, end, json.dumps(JOBS[state])]
    supervisor = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pids = json.loads(supervisor.stdout.readline())
    # What is never there, nobody has to remove.
    assert [path for pid in (supervisor.pid, *pids) for path in opened_below("/dev/shm", pid)] == []
    return supervisor, pids


@pytest.mark.parametrize("state", JOBS)
def test_a_supervisor_that_is_killed_leaves_no_process_and_no_memory(state):
    supervisor, pids = run(state, "wait")
    with supervisor:
        supervisor.kill()
        supervisor.wait(60)
        until(lambda: all(map(ended, pids)), "the end of all that it had started")


@pytest.mark.parametrize(
    ("end", "status"),
    [("exit", 0), ("raise", 1), (signal.SIGINT, None)],
    ids=str,
)
def test_however_a_supervisor_ends_nothing_is_left(end, status):
    supervisor, pids = run("in a node", end if isinstance(end, str) else "wait")
    with supervisor:
        if not isinstance(end, str):
            supervisor.send_signal(end)
        assert supervisor.wait(60) == status or status is None
        until(lambda: all(map(ended, pids)), "the end of all that it had started")


def test_a_second_supervisor_on_the_machine_is_undisturbed():
    with vw.Fabric(1, standby=1, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        gate = fabric.tensor([0])
        job = started(fabric.submit("Gate", {"gate": gate}, retries=0))
        mine = {worker["pid"] for worker in fabric.workers() + fabric.standbys()}
        supervisor, pids = run("in a node", "wait")
        with supervisor:
            assert mine.isdisjoint(pids)
            supervisor.kill()
            supervisor.wait(60)
            until(lambda: all(map(ended, pids)), "the end of all that the other had started")
        assert pid_of(fabric, job) in mine
        gate.fill_(1)
        assert job.exception(60) is None
        assert fabric.run("Identity", {"tensor": 7}, retries=0) == {"tensor": 7}
        assert {worker["pid"] for worker in fabric.workers() + fabric.standbys()} == mine
