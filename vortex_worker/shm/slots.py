"""Slots for people: names for numbers, ages for times.

::

    slot i at 64 + 64·i:
    0 pid i32 · 4 status u32 · 8 job_id u64 · 16 heartbeat u64 · 24 activity u64
    32 step u32 · 36 total u32 · 40 fault_address u64 · 48 fault_signal u32 · 52 zero u32 · 56 fault_time u64
"""

from __future__ import annotations

import os
import signal
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

from vortex_worker.shm.header import HEADER_SIZE, SLOT_COUNT, SLOT_SIZE, read_header

if TYPE_CHECKING:
    from vortex_worker._core.slots import SlotSnapshot

ROLES = HEADER_SIZE + SLOT_COUNT * SLOT_SIZE  # a byte for each slot behind them: what the supervisor has it for
TAKES_JOBS, STANDS_BY = 0, 1  # 0 too where a supervisor writes none
STATUS_NAMES = ("free", "idle", "busy", "starting", "draining", "dead")

_FIELDS = struct.Struct("<iIQQQIIQI4xQ")


class SlotView(NamedTuple):
    """One slot at one moment. Times are CLOCK_MONOTONIC ns; a worker can have written anything."""

    slot: int  # its number
    pid: int
    status: int
    job_id: int
    heartbeat: int
    activity: int
    step: int
    total: int
    fault_address: int
    fault_signal: int
    fault_time: int

    @classmethod
    def of(cls, slot: int, snapshot: SlotSnapshot) -> SlotView:
        """From ``Slot.snapshot()``."""
        return cls(slot, *snapshot)

    @classmethod
    def unpack(cls, slot: int, data: bytes) -> SlotView:
        """From the slot's 64 bytes."""
        return cls(slot, *_FIELDS.unpack_from(data))

    @property
    def status_name(self) -> str:
        return STATUS_NAMES[self.status] if self.status < len(STATUS_NAMES) else f"unknown ({self.status})"

    @property
    def progress(self) -> float | None:
        """0 to 1; None when the job has reported nothing."""
        return min(self.step / self.total, 1.0) if self.total else None

    def silence(self, now: int | None = None) -> float | None:
        """Seconds since the last heartbeat; None before the first."""
        if not self.heartbeat:
            return None
        return max(0, (time.monotonic_ns() if now is None else now) - self.heartbeat) / 1e9

    @property
    def fault(self) -> str:
        """What the worker died of inside the arena, in words; "" if it did not."""
        if not self.fault_address:
            return ""
        try:
            name = signal.Signals(self.fault_signal).name
        except ValueError:
            name = f"signal {self.fault_signal}"
        return f"{name} at arena offset {self.fault_address - 1}"


def read_slots(fd: int) -> list[SlotView]:
    """All slots of the arena behind a descriptor. Fields are read whole, a slot is not."""
    data = os.pread(fd, SLOT_COUNT * SLOT_SIZE, HEADER_SIZE)
    count = len(data) // SLOT_SIZE
    return [SlotView.unpack(i, data[i * SLOT_SIZE : (i + 1) * SLOT_SIZE]) for i in range(count)]


def write_role(fd: int, slot: int, role: int) -> None:
    """The supervisor's word of a slot, for whoever looks at the arena from outside."""
    os.pwrite(fd, bytes([role]), ROLES + slot)


def read_roles(fd: int) -> bytes:
    """Each slot's role, for people: workers can write them, too. None where the arena's data begins earlier."""
    offset, _ = read_header(fd).data(os.fstat(fd).st_size)
    return os.pread(fd, SLOT_COUNT, ROLES) if offset >= ROLES + SLOT_COUNT else b""
