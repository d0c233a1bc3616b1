"""``vortex-worker top`` finds the fabrics of this user by itself, and is not fooled by what workers write."""

import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import until
from rich.console import Console

import vortex_worker as vw
from vortex_worker.cli.top import as_dict, render
from vortex_worker.shm.running import FabricView, look

NODES = Path(__file__).parent / "nodes"
TOP = [sys.executable, "-P", "-m", "vortex_worker", "top", "--once", "--interval", "0.1"]


@pytest.fixture(scope="module")
def fabric():
    with vw.Fabric(workers=2, standby=0, custom_nodes=NODES) as fabric:
        yield fabric.wait_ready()


def ours(fabric, tmp_path):
    """What it tells of ``fabric``: this process may have others."""
    done = subprocess.run([*TOP, "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    pids = {worker["pid"] for worker in fabric.workers()}
    told = [each for each in json.loads(line)["fabrics"] if each["pid"] == os.getpid()]
    (found,) = [each for each in told if pids & {worker["pid"] for worker in each["workers"]}]
    return found


def test_idle_workers(fabric, tmp_path):
    found = ours(fabric, tmp_path)
    assert {w["pid"] for w in found["workers"]} == {w["pid"] for w in fabric.workers()}
    for worker in found["workers"]:
        assert worker["state"] == "idle"
        assert worker["job"] is None
        assert 0 <= worker["heartbeat_age_s"] < 60
        assert worker["memory_bytes"] > 1 << 20
    assert found["command"]
    assert found["arena_bytes"] > 1 << 30


def test_units_are_in_the_header(fabric, tmp_path):
    """Found by a first user, who did not know what acts/s are."""
    wide = os.environ | {"COLUMNS": "200"}
    done = subprocess.run(TOP, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=wide, check=True)
    assert re.search(rf"^pid {os.getpid()} · [\d.]+ jobs per second · ", done.stdout, re.MULTILINE)
    header = next(line for line in done.stdout.splitlines() if "slot" in line)
    assert re.split(r" {2,}", header.strip())[-4:] == ["silent s", "steps/s", "CPU %", "memory MiB"]


def test_a_standby_is_no_idle_worker(tmp_path):
    with vw.Fabric(workers=1, standby=1) as fabric:
        fabric.wait_ready()
        states = {worker["pid"]: worker["state"] for worker in ours(fabric, tmp_path)["workers"]}
        (worker,), (standby,) = fabric.workers(), fabric.standbys()
        assert states == {worker["pid"]: "idle", standby["pid"]: "standby"}
        os.kill(worker["pid"], signal.SIGKILL)
        until(lambda: fabric.workers()[0]["pid"] == standby["pid"], "the standby's turn")
        until(lambda: states_of(fabric, tmp_path).get(standby["pid"]) == "idle", "top to tell")


def states_of(fabric, tmp_path):
    return {worker["pid"]: worker["state"] for worker in ours(fabric, tmp_path)["workers"]}


def test_an_arena_without_workers_is_not_listed():
    nobody = FabricView(pid=1, inode=1, command="closed", arena=1 << 30, time=0.0, workers=[])
    assert as_dict([], [nobody]) == {"fabrics": []}


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_screen_is_whole_at_any_width(fabric, width):
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(render(as_dict([], look())))
    shown = console.export_text()
    assert all(str(worker["pid"]) in shown for worker in fabric.workers())
    assert "…" not in "".join(line for line in shown.splitlines() if "·" not in line)  # a command line may be cut


def test_a_running_job_its_progress_and_the_table_for_people(fabric, tmp_path):
    gate = fabric.tensor([0])
    job = fabric.submit("Gate", {"gate": gate})
    try:
        while job.progress.step < 1:
            assert not job.wait(0.01), job.exception()
        (busy,) = [worker for worker in ours(fabric, tmp_path)["workers"] if worker["state"] == "busy"]
        assert (busy["job"], busy["step"], busy["steps"]) == (job.id, 1, 2)
        assert busy["pid"] in {worker["pid"] for worker in fabric.workers()}
        assert busy["activity_per_s"] > 0
        shown = subprocess.run(TOP, cwd=tmp_path, capture_output=True, text=True, timeout=60).stdout
        assert str(os.getpid()) in shown
        assert "1/2" in shown
    finally:
        gate.fill_(1)
        job.wait()


def test_a_slot_that_names_another_process_is_not_believed(fabric, tmp_path):
    arena = fabric._memory.arena.fd
    at = 64 + 64 * 200  # a slot of nobody's, as a hostile worker could write it
    os.pwrite(arena, struct.pack("<iIQ", 1, 99, 7), at)
    try:
        (liar,) = [worker for worker in ours(fabric, tmp_path)["workers"] if worker["slot"] == 200]
        assert liar["pid"] is None
        assert liar["state"] == "unknown (99)"
        assert liar["memory_bytes"] == 0
        shown = subprocess.run(TOP, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert shown.returncode == 0, shown.stderr
    finally:
        os.pwrite(arena, bytes(64), at)


def test_a_fifo_among_shared_memory_holds_nobody_up(fabric, tmp_path):
    fifo = Path(f"/dev/shm/vortex-test-{os.getpid()}")
    os.mkfifo(fifo)
    try:
        held = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)  # nobody writes: to open it once more would block
        try:
            done = subprocess.run(TOP, cwd=tmp_path, capture_output=True, text=True, timeout=30)
        finally:
            os.close(held)
    finally:
        fifo.unlink()
    assert str(os.getpid()) in done.stdout


def test_looking_leaves_nothing_open(fabric):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        look()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_fabric_that_is_closed_is_gone(tmp_path):
    before = len([found for found in look() if found.pid == os.getpid()])
    fabric = vw.Fabric(workers=1, standby=0)
    assert len([found for found in look() if found.pid == os.getpid()]) == before + 1
    fabric.close()
    assert len([found for found in look() if found.pid == os.getpid()]) == before


@pytest.mark.parametrize(("interval", "told"), [("0", "0.05"), ("nan", "it takes seconds above 0")])
def test_bad_usage_is_status_2(interval, told, tmp_path):
    done = subprocess.run([*TOP, "--interval", interval], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert told in done.stderr


def test_in_a_pipe_it_prints_once_and_ends(tmp_path):
    """Found by a first user: it printed nothing there, for ever."""
    command = [argument for argument in TOP if argument != "--once"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert "pid" in done.stdout or "no fabric of yours" in done.stdout
