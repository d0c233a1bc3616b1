"""The fabrics that run on this machine, found and read from outside.

An arena has no name. Whoever may look into a process (the same user, or root) finds its descriptor in
``/proc/<pid>/fd``, opens that read-only, and reads header and slots. The fabric takes no part, notices nothing, and
pays nothing. What is read was written by workers, who may lie: a pid counts only if the process
descends from the one that owns the arena, and the memory and the time it takes are the kernel's word.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

from vortex_worker.errors import ConfigError
from vortex_worker.shm.slots import STANDS_BY, STATUS_NAMES, SlotView, read_roles, read_slots

_NAMES = ("/memfd:vortex-arena", "/dev/shm/")  # a Fabric's; one of another supervisor, if its header says so
_FREE = STATUS_NAMES.index("free")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_GENERATIONS = 4  # from a worker to the arena's owner: a zygote in between, and room


class WorkerView(NamedTuple):
    """A slot that is not free, and what the kernel says of its process."""

    slot: SlotView
    pid: int | None  # None: the slot names no process of this fabric
    memory: int  # bytes that are resident and backed by no file; what a zygote's workers share counts for each
    cpu: float  # seconds of processor time
    stands_by: bool  # for one that ends: it is given no jobs yet


class FabricView(NamedTuple):
    """A process that owns an arena, at one moment."""

    pid: int
    inode: int  # of the arena: a process may own several
    command: str
    arena: int  # bytes of address space; pages are taken when touched
    time: float  # of the look, s, monotonic
    workers: list[WorkerView]


def look() -> list[FabricView]:
    """Every fabric that this user may see, by pid."""
    holders: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for pid in _processes():
        for fd, inode in _arenas_of(pid):
            holders.setdefault(inode, []).append((pid, fd))
    views = []
    for found in holders.values():
        pids = {pid for pid, _ in found}
        for pid, fd in sorted(found):
            if pids.isdisjoint(_ancestors(pid)):  # a worker or a zygote has it from its owner
                if view := _read(pid, fd):
                    views.append(view)
                break
    return sorted(views, key=lambda view: (view.pid, view.inode))


def _read(pid: int, fd: int) -> FabricView | None:
    try:
        arena = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None  # it ended meanwhile
    try:
        status = os.fstat(arena)
        if not stat.S_ISREG(status.st_mode):
            return None
        slots, roles = read_slots(arena), read_roles(arena)
    except (OSError, ConfigError):
        return None  # other shared memory
    finally:
        os.close(arena)  # kept open, it would keep the memory of a fabric that has ended
    workers = []
    for slot in slots:
        if slot.status != _FREE:
            known = slot.pid > 0 and pid in _ancestors(slot.pid)
            memory, cpu = _usage(slot.pid) if known else (0, 0.0)
            stands_by = roles[slot.slot : slot.slot + 1] == bytes([STANDS_BY])
            workers.append(WorkerView(slot, slot.pid if known else None, memory, cpu, stands_by))
    return FabricView(pid, status.st_ino, _command(pid), status.st_size, time.monotonic(), workers)


def _processes() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


def _arenas_of(pid: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Descriptors that look like an arena, one of each, with what they refer to."""
    seen = set()
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return  # not ours to look into, or gone
    for name in names:
        path = f"/proc/{pid}/fd/{name}"
        try:
            if not os.readlink(path).startswith(_NAMES):
                continue
            status = os.stat(path)
        except OSError:
            continue  # closed meanwhile: processes that start are busy with their descriptors
        inode = (status.st_dev, status.st_ino)
        if inode not in seen and stat.S_ISREG(status.st_mode):  # to open a FIFO could take for ever
            seen.add(inode)
            yield int(name), inode


def _ancestors(pid: int) -> list[int]:
    """Parent, grandparent and so on of a process."""
    found: list[int] = []
    while pid > 1 and len(found) < _GENERATIONS:
        fields = _stat(pid)
        if not fields:
            break
        pid = int(fields[1])
        found.append(pid)
    return found


def _usage(pid: int) -> tuple[int, float]:
    """Memory and processor time (proc(5), statm: resident less shared; stat: utime and stime)."""
    fields = _stat(pid)
    try:
        with open(f"/proc/{pid}/statm") as file:
            pages = file.read().split()
        return (int(pages[1]) - int(pages[2])) * _PAGE, (int(fields[11]) + int(fields[12])) / _TICKS
    except (OSError, IndexError):
        return 0, 0.0


def _stat(pid: int) -> list[bytes]:
    """Fields of ``/proc/<pid>/stat`` from the state on; none once it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            text = file.read(4096).rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "backslashreplace")
    except OSError:
        return ""
    return "".join(c if c.isprintable() else "?" for c in text)
