"""Ctrl-C, at any moment of any call: nothing is left behind, nothing is lost, and the fabric goes on."""

import subprocess
import sys

import pytest
from conftest import SETTINGS

START = """
import gc, os, random, signal, subprocess, sys, threading, time
import vortex_worker as vw

def interrupt(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
dice = random.Random(1)

def soon(longest):
    signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-5, longest))

def not_any_more():
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        pass
"""

OPENING = """
def counts():
    gc.collect()
    children = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "comm="], capture_output=True, text=True).stdout
    children = [name for name in children.split() if name != "ps"]
    return children, threading.active_count(), len(os.listdir("/proc/self/fd"))

vw.Fabric(1, threads=1).close()
before, interrupted = counts(), 0
for number in range(40):
    fabric = None
    try:
        soon(0.003 if number % 2 else 0.02)
        fabric = vw.Fabric(1, threads=1)
        not_any_more()
    except KeyboardInterrupt:
        interrupted += 1
    finally:
        not_any_more()
        if fabric:
            fabric.close()
assert interrupted
end = time.monotonic() + 60
while counts() != before and time.monotonic() < end:  # a thread that was not seen to start ends by itself
    time.sleep(0.02)
assert counts() == before, (counts(), before)
"""

WORKING = """
def identities(number, **options):
    return fabric.submit_many([("Identity", {"tensor": value}) for value in range(number)], **options)

def submit_without_end():
    while True:
        fabric.submit("Identity", {"tensor": 1})

def submit_many_without_end():
    while True:
        identities(50)

def run_without_end():
    while True:
        fabric.run("Identity", {"tensor": 1})

def cancel_without_end():
    while True:
        fabric.submit("Identity", {"tensor": 1}).cancel()

def be_late_without_end():
    while True:
        identities(20, deadline=1e-4)[-1].exception()

with vw.Fabric(1, standby=1, custom_nodes=sys.argv[1], threads=1, lease_size=64 << 20, client_size=64 << 20) as fabric:
    fabric.wait_ready(60)
    ways = submit_without_end, submit_many_without_end, run_without_end, cancel_without_end, be_late_without_end
    for number in range(int(sys.argv[2])):
        try:
            soon(0.004)
            ways[number % len(ways)]()
        except KeyboardInterrupt:
            pass
        assert fabric.submit("Identity", {"tensor": number}).result(60)["tensor"] == number
    fabric.drain(60)
"""

STEP_BY_STEP = """
class Interrupt:
    # Ctrl-C is noticed where a call begins, and where one of C has returned: raise at the n-th of these.

    def __init__(self, number):
        self.left = number

    def __call__(self, frame, event, arg):
        self.left -= event in ("call", "c_return")
        if self.left == 0:
            sys.setprofile(None)
            raise KeyboardInterrupt

def submit_and_wait():
    fabric.submit("Identity", {"tensor": 1}).result()

def run():
    fabric.run("Identity", {"tensor": 1})

def cancel():
    job = fabric.submit("Identity", {"tensor": 1})
    job.cancel()
    job.exception()

def submit_many_and_wait():
    fabric.submit_many([("Identity", {"tensor": value}) for value in range(3)])[-1].result()

def wait_impatiently():
    job = fabric.submit("Nap", params={"seconds": 0.002})
    try:
        job.result(1e-4)
    except TimeoutError:
        job.result(60)

def wait_beside_others():
    interrupt = sys.getprofile()
    sys.setprofile(None)
    fabric.submit("Nap", params={"seconds": 0.006})
    job = fabric.submit("Nap", params={"seconds": 0.0})
    others.append(threading.Thread(target=lambda: (time.sleep(0.003), job.exception())))
    others[-1].start()
    sys.setprofile(interrupt)
    job.result()

jobs, others = [], []
with vw.Fabric(1, standby=1, custom_nodes=sys.argv[1], threads=1, lease_size=64 << 20, client_size=64 << 20) as fabric:
    fabric.observe(jobs.append)
    for way in submit_and_wait, run, cancel, submit_many_and_wait, wait_impatiently, wait_beside_others:
        step, interrupted = 0, True
        while interrupted:
            fabric.wait_ready(60)
            step += 1
            sys.setprofile(Interrupt(step))
            try:
                way()
                interrupted = False
            except KeyboardInterrupt:
                pass
            finally:
                sys.setprofile(None)
            jobs.append(fabric.submit("Identity", {"tensor": step}))
            lost = [job for job in jobs if not job.wait(20)]
            while others:
                others[-1].join(20)
                lost += [other for other in [others.pop()] if other.is_alive()]
            if lost:
                print(way, step, lost, file=sys.stderr, flush=True)
                os._exit(1)
            assert jobs[-1].result()["tensor"] == step
            jobs.clear()
        assert step > 5
    fabric.drain(60)
"""


@pytest.mark.parametrize("program", [OPENING, WORKING, STEP_BY_STEP], ids=["opening", "working", "step by step"])
def test_ctrl_c_at_any_moment(program):
    command = [sys.executable, "-P", "-c", START + program, str(SETTINGS["custom_nodes"]), "600"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
