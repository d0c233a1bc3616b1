"""The zygote and the standbys: workers in milliseconds, and nothing of theirs in anyone's way."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SETTINGS, gone, pid_of, started, until

import vortex_worker as vw
from vortex_worker.errors import ConfigError, LaunchError, SandboxViolation
from vortex_worker.supervisor.nursery import Nursery


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def zygote_of(fabric):
    return parent_of(fabric.workers()[0]["pid"])


@pytest.fixture
def own():
    with vw.Fabric(1, standby=1, **SETTINGS) as fabric:
        yield fabric.wait_ready(60)


def test_workers_and_standbys_are_forked_from_one_process_of_one_thread(own):
    pids = [worker["pid"] for worker in own.workers() + own.standbys()]
    zygote = zygote_of(own)
    assert {parent_of(pid) for pid in pids} == {zygote}
    assert parent_of(zygote) == os.getpid()
    assert len(os.listdir(f"/proc/{zygote}/task")) == 1
    assert Path(f"/proc/{zygote}/comm").read_text() == "vw-zygote\n"


def test_the_zygote_holds_no_secret_of_ours(monkeypatch):
    monkeypatch.setenv("SECRET_OF_OURS", "swordfish")
    with vw.Fabric(1, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        assert b"swordfish" not in Path(f"/proc/{zygote_of(fabric)}/environ").read_bytes()


def test_a_standby_is_locked_down_and_is_given_no_job_until_it_is_needed(own):
    (standby,) = own.standbys()
    assert standby["stage"] == "standby"
    assert standby["sandbox"]["enforced"]
    for number in range(20):
        job = own.submit("Identity", {"tensor": number})
        job.result(60)
        assert job.worker == own.workers()[0]["id"]


def test_the_standby_takes_over_and_another_follows(own):
    first, second = own.workers()[0], own.standbys()[0]
    gate = own.tensor([0])
    job = started(own.submit("Gate", {"gate": gate}))
    os.kill(first["pid"], signal.SIGKILL)
    until(lambda: job.attempts == 2, "the second attempt")
    assert job.worker == second["id"]
    gate.fill_(1)
    job.result(60)
    own.wait_ready(60)
    assert own.workers()[0]["id"] == second["id"]
    assert own.standbys()[0]["id"] not in (first["id"], second["id"])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_the_zygotes_death_disturbs_no_worker_and_another_is_built(own, how):
    gate = own.tensor([0])
    job = started(own.submit("Gate", {"gate": gate}))
    old, worker = zygote_of(own), pid_of(own, job)
    os.kill(old, how)
    until(lambda: gone(old), "the end of the zygote")
    gate.fill_(1)
    assert job.result(60)["pid"] == worker
    assert job.attempts == 1
    os.kill(worker, signal.SIGKILL)  # an orphan, which init reaps: its end is noticed all the same
    for _ in range(3):
        own.wait_ready(60)
        os.kill(own.workers()[0]["pid"], signal.SIGKILL)
    assert own.run("Identity", {"tensor": 3}, retries=3) == {"tensor": 3}
    own.wait_ready(60)
    assert zygote_of(own) != old


def test_a_stopped_zygote_is_replaced(own):
    old = zygote_of(own)
    os.kill(old, signal.SIGSTOP)
    os.kill(own.workers()[0]["pid"], signal.SIGKILL)
    assert own.run("Identity", {"tensor": 3}, retries=3) == {"tensor": 3}
    until(lambda: gone(old), "the end of the stopped zygote")
    own.wait_ready(60)
    assert own.run("Identity", {"tensor": 4}) == {"tensor": 4}


def test_how_a_worker_ended_is_told_through_the_zygote(own):
    with pytest.raises(SandboxViolation):
        own.run("Die", params={"how": "socket"})


def test_closing_with_a_dead_or_stopped_zygote_leaves_nothing():
    for how in (signal.SIGKILL, signal.SIGSTOP):
        with vw.Fabric(2, standby=1, **SETTINGS) as fabric:
            fabric.wait_ready(60)
            zygote = zygote_of(fabric)
            pids = [worker["pid"] for worker in fabric.workers() + fabric.standbys()]
            os.kill(zygote, how)
        until(lambda pids=[*pids, zygote]: all(map(gone, pids)), "the end of all")


def test_workers_of_one_zygote_draw_different_numbers():
    with vw.Fabric(2, standby=0, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        gate = fabric.tensor([0])
        held = [started(fabric.submit("Draw", {"gate": gate})) for _ in range(2)]
        gate.fill_(1)
        first, second = (job.result(60) for job in held)
        assert first["pid"] != second["pid"]
        assert first["torch"] != second["torch"]
        assert first["numpy"] != second["numpy"]
        assert first["python"] != second["python"]


def test_a_forked_worker_has_a_thread_pool_of_its_own():
    with vw.Fabric(2, **(SETTINGS | {"threads": 2})) as fabric:
        fabric.wait_ready(60)
        jobs = [fabric.submit("Multiply", params={"size": 1200}) for _ in range(4)]
        assert all(torch.all(job.result(120)["tensor"] == 1200) for job in jobs)


def test_without_a_zygote_workers_start_from_scratch():
    with vw.Fabric(1, standby=0, zygote=False, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        assert parent_of(fabric.workers()[0]["pid"]) == os.getpid()
        assert fabric.run("Identity", {"tensor": 1}) == {"tensor": 1}


def test_the_zygote_refuses_to_work_with_a_second_thread(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        done = subprocess.run(
            [os.sys.executable, "-m", "vortex_worker.zygote"],
            env=os.environ | {"VORTEX_ZYGOTE_FD": str(theirs.fileno()), "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},  # noqa: E501
            pass_fds=[theirs.fileno()], capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 5
    assert "threads" in done.stderr


def test_a_forked_worker_is_locked_down_as_one_that_was_executed():
    def seen(zygote):
        with vw.Fabric(1, standby=0, zygote=zygote, **SETTINGS) as fabric:
            fabric.wait_ready(60)
            (worker,) = fabric.workers()
            pid = worker["pid"]
            kinds = sorted(os.readlink(f"/proc/{pid}/fd/{fd}").split(":")[0] for fd in os.listdir(f"/proc/{pid}/fd"))
            status = Path(f"/proc/{pid}/status").read_text()
            limits = Path(f"/proc/{pid}/limits").read_text()
            names = ("Seccomp", "Seccomp_filters", "NoNewPrivs", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
            locks = [line for line in status.splitlines() if line.split(":")[0] in names]
            return kinds, worker["sandbox"], locks, limits, os.getsid(pid) == pid

    assert seen(zygote=True) == seen(zygote=False)


def test_a_zygote_that_can_not_start_is_told_with_what_it_wrote(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise RuntimeError('no numbers today')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with vw.Fabric(4, **SETTINGS) as fabric:
        job = fabric.submit("Identity", {"tensor": 1})
        with pytest.raises(LaunchError, match="no numbers today"):
            job.result(60)
        with pytest.raises(LaunchError, match="no numbers today"):
            fabric.wait_ready(60)


@pytest.mark.parametrize("settings", [{}, {"policy": "strict"}, {"wxorx": True}], ids=str)
def test_a_forked_worker_has_the_filter_that_a_started_one_has(settings):
    """The supervisor compiles them for a zygote, which imports meanwhile."""
    found = set()
    for zygote in (True, False):
        with vw.Fabric(1, standby=0, threads=1, zygote=zygote, **settings) as fabric:
            fabric.wait_ready(60)
            (worker,) = fabric.workers()
            found.add(worker["sandbox"]["filter_sha256"])
    assert len(found) == 1
    assert found != {""}


def test_more_folders_than_can_be_passed_on_are_refused(tmp_path):
    """A zygote that is asked for a worker in more bytes than it reads would end, and the next one too."""
    folders = [tmp_path / f"{'x' * 200}{number}" for number in range(600)]
    for folder in folders:
        folder.mkdir()
    with pytest.raises(ConfigError, match=r"custom_nodes and models, and what leads to them, take \d+ bytes"):
        vw.Fabric(1, **SETTINGS | {"custom_nodes": folders})
    with vw.Fabric(1, standby=0, **SETTINGS | {"custom_nodes": folders[:200]}) as fabric:
        fabric.wait_ready(60)


def test_filters_that_are_too_long_to_pass_on_are_compiled_by_the_zygote(tmp_path):
    rules = "".join(
        f'[[more.prctl]]\nreason = "none"\neq = [{{ index = 0, value = {5000 + n} }}, {{ index = 1, value = {n} }}]\n'
        for n in range(380)
    )
    policy = tmp_path / "long.toml"
    policy.write_text(f'extends = "execute"\n{rules}[default]\naction = "kill_process"\nreason = "none"\n')
    with vw.Fabric(1, standby=0, policy=policy, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        assert fabric.workers()[0]["sandbox"]["enforced"]


def test_a_zygote_that_dies_of_every_order_is_not_started_for_ever(tmp_path, monkeypatch):
    """It is ready each time."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\ndef fork(): raise RuntimeError('no forks today')\nos.fork = fork"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with vw.Fabric(1, **SETTINGS) as fabric, pytest.raises(LaunchError, match="no forks today"):
        fabric.wait_ready(60)


def test_many_workers_are_asked_for_a_few_at_a_time(monkeypatch):
    """Each request has descriptors in flight, of which a user may have few; and is to be answered within seconds."""
    held = []
    send = Nursery._send

    def count(self, number):
        held.append(len(self._sent))
        send(self, number)

    monkeypatch.setattr(Nursery, "_send", count)
    with vw.Fabric(20, standby=0, **SETTINGS) as fabric:
        fabric.wait_ready(120)
        assert len(fabric.workers()) == 20
    assert len(held) >= 20
    assert max(held) <= 8


@pytest.mark.skipif("VORTEX_TEST_WORKERS" not in os.environ, reason="takes 5 GiB: VORTEX_TEST_WORKERS=256")
def test_as_many_workers_as_there_are_slots():
    workers = int(os.environ["VORTEX_TEST_WORKERS"])
    with vw.Fabric(workers, standby=0, threads=1, lease_size=4 << 20, client_size=4 << 20) as fabric:
        fabric.wait_ready(300)
        jobs = [fabric.submit("Identity", {"tensor": number}) for number in range(4 * workers)]
        assert [job.result(120)["tensor"] for job in jobs] == list(range(4 * workers))


def test_a_zygote_whose_supervisor_has_died_already_imports_nothing(tmp_path):
    """The kernel's word comes only to who asked for it while the parent lived."""
    (tmp_path / "numpy.py").write_text("raise RuntimeError('it went on')")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    with theirs:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "vortex_worker.zygote"],
            env=os.environ | {"VORTEX_ZYGOTE_FD": str(theirs.fileno()), "PYTHONPATH": str(tmp_path)},
            pass_fds=[theirs.fileno()], capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
