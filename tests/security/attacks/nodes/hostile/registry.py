"""The list of attacks: what each tries, how its effect is seen from outside, and which layers stop it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Layers that the corpus can switch off, one by one.
FILTER = "filter"  # seccomp, both stages
VIEW = "view"  # a mount namespace in which only what may be read exists
LANDLOCK = "Landlock"
ISOLATION = "isolation"  # no capabilities, not dumpable, limits, own session, closed descriptors
MAPPING = "mapping"  # the arena is mapped read-only, but for the worker's own lease
SEALS = "seals"  # of the arena's memory file
ENVIRONMENT = "environment"  # a worker gets a few variables of the supervisor's environment, by name
DEADLINE = "deadline"  # of a job: the supervisor kills a worker that is late
MEMORY_LIMIT = "memory limit"
CHECKS = "checks"  # of what a worker says, by the supervisor
REST = "rest"  # a worker that computes without having a job is replaced
PROCESS = "process"  # a node does not run in the supervisor's process

LAYERS = (
    FILTER, LANDLOCK, VIEW, ISOLATION, MAPPING, SEALS, ENVIRONMENT, DEADLINE, MEMORY_LIMIT, CHECKS, REST, PROCESS,
)  # fmt: skip

Function = Callable[[Any], Any]


@dataclass(frozen=True)
class AttackCase:
    """One attack.

    ``effect`` is what changes outside when it succeeds (a key of ``witness.Witness.look``), or ``claim``:
    that the function returns something true, where nobody outside can see it. Each of ``stopped_by`` is
    enough alone, and with all of them and ``also_off`` switched off the attack succeeds. (The view closes nearly all
    that Landlock does, so it is off wherever that is, unless it is named itself.)
    """

    name: str
    kind: str
    tells: str
    function: Function
    effect: str
    stopped_by: tuple[str, ...]
    also_off: tuple[str, ...]
    abi: int  # of Landlock, from which on it stops this


ATTACKS: dict[str, AttackCase] = {}


def attack(
    effect: str, *stopped_by: str, also_off: tuple[str, ...] = (), abi: int = 1
) -> Callable[[Function], Function]:
    """Register a function as an attack. Its name is the attack's, its first line of documentation what it tries."""

    def register(function: Function) -> Function:
        name = function.__name__
        assert name not in ATTACKS, name
        kind = function.__module__.rpartition(".")[2]
        tells = (function.__doc__ or "").strip().splitlines()[0]
        ATTACKS[name] = AttackCase(name, kind, tells, function, effect, stopped_by, also_off, abi)
        return function

    return register
