"""Slots: the layout as other languages see it, what each call writes, and readers in other processes."""

import os
import signal
import struct
import subprocess
import sys
import time

import pytest

from vortex_worker._core import slots
from vortex_worker._core.arena import Arena
from vortex_worker._core.slots import Slot, SlotSnapshot, monotonic_ns
from vortex_worker.errors import ConfigError
from vortex_worker.shm import header as shm_header
from vortex_worker.shm import slots as shm_slots
from vortex_worker.shm.header import ShmHeader, read_header
from vortex_worker.shm.slots import SlotView, read_slots

SIZE = 4 << 20

# (offset, struct code, field), as the design has it: what a supervisor in another language is written from.
SLOT_LAYOUT = [
    (0, "<i", "pid"),
    (4, "<I", "status"),
    (8, "<Q", "job_id"),
    (16, "<Q", "heartbeat"),
    (24, "<Q", "activity"),
    (32, "<I", "step"),
    (36, "<I", "total"),
    (40, "<Q", "fault_address"),
    (48, "<I", "fault_signal"),
    (56, "<Q", "fault_time"),
]
HEADER_LAYOUT = [
    (0, "<Q", "magic"),
    (8, "<I", "version"),
    (12, "<I", "flags"),
    (16, "<Q", "clock_tick"),
    (24, "<Q", "data_offset"),
    (32, "<Q", "data_size"),
    (40, "<I", "slot_count"),
]


@pytest.fixture
def arena():
    arena = Arena.create(SIZE)
    yield arena
    arena.close()


class TestLayout:
    @pytest.mark.parametrize("index", [0, 1, 255])
    @pytest.mark.parametrize(("offset", "code", "field"), SLOT_LAYOUT)
    def test_a_field_of_a_slot(self, arena, index, offset, code, field):
        value = 2 ** (8 * struct.calcsize(code) - 1) - 3  # the largest but two of the signed type
        os.pwrite(arena.fd, struct.pack(code, value), 64 + 64 * index + offset)
        snapshot = Slot(arena, index).snapshot()
        assert snapshot._asdict() == dict.fromkeys(SlotSnapshot._fields, 0) | {field: value}
        views = read_slots(arena.fd)
        assert views[index] == SlotView.of(index, snapshot)
        assert sum(any(view[1:]) for view in views) == 1

    def test_the_header(self, arena):
        raw = os.pread(arena.fd, 64, 0)
        header = read_header(arena.fd)
        assert raw[:8] == b"VORTEXW1"
        for offset, code, field in HEADER_LAYOUT:
            assert getattr(header, field) == struct.unpack_from(code, raw, offset)[0]
        assert header.version == 1
        assert header.slot_count == slots.SLOT_COUNT == shm_header.SLOT_COUNT == 256
        assert header.data(arena.size) == (header.data_offset, header.data_size) == (2 << 20, SIZE - (2 << 20))
        assert raw[44:] == bytes(20)

    def test_a_header_of_the_first_layout(self):
        header = ShmHeader.unpack(struct.pack("<8sI52x", b"VORTEXW1", 1))
        assert header.data(SIZE) == (2 << 20, SIZE - (2 << 20))

    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            (b"", "64 bytes, not 0"),
            (bytes(64), "not an arena"),
            (struct.pack("<8sI52x", b"VORTEXW1", 2), "version 2"),
        ],
    )
    def test_what_is_no_header(self, raw, message):
        with pytest.raises(ConfigError, match=message):
            ShmHeader.unpack(raw)

    def test_status_numbers_and_names(self):
        numbers = [slots.FREE, slots.IDLE, slots.BUSY, slots.STARTING, slots.DRAINING, slots.DEAD]
        assert numbers == [0, 1, 2, 3, 4, 5]
        assert [SlotView(0, 0, n, *[0] * 8).status_name for n in numbers] == list(shm_slots.STATUS_NAMES)
        assert SlotView(0, 0, 2**32 - 1, *[0] * 8).status_name == "unknown (4294967295)"


class TestSlot:
    def test_a_workers_life(self, arena):
        slot = Slot(arena, 7)
        assert slot.snapshot() == SlotSnapshot(*[0] * 10)
        before = monotonic_ns()
        slot.register(1234)
        assert (slot.pid, slot.status, slot.job_id, slot.activity) == (1234, slots.STARTING, 0, 0)
        assert before <= slot.heartbeat <= monotonic_ns()
        slot.set_status(slots.IDLE)
        slot.begin(2**64 - 1)
        slot.progress(3, 20)
        assert (slot.status, slot.job_id, slot.activity) == (slots.BUSY, 2**64 - 1, 2)
        assert (slot.step, slot.total) == (3, 20)
        slot.end()
        assert (slot.status, slot.job_id) == (slots.IDLE, 2**64 - 1)
        slot.begin(1)
        assert (slot.step, slot.total, slot.activity) == (0, 0, 3)
        slot.clear()
        assert slot.snapshot() == SlotSnapshot(*[0] * 10)

    def test_registering_wipes_what_a_predecessor_left(self, arena):
        os.pwrite(arena.fd, b"\xa5" * 64, 64)
        slot = Slot(arena, 0)
        slot.register(1)
        assert slot.snapshot()._replace(heartbeat=0) == SlotSnapshot(1, slots.STARTING, *[0] * 8)

    def test_hostile_words_are_only_numbers(self, arena):
        os.pwrite(arena.fd, b"\xff" * 64, 64)
        found = Slot(arena, 0).snapshot()
        assert found == SlotSnapshot(-1, 2**32 - 1, *[2**64 - 1] * 3, *[2**32 - 1] * 2, 2**64 - 1, 2**32 - 1, 2**64 - 1)
        view = SlotView.of(0, found)
        assert view.progress == 1.0
        assert view.silence() == 0
        assert view.fault == f"signal {2**32 - 1} at arena offset {2**64 - 2}"

    @pytest.mark.parametrize("index", [-1, 256, 2**40])
    def test_no_such_slot(self, arena, index):
        with pytest.raises(IndexError, match="there are 256"):
            Slot(arena, index)

    def test_values_that_do_not_fit(self, arena):
        slot = Slot(arena, 0)
        with pytest.raises(ValueError, match="status 6"):
            slot.set_status(6)
        for call in (lambda: slot.begin(-1), lambda: slot.begin(2**64), lambda: slot.progress(2**32, 1)):
            with pytest.raises(OverflowError):
                call()
        assert slot.snapshot() == SlotSnapshot(*[0] * 10)

    def test_a_closed_arena(self):
        arena = Arena.create(SIZE)
        slot = Slot(arena, 3)
        arena.close()
        assert repr(slot) == "Slot(3)"
        for use in (slot.snapshot, slot.end, slot.clear, lambda: slot.register(1), lambda: slot.status):
            with pytest.raises(ValueError, match="closed"):
                use()
        with pytest.raises(ValueError, match="closed"):
            Slot(arena, 0)

    def test_the_clock(self):
        assert abs(monotonic_ns() - time.monotonic_ns()) < 1e9


class TestView:
    def test_ages_and_progress(self):
        view = SlotView(0, 1, 2, 9, 5_000_000_000, 4, 5, 20, 0, 0, 0)
        assert view.silence(now=7_500_000_000) == 2.5
        assert view.progress == 0.25
        assert view.fault == ""
        view = SlotView(0, *[0] * 10)
        assert view.silence() is view.progress is None

    def test_a_fault(self):
        view = SlotView(0, 1, 2, 9, 1, 1, 0, 0, 4097, signal.SIGSEGV, 1)
        assert view.fault == "SIGSEGV at arena offset 4096"


def test_another_process_writes_while_this_one_reads(arena):
    script = """
import os, sys
from vortex_worker._core.arena import Arena
from vortex_worker._core.slots import Slot
fd = int(sys.argv[1])
slot = Slot(Arena.attach(fd, os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)), 200)
slot.register(os.getpid())
for job in range(1, 100_001):
    slot.begin(job)
    slot.progress(job % 1000, 1000)
    slot.end()
slot.set_status(5)
"""
    slot = Slot(arena, 200)
    with subprocess.Popen([sys.executable, "-c", script, str(arena.fd)], pass_fds=[arena.fd]) as child:
        before = slot.snapshot()
        while before.status != slots.DEAD:
            now = slot.snapshot()
            assert before.job_id <= now.job_id <= 100_000
            assert before.activity <= now.activity <= 200_000
            assert now.total in (0, 1000)
            assert now.status != slots.BUSY or now.job_id > 0
            assert child.poll() in (None, 0)
            before = now
        assert child.wait(30) == 0
        assert before.pid == child.pid
    assert slot.job_id == 100_000
    assert slot.activity == 200_000
