"""A fabric with some layers off, the world round it, and one attack after another in its workers."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import witness
from hostile.registry import (
    CHECKS,
    DEADLINE,
    ENVIRONMENT,
    FILTER,
    ISOLATION,
    LANDLOCK,
    MEMORY_LIMIT,
    REST,
    SEALS,
    AttackCase,
)
from sandbox_child import Outcome, run

import vortex_worker as vw
from vortex_worker._core.arena import Arena
from vortex_worker.config import WorkerConfig
from vortex_worker.errors import JobError, LaunchError, WorkerLost
from vortex_worker.supervisor import memory, zygote
from vortex_worker.supervisor.endings import Endings
from vortex_worker.supervisor.launcher import Launcher
from vortex_worker.supervisor.link import WorkerLink
from vortex_worker.supervisor.memory import Lease, WorkerBlock
from vortex_worker.supervisor.process import WorkerProcess
from vortex_worker.supervisor.rest import Rest
from vortex_worker.supervisor.vigil import Vigil

HERE = Path(__file__).parent
_WEAKENED = {"filter", "Landlock", "view", "isolation", "mapping"}  # layers that a worker puts in force itself
_VICTIMS = ("supervisor", "zygote", "sibling", "bystander")
#: Of a worker, which can't be traced, others don't see all that it is, nor whose a process is that it has started.
_ROOT_SEES = {"state", "processes"}
_DEADLINE = 0.5  # s, of a job that never ends
_GRACE = 0.2  # s that it has after that
_ENDLESS = 0.8  # s after both, when a job without a deadline is taken to be endless
_PATIENCE = 10.0  # s that one with a deadline may take to be ended, on a busy machine
_LEFT = 3.0  # s after which something that still runs is taken to run for ever
# Bytes of private memory: about twice what a worker has anyway, in which CUDA's libraries have 700 MiB to write to.
_LIMIT = (512 if torch.version.cuda is None else 2048) << 20
_HONEST = '''"""A node of somebody else's."""

from vortex_worker.executor import AbstractExecutor, Port


class Honest(AbstractExecutor):
    op_type = "Honest"
    input_ports = (Port("tensor", "TENSOR"),)
    output_ports = (Port("tensor", "TENSOR"),)

    def execute(self, inputs, params):
        return {"tensor": inputs["tensor"] + 1}
'''


class Report(NamedTuple):
    """What came of an attack."""

    effects: set[str]  # what changed, as somebody outside sees it
    blind: set[str]  # what this user may not look at
    claim: bool  # that it has won: what its function returned was true
    refused: str  # the errno that ended it
    error: JobError | None  # the job's

    def __str__(self) -> str:
        how = f"{type(self.error).__name__}: {self.error}" if self.error else self.refused or "returned"
        return f"changed {sorted(self.effects) or 'nothing'}, {'claims to have won, ' if self.claim else ''}{how}"


def _count_own_descriptors(after: float) -> int:
    """Some are open for a moment only: files in /proc that the fabric's thread reads. So: the fewest of several."""
    time.sleep(after)
    return len(os.listdir("/proc/self/fd"))


class Scene:
    """One fabric, whose workers lack the layers ``off``. Use it as a context manager."""

    def __init__(self, off: frozenset[str], root: Path) -> None:
        self.off = off
        self.broken = False  # beyond repair: take another
        self._settled = 0  # the last worker that was seen to have warmed up
        self._own = contextlib.ExitStack()
        self._secret, self._mark = secrets.token_hex(16), secrets.token_hex(4)
        self._root = root
        self._nodes = root / "nodes"
        shutil.copytree(HERE / "nodes", self._nodes, ignore=shutil.ignore_patterns("__pycache__"))
        (self._nodes / "honest.py").write_text(_HONEST)

    def __enter__(self) -> Scene:
        with contextlib.ExitStack() as stack:
            self.witness = witness.Witness(self._root, self._secret, self._mark)
            stack.callback(self.witness.close)
            stack.enter_context(self._switched_off())
            settings: dict[str, Any] = {}
            if not self.off & {FILTER, LANDLOCK, ISOLATION}:
                settings["memory_limit"] = 0 if MEMORY_LIMIT in self.off else _LIMIT
            self.fabric = stack.enter_context(
                vw.Fabric(
                    workers=1, standby=1, custom_nodes=self._nodes, models=self.witness.models, threads=1,
                    lease_size=4 << 20, client_size=4 << 20, grace=_GRACE,
                    allow_unsandboxed=bool(self.off & {FILTER, LANDLOCK, ISOLATION}), **settings,
                )
            )  # fmt: skip
            self.fabric.wait_ready(60)
            assert not self.fabric.plugin_errors()
            self._arena = self.fabric._memory.arena
            address = witness.environment_address(os.getpid())
            self._environment = witness.ctypes.c_char.from_address(address)
            self._first = self._environment.value
            self._input = self.fabric.tensor(torch.arange(4096, dtype=torch.int64))
            # A result of another worker than the attacks', kept alive in a lease that isn't theirs.
            self._sibling_result = self.fabric.run("Honest", {"tensor": self._input})["tensor"]
            self.fabric.reload(60)
            self._own = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._own.close()

    @contextlib.contextmanager
    def _switched_off(self) -> Iterator[None]:
        """Layers that are the supervisor's own are taken out of it here; for the others, see ``weakened.py``."""
        marker = f"PYTHON_VW_SCENE_{self._mark}"  # in the environment of each process of this fabric
        with contextlib.ExitStack() as stack:

            def put(target: Any, name: str, value: Any) -> None:
                stack.callback(setattr, target, name, getattr(target, name))
                setattr(target, name, value)

            stack.callback(os.environ.pop, marker)
            stack.callback(os.environ.pop, "CORPUS_SECRET")
            os.environ |= {marker: "1", "CORPUS_SECRET": self._secret}
            layers = sorted(self.off & _WEAKENED)
            if layers:
                script = self._root / "python"
                script.write_text(
                    f'#!/bin/sh\nexec "{sys.executable}" -P "{HERE / "weakened.py"}" {",".join(layers)} "$@"\n'
                )
                script.chmod(0o755)
                put(sys, "executable", str(script))
            if SEALS in self.off:
                put(memory, "Arena", SimpleNamespace(create=unsealed))
            if ENVIRONMENT in self.off:
                put(zygote, "environment", lambda: dict(os.environ))
            if REST in self.off:
                put(Vigil, "_check_rest", lambda vigil, link: None)
            if CHECKS in self.off:
                put(Lease, "admit", lambda lease, handle: WorkerBlock(lease, handle.offset))
                put(Lease, "collect", lambda lease: lease.dropped.clear() or [])
                put(memory.Memory, "restore", lambda memory: None)
                # And workers look in the header for where data is, instead of being told.
                told = WorkerConfig.to_env
                put(WorkerConfig, "to_env", lambda config: told(replace(config, shm_data=0)))
                # A start that fails is the configuration's fault, also when others have succeeded.
                stack.callback(delattr, Launcher, "_proven")
                Launcher._proven = property(lambda it: False, lambda it, value: None)  # type: ignore[assignment]
                put(WorkerProcess, "stopped", lambda process: True)
                look_closer = Endings.on_sign_of_death

                def believe(endings: Endings, link: WorkerLink) -> None:
                    link.process.exiting = lambda: True  # type: ignore[method-assign]
                    look_closer(endings, link)

                put(Endings, "on_sign_of_death", believe)
            yield

    # ---- attacks

    def attack(self, case: AttackCase) -> Report:
        """Run one attack in a worker, see what it did, run an honest job, and make all as it was."""
        self.fabric.wait_ready(30)
        self._crew = self._processes()
        self._settle()
        before, footprint = self._look(), witness.footprint(self._crew["worker"])
        endless = case.effect == "endless"
        deadline = None if endless and DEADLINE in self.off else _DEADLINE if endless else 60.0
        job = self.fabric.submit(
            "Attack", {"tensor": self._input}, {"name": case.name, "world": self._world()}, retries=0, deadline=deadline
        )
        effects = set()
        with self._owner_of_the_models(job):
            if endless:
                end = time.monotonic() + _DEADLINE + _GRACE + (_ENDLESS if DEADLINE in self.off else _PATIENCE)
                while not job.done() and time.monotonic() < end:
                    time.sleep(0.01)
                if not job.done():
                    effects.add("endless")
                    job.cancel()
            error = job.exception()
        try:
            if case.effect in _VICTIMS:
                time.sleep(0.03)  # for a process to end that was killed
            self.fabric.wait_ready(30)
        except LaunchError:
            self.broken = True
            return Report({"fabric"}, set(), False, "", error)
        after = self._look()
        # Of a worker that was ended, some may be open for a moment yet; what leaks stays open.
        end = time.monotonic() + _LEFT
        while after["supervisor descriptors"] != before["supervisor descriptors"] and time.monotonic() < end:
            time.sleep(0.02)
            after = self._look()
        if case.effect == "leftovers" and self._stays_busy():
            effects.add("leftovers")
        effects |= {key for key in before if before[key] is not None and after[key] not in (before[key], None)}
        answer: dict[str, Any] = {"won": False, "refused": "", "loot": ""}
        if error is None:
            effects |= {"forged"} if case.effect == "forged" else set()
            answer = json.loads(job.result()["loot"]) if case.effect != "forged" else answer
        if self._secret in f"{answer['loot']} {error}":
            effects.add("leak")
        try:
            if effects:
                self._restore()  # what it changed would change the next job, too
            self._go_on()
            left = witness.footprint(self._crew["worker"])
            if not effects and left and (left != footprint or left["descriptors"] is None):
                self.fabric.reload(30)  # it left something behind in its own process, or may have
        except (AssertionError, JobError, LaunchError) as bad:
            self.broken = True
            effects.add("fabric")
            error = error or WorkerLost(f"after it: {bad}")
        blind = {key for key in before if before[key] is None} | (_ROOT_SEES if os.geteuid() else set())
        return Report(effects, blind, answer["won"], answer["refused"], error)

    def _settle(self) -> None:
        """Wait until the worker has warmed up: it goes on with that when it is ready, until its first job comes."""
        worker = self._crew["worker"]
        if worker == self._settled:
            return
        self._settled = worker
        before, end = self._seen(worker), time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            time.sleep(0.05)
            if (now := self._seen(worker)) == before:
                return
            before = now

    def _seen(self, worker: int) -> tuple[Any, ...]:
        return witness.mappings(worker), witness.footprint(worker)

    def _processes(self) -> dict[str, int]:
        while len(self.fabric._crew.links()) != 2 or len(links := self.fabric.workers() + self.fabric.standbys()) < 2:
            time.sleep(0.01)  # one is about to end
        worker, sibling = links
        with open(f"/proc/{worker['pid']}/status") as file:
            parent = next(int(line.split()[1]) for line in file if line.startswith("PPid"))
        return {
            "worker": worker["pid"], "sibling": sibling["pid"], "sibling slot": sibling["slot"],
            "zygote": parent, "supervisor": os.getpid(), "bystander": self.witness.bystander.pid,
        }  # fmt: skip

    def _world(self) -> str:
        """What a well-informed attacker knows of his surroundings: all but the secret itself."""
        crew, seen = self._crew, self.witness
        victims = {name: crew[name] for name in _VICTIMS}
        environments = {name: witness.environment_address(pid) for name, pid in victims.items()}
        environments["sibling"] = environments["sibling"] or environments["zygote"]  # whose copy it has
        return json.dumps(
            {
                "outside": str(seen.outside), "models": str(seen.models), "nodes": str(self._nodes),
                "mark": self._mark, "tcp": seen.tcp, "udp": seen.udp, "abstract": seen.abstract,
                "terminal": seen.terminal, "secret_fd": seen.secret_fd,
                "pids": victims, "environments": environments, "sibling_slot": crew["sibling slot"],
                "secrets": environments | {"supervisor": witness.ctypes.addressof(seen.memory)},
                "arena_fd": self._arena.fd, "arena_size": self._arena.size,
                "input_offset": self._input.data_ptr() - self._arena.address,
                "sibling_result": self._sibling_result.data_ptr() - self._arena.address,
            }
        )  # fmt: skip

    def _look(self) -> dict[str, Any]:
        worker = self._crew["worker"]
        known = {link["pid"] for link in self.fabric.workers() + self.fabric.standbys()} | set(self._crew.values())
        # What the worker itself has become, as long as it lives; a dead one has nothing.
        alive = bool(witness.state(worker))
        own: dict[str, Any] = {"state": None, "descriptors": None, "mappings": None, "many descriptors": None}
        if alive:
            count = witness.count_descriptors(worker)
            own = {
                "state": witness.state(worker),
                "descriptors": witness.descriptors(worker),
                "mappings": witness.mappings(worker),
                "many descriptors": None if count is None else count > witness.MANY,
            }
        return (
            self.witness.look()
            | own
            | {name: witness.victim(self._crew[name]) for name in ("zygote", "sibling")}
            | {
                "processes": witness.strangers(f"PYTHON_VW_SCENE_{self._mark}".encode(), known, worker),
                "arena": (
                    os.fstat(self._arena.fd).st_size,
                    zlib.crc32(self._input.numpy()),
                    zlib.crc32(self._sibling_result.numpy()),
                ),
                "supervisor descriptors": min(map(_count_own_descriptors, (0, 0.002, 0.002))),
            }
        )

    def _stays_busy(self) -> bool:
        """Whether the worker of the attack still computes when it has had no job for some seconds."""
        end = time.monotonic() + (_LEFT if REST in self.off else _PATIENCE)
        try:
            while time.monotonic() < end:
                rest = Rest(self._crew["worker"], 0)
                time.sleep(0.5)
                if (rest.unrest() or 0) < 0.1:
                    return False
        except OSError:
            return False  # it was ended
        return True

    @contextlib.contextmanager
    def _owner_of_the_models(self, job: Any) -> Iterator[None]:
        """Some attacks need somebody who moves his own files about meanwhile: they ask by their progress."""
        models, outside = self.witness.models, self.witness.outside
        over = threading.Event()

        def move() -> None:
            os.rename(models / "sub", outside / "moved")
            job_ends()
            os.rename(outside / "moved", models / "sub")

        def flicker() -> None:
            os.rename(models / "flicker", outside / "stash")
            while not job.done() and not over.is_set():
                for make in (
                    lambda path: path.write_bytes(b"harmless"),
                    lambda path: path.symlink_to(outside / "secret"),
                ):
                    make(models / "next")
                    os.replace(models / "next", models / "flicker")
            os.replace(outside / "stash", models / "flicker")

        def job_ends() -> None:
            while not job.done() and not over.wait(0.002):
                pass

        def serve() -> None:
            while not job.done() and not over.wait(0.002):
                wish = {"move": move, "flicker": flicker}.get(job.progress.message)
                if wish:
                    wish()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _go_on(self) -> None:
        """The supervisor lives, and so do its workers: an honest job gives what it should."""
        given = torch.arange(64)
        # Not by a deadline: until that has passed, the fabric keeps the job and its result, and so a lease.
        result = self.fabric.submit("Honest", {"tensor": given}).result(timeout=20)
        assert torch.equal(result["tensor"], given + 1)

    def _restore(self) -> None:
        """Fresh workers, and everything else as it was."""
        if os.fstat(self._arena.fd).st_size != self._arena.size:
            os.ftruncate(self._arena.fd, self._arena.size)
        self.fabric.wait_ready(30)
        marker, known = f"PYTHON_VW_SCENE_{self._mark}".encode(), set(self._processes().values())
        known |= {link["pid"] for link in self.fabric.standbys()}
        for pid in witness.strangers(marker, known, self._crew["worker"]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.fabric.reload(30)
        self.witness.restore()
        self._input.copy_(torch.arange(4096))
        self._sibling_result.copy_(torch.arange(4096) + 1)
        self._environment.value = self._first
        shutil.rmtree(self._nodes / "__pycache__", ignore_errors=True)
        (self._nodes / "honest.py").write_text(_HONEST)


def unsealed(size: int) -> Arena:
    """An arena in named shared memory, which can't be sealed."""
    name = f"/vw-corpus-{os.getpid()}"
    arena = Arena.create(size, name=name)
    os.unlink(f"/dev/shm{name}")
    return arena


def unprotected(case: AttackCase) -> Outcome:
    """The attack in the process of its supervisor, as engines without workers have it: forked, to go on ourselves."""
    world: Any = SimpleNamespace(input_offset=-1)
    action: Callable[[], Any] = lambda: case.function(world)  # noqa: E731
    return run(action, stages=None)
