"""The node that runs an attack by its name."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import sys
from types import SimpleNamespace
from typing import Any

from vortex_worker.executor import AbstractExecutor, Param, Port

from .registry import ATTACKS
from .tools import libc


class Attack(AbstractExecutor):
    """Runs the attack ``name`` on the ``world`` that it is told of, and brings home what it got."""

    op_type = "Attack"
    input_ports = (Port("tensor", "TENSOR"),)
    output_ports = (Port("loot", "STRING"),)
    params = (Param("name", "STRING"), Param("world", "STRING"))

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        world = SimpleNamespace(**json.loads(params["world"]), node=self, tensor=inputs["tensor"])
        try:
            inform(world)
        except Exception as error:
            raise RuntimeError(f"not tried: nothing known of this process: {error!r}") from error
        loot, refused = None, ""
        try:
            loot = ATTACKS[params["name"]].function(world)
        except OSError as error:
            refused = errno.errorcode.get(error.errno or 0, type(error).__name__)
        return {"loot": json.dumps({"refused": refused, "won": bool(loot), "loot": repr(loot)})}


def inform(world: Any) -> None:
    """What a node can find out about its own process: addresses in the arena, and the control socket."""
    if world.input_offset < 0:
        return  # tried out without a worker
    arena = world.node.context._allocate.__self__._arena
    world.base, world.lease_address, world.lease_size = arena.address, arena.lease_address, arena.lease_size
    frame: Any = sys._getframe()
    while type(frame.f_locals.get("self")).__name__ != "Handler":
        frame = frame.f_back
    handler = frame.f_locals["self"]
    world.socket = handler._socket.fileno()
    world.slots = next(head for head in pointers(arena) if head not in (0, arena.address))


def pointers(arena: Any) -> list[int]:
    """Where the arena's object has header and slots mapped read-write: it leads to a struct that begins with a
    count, the address of the whole, its size, and theirs.
    """
    words = (ctypes.c_uint64 * 8).from_address(id(arena))[2:]
    heap = [word for word in words if word % 16 == 0 and mapped(word)]
    structs = [(ctypes.c_uint64 * 4).from_address(word)[:] for word in heap]
    return [head for _, base, _, head in structs if base == arena.address]


def mapped(address: int) -> bool:
    """Whether there is memory. A heap may begin anywhere: low, where Python is built at a fixed address."""
    page = mmap.PAGESIZE
    start = ctypes.c_void_p(address // page * page)
    return bool(address >= page and libc.madvise(start, ctypes.c_size_t(page), mmap.MADV_NORMAL) == 0)
