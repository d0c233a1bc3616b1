"""The early sign of a death: a hint that is acted on at once, and can't be abused."""

import os
import signal

import pytest
from conftest import SETTINGS, started, until

import vortex_worker as vw
from vortex_worker._core import deathwatch

pytestmark = pytest.mark.skipif(not deathwatch.supported(), reason="futex_waitv needs Linux 5.16")

NODE = '''
import ctypes
import sys
import time

from vortex_worker.executor import AbstractExecutor, Param, Port


def slot_address(other):
    """Where this worker's slot, or its neighbour's, can be written, found as hostile code would."""
    frame = sys._getframe()
    while "membership" not in frame.f_locals:
        frame = frame.f_back
    arena, index = frame.f_locals["membership"].arena, frame.f_locals["membership"].slot.index
    # The object: reference count, type, methods, then the vw_arena of csrc/arena.h: holders, base, size, head.
    c = ctypes.c_uint64.from_address(id(arena) + 24).value
    holders, base, size, head = (ctypes.c_uint64 * 4).from_address(c)
    assert base == arena.address
    return head + 64 + 64 * (index ^ other)


class Pretend(AbstractExecutor):
    """Writes to its own sign of life, once, and goes on."""

    op_type = "Pretend"
    output_ports = (Port("tries", "INT"),)
    params = (Param("word", "INT"), Param("other", "BOOLEAN", default=False))

    def execute(self, inputs, params):
        word = slot_address(params["other"]) + 52
        ctypes.c_uint32.from_address(word).value = params["word"]
        ctypes.CDLL(None).syscall(ctypes.c_long(202), ctypes.c_void_p(word), 1, 1, None, None, 0)  # FUTEX_WAKE
        time.sleep(0.05)
        return {"tries": 1}
'''


@pytest.fixture
def fabric(tmp_path):
    (tmp_path / "pretend.py").write_text(NODE)
    with vw.Fabric(1, **SETTINGS | {"custom_nodes": (SETTINGS["custom_nodes"], tmp_path)}) as fabric:
        yield fabric.wait_ready(60)


def test_a_worker_holds_its_lock_while_it_lives(fabric):
    (link,) = [link for link in fabric._crew.links() if link.active]
    word = deathwatch.word(link.slot)
    assert word >> 31  # FUTEX_WAITERS: the kernel wakes us
    threads = {int(name) for name in os.listdir(f"/proc/{link.process.pid}/task")}
    assert word & 0x3FFF_FFFF in threads - {link.process.pid}


def test_a_job_is_tried_again_before_the_dead_is_buried(fabric):
    """The sign is enough for that; here it comes from the test, and the kernel has not even begun."""
    (link,) = [link for link in fabric._crew.links() if link.active]
    seen = []
    real = fabric._crew.endings.on_exit
    fabric._crew.endings.on_exit = lambda link: (seen.append("buried"), real(link))
    gate = fabric.tensor([0])
    job = fabric.submit("Gate", {"gate": gate}, retries=1)
    started(job)
    job.add_done_callback(lambda job: seen.append("done"))
    link.process.exiting = lambda: True
    fabric._crew.call(fabric._crew.endings.on_sign_of_death, link)
    gate.fill_(1)
    job.result(60)
    assert job.attempts == 2
    assert link.lost
    until(lambda: len(fabric.workers()) == 1 and "buried" in seen)


@pytest.mark.parametrize("word", [0x4000_0001, 0xC000_0001, 77])
@pytest.mark.parametrize("whose", ["its own", "another's"])
def test_nobody_dies_of_a_lie(fabric, word, whose):
    """A worker can write every slot's word; what counts is whether the kernel ends the process."""
    before = {link.process.pid for link in fabric._crew.links()}
    assert fabric.run("Pretend", params={"word": word, "other": whose != "its own"}) == {"tries": 1}
    for _ in range(20):
        assert fabric.run("Identity", {"tensor": 7}) == {"tensor": 7}
    assert {link.process.pid for link in fabric._crew.links()} == before


def test_a_faked_sign_frees_no_lease(fabric):
    """Only the pidfd does: what a worker that lives can still write to, nobody else gets."""
    leases = {link.process.pid: link.lease for link in fabric._crew.links()}
    assert fabric.run("Pretend", params={"word": 0xC000_0001}) == {"tries": 1}
    assert fabric.run("Identity", {"tensor": 7}) == {"tensor": 7}
    assert {link.process.pid: link.lease for link in fabric._crew.links()} == leases
    assert all(lease.held for lease in leases.values())
    # Taken for dead, as if the kernel had said so too, it still keeps its own until it is.
    (victim,) = [link for link in fabric._crew.links() if link.active]
    held = []
    real = fabric._crew.endings.on_exit
    fabric._crew.endings.on_exit = lambda link: (held.append(link.lease.held), real(link))
    victim.process.exiting = lambda: True
    fabric._crew.call(fabric._crew.endings.on_sign_of_death, victim)
    until(lambda: victim.lost or not victim.alive, "what follows a sign of death")
    until(lambda: not victim.alive, "its burial")
    assert held[0] is True


def test_a_worker_that_hides_its_death_is_found_by_the_pidfd(fabric):
    assert fabric.run("Pretend", params={"word": 0}) == {"tries": 1}
    victim = fabric.workers()[0]["pid"]
    os.kill(victim, signal.SIGKILL)
    assert fabric.run("Identity", {"tensor": 7}, retries=1) == {"tensor": 7}
    until(lambda: victim not in {link.process.pid for link in fabric._crew.links()})


def test_nothing_turns_in_circles_while_the_kernel_buries_the_dead(fabric):
    """The filter's listener hangs up before that, and stays readable."""
    denials = fabric._crew._denials
    heard = []
    real = denials.heard
    denials.heard = lambda link: (heard.append(link), real(link))
    fabric.reload(60)  # so that the readers are ours
    fabric.wait_ready(60)
    victim = fabric.workers()[0]["pid"]
    os.kill(victim, signal.SIGKILL)
    until(lambda: victim not in {link.process.pid for link in fabric._crew.links()})
    assert len(heard) <= 2
