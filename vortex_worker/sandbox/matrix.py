"""Every system call, tried under the real locks: does the kernel do what the policy says?

A child puts a worker's own locks on itself (``stages.Sandbox``), and then makes call after call until one kills it;
the next child goes on behind that one. A filter on top holds back what the others let through (csrc/probe.h), so
that no call is run, whatever its arguments. Beside it, ``bpf.Machine`` is asked about each: the compiled programs
must say what the policy says, and so must the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import glob
import hashlib  # noqa: F401 # the sandbox takes a hash when no module can be loaded any more
import importlib.util
import mmap
import os
import random
import signal
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vortex_worker._core import lockdown, probe
from vortex_worker._core.arena import Arena
from vortex_worker.config import WorkerConfig
from vortex_worker.sandbox import bpf, seccomp
from vortex_worker.sandbox.policy import LOW_32_BITS, MAX_ARGS, SELF_PID, Policy, Rule
from vortex_worker.sandbox.stages import Sandbox, programs, readable

__all__ = ["PROFILES", "THREADS", "Finding", "Mismatch", "redundant", "try_all", "vectors"]

PROFILES = ("bootstrap", "execute", "strict", "cuda")
THREADS = ("main", "python", "openmp")
NUMBERS = range(1024)  # today's calls end below 500; the rest is what later kernels may add
_CALL = struct.Struct("=q6QqII")  # vw_probe_call
_STRICTNESS = ("kill_process", "errno", "allow")
_GARBAGE = 0xDEAD_BEEF_0000_0000  # in the half of a register that the kernel does not read for an int
#: uretprobe and uprobe of x86-64: Linux asks no filter about them (since 6.12 and 6.18), and does nothing for who
#: calls them from anywhere but a probe's trampoline: SIGILL for the one, ENXIO for the other.
_UNFILTERED = (335, 336)
_ENDED = 71  # a child's exit status after its last call


class Vector(NamedTuple):
    """One call to be tried."""

    number: int
    args: tuple[int, ...] = (0,) * MAX_ARGS  # SELF_PID stands for the child's own number
    way: int = probe.NATIVE


class Mismatch(NamedTuple):
    """One call on which policy and kernel, or policy and compiled program, disagree."""

    vector: Vector
    call: str
    thread: str
    policy: str  # "allow", "errno 13", "kill_process"
    found: str
    by: str  # "kernel" or "program"


class Finding(NamedTuple):
    """What came of one profile."""

    profile: str
    tested: int  # calls tried by the kernel, in all threads together
    as_policy: int
    mismatches: list[Mismatch]
    allowed: tuple[str, ...]
    refused: tuple[str, ...]
    redundant: tuple[str, ...]


Decision = tuple[str, int]


class Profile:
    """A policy as a worker meets it: over the bootstrap filter, unless it is that one."""

    def __init__(self, name: str, *, wxorx: bool = False) -> None:
        self.name = name
        self.wxorx = wxorx
        self.setting = "execute" if name == "bootstrap" else name  # of the worker
        policy = seccomp.load_policy(self.setting)
        if wxorx:
            policy = policy.without_code()
        bootstrap = seccomp.load_policy("bootstrap").including(policy)
        self.layers = [bootstrap] if name == "bootstrap" else [policy, bootstrap]  # newest first
        compiled = programs(WorkerConfig(socket="", seccomp_policy=self.setting, wxorx=wxorx))
        readable(())  # once, not in each child
        code = [compiled.bootstrap.code] if name == "bootstrap" else [compiled.execute.code, compiled.bootstrap.code]
        self._machines = [bpf.Machine(program) for program in code]
        self._names = {seccomp.number_of(call): call for policy in self.layers for call in policy.rules}

    def call(self, vector: Vector) -> str:
        return self._names.get(vector.number) or seccomp.name_of(vector.number) or str(vector.number)

    def by_policy(self, vector: Vector) -> Decision:
        """What the policies say, all layers together."""
        call = self._names.get(vector.number) if vector.way == probe.NATIVE else None
        if call is None:
            return "kill_process", 0
        return _strictest([policy.decide(call, vector.args) for policy in self.layers])

    def by_program(self, vector: Vector) -> Decision:
        """What the compiled programs say, run here."""
        arch = bpf.NATIVE if vector.way == probe.NATIVE else bpf.I386
        return _strictest([machine.decide(vector.number, vector.args, arch) for machine in self._machines])


def _strictest(decisions: list[Decision]) -> Decision:
    """As the kernel combines filters: the strictest answer, and among equals the newest filter's."""
    return min(decisions, key=lambda decision: _STRICTNESS.index(decision[0]))


def vectors(profile: Profile, *, numbers: bool = True, arguments: bool = True) -> Iterator[Vector]:
    """All that is tried: each number, native, x32 and by ``int 0x80``; then each rule's arguments and what is next
    to them: every bit flipped that a rule looks at, one more, and garbage where the kernel doesn't look."""
    noise = random.Random(1)
    if numbers:
        for number in (*NUMBERS, -1, 1 << 30, 0x7FFF_FFFF):
            yield Vector(number)
            yield Vector(number, tuple(noise.getrandbits(64) for _ in range(MAX_ARGS)))
        for number in NUMBERS:
            yield Vector(0x4000_0000 | number)  # x32
        for number in NUMBERS:
            yield Vector(number, way=probe.INT_80)
    if arguments:
        seen: set[Vector] = set()
        for policy in profile.layers:
            for rules in policy.rules.values():
                for rule in rules:
                    for vector in _around(rule, noise):
                        if vector not in seen:
                            seen.add(vector)
                            yield vector


def _around(rule: Rule, noise: random.Random) -> Iterator[Vector]:
    number = seccomp.number_of(rule.call)
    if number is None or number < 0 or not rule.conditions:
        return
    args = [noise.getrandbits(31) for _ in range(MAX_ARGS)]
    for condition in rule.conditions:
        args[condition.arg] = args[condition.arg] & ~condition.mask | condition.value
    yield Vector(number, tuple(args))
    for condition in rule.conditions:
        value = args[condition.arg]
        changed = {value ^ 1 << bit for bit in range(64) if condition.mask >> bit & 1}
        changed |= {(value + 1) % (1 << 64), value & LOW_32_BITS | _GARBAGE}
        for other in sorted(changed):
            yield Vector(number, (*args[: condition.arg], other, *args[condition.arg + 1 :]))


def redundant(policy: Policy) -> tuple[str, ...]:
    """Rules that another rule of the same call and outcome covers, or that say what the default says anyway."""
    found = []
    for call, rules in policy.rules.items():
        for rule in rules:
            others = [r for r in rules if r is not rule and (r.action, r.error) == (rule.action, rule.error)]
            if (len(rules) == 1 and rule.action == policy.default) or any(other.covers(rule) for other in others):
                found.append(f"{call}: {rule.reason}")
    return tuple(found)


def try_all(
    name: str,
    *,
    threads: tuple[str, ...] = THREADS,
    step: int = 1,
    tell: Callable[[int, int], object] = lambda done, of: None,
    wxorx: bool = False,
) -> Finding:
    """Try every vector of a profile in the main thread, and every number in the others.

    Args:
        name: ``bootstrap``, or what ``Fabric(policy=…)`` takes.
        step: try each ``step``-th only.
        threads: of ``main``, ``python`` and ``openmp``.
        tell: called with how many calls are done, and of how many.
        wxorx: as of workers that let no memory become executable.

    Raises:
        ConfigError: no such policy.
        RuntimeError: a child could not be locked, or ended in a way that no call explains.
    """
    profile = Profile(name, wxorx=wxorx)
    everything = list(vectors(profile))[::step]
    numbers = [vector for vector in vectors(profile, arguments=False) if vector.args == (0,) * MAX_ARGS][::step]
    total = sum(len(everything if thread == "main" else numbers) for thread in threads)
    mismatches: list[Mismatch] = []
    done = 0
    for vector in everything:
        expected, found = profile.by_policy(vector), profile.by_program(vector)
        if expected != found:
            mismatches.append(_mismatch(profile, vector, "", expected, found, "program"))
    for thread in threads:
        tried = everything if thread == "main" else numbers
        for vector, found in _Prober(profile, tried, thread):
            expected = profile.by_policy(vector)
            if expected != found:
                mismatches.append(_mismatch(profile, vector, thread, expected, found, "kernel"))
            done += 1
            if done % 64 == 0:
                tell(done, total)
    tell(total, total)
    policy = seccomp.load_policy(name)  # by itself
    wrong = sum(mismatch.by == "kernel" for mismatch in mismatches)
    return Finding(name, total, total - wrong, mismatches, policy.allowed, policy.refused, redundant(policy))


def _mismatch(profile: Profile, vector: Vector, thread: str, expected: Decision, found: Decision, by: str) -> Mismatch:
    def words(decision: Decision) -> str:
        return f"errno {decision[1]}" if decision[0] == "errno" else decision[0]

    return Mismatch(vector, profile.call(vector), thread, words(expected), words(found), by)


class _Prober:
    """Iterates over ``(vector, decision)``: the kernel's answers, from children that live until one kills them."""

    def __init__(self, profile: Profile, tried: list[Vector], thread: str) -> None:
        self._profile = profile
        self._tried = tried
        self._thread = thread
        if thread == "openmp":
            _openmp()
        # What the policies answer by ENOSYS can't be told from what the filter on top holds back: those calls
        # are really made. None of them is allowed, so none is run; if one were, that is what we look for.
        self._plain = [profile.by_policy(vector) == ("errno", errno.ENOSYS) for vector in tried]

    def __iter__(self) -> Iterator[tuple[Vector, Decision]]:
        for plain in (False, True):
            chosen = [vector for vector, its in zip(self._tried, self._plain, strict=True) if its == plain]
            if chosen:
                yield from zip(chosen, self._answers(chosen, held_back=not plain), strict=True)

    def _answers(self, chosen: list[Vector], *, held_back: bool) -> Iterator[Decision]:
        with mmap.mmap(-1, len(chosen) * _CALL.size) as calls:
            for i, vector in enumerate(chosen):
                args = [value & (1 << 64) - 1 for value in vector.args]
                _CALL.pack_into(calls, i * _CALL.size, vector.number, *args, 0, vector.way, 0)
            before = bytes(calls)
            at = 0
            while at < len(chosen):
                calls[at * _CALL.size :] = before[at * _CALL.size :]  # without another child's number
                status = self._run_child(calls, at, held_back)
                while at < len(chosen):
                    *_, result, _, state = _CALL.unpack_from(calls, at * _CALL.size)
                    if state != 2:
                        break
                    if result == -errno.ENXIO and chosen[at].number in _UNFILTERED:
                        yield "kill_process", 0
                    else:
                        yield self._decision(result, held_back)
                    at += 1
                if at < len(chosen):
                    exempt = status == -signal.SIGILL and chosen[at].number in _UNFILTERED
                    if state != 1 or not (status == -signal.SIGSYS or exempt):
                        raise RuntimeError(
                            f"a child ended with {status} at call {chosen[at]} (state {state}): its locks failed, or "
                            "something else killed it"
                        )
                    yield "kill_process", 0
                    at += 1
                elif status != _ENDED:
                    raise RuntimeError(f"a child ended with {status} after its last call")

    @staticmethod
    def _decision(result: int, held_back: bool) -> Decision:
        if held_back and result == -errno.ENOSYS:
            return "allow", 0
        return ("errno", -result) if -4096 < result < 0 else ("allow", 0)

    def _run_child(self, calls: mmap.mmap, begin: int, held_back: bool) -> int:
        """Lock a child, let it make the calls from ``begin`` on, and return how it ended."""
        pid = os.fork()
        if pid == 0:
            try:
                self._be_child(calls, begin, held_back)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(70)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _be_child(self, calls: mmap.mmap, begin: int, held_back: bool) -> None:
        view = memoryview(calls)[begin * _CALL.size :]
        for at in range(0, len(view), _CALL.size):  # our own number, now that there is one
            number, *args, result, way, state = _CALL.unpack_from(view, at)
            if any(value & LOW_32_BITS == SELF_PID or _near(value) for value in args):
                args = [v ^ SELF_PID ^ os.getpid() if _near(v) else v for v in args]
                _CALL.pack_into(view, at, number, *args, result, way, state)
        work = probe.Work(view)
        arena = Arena.create(4 << 20)
        _ours, theirs = socket.socketpair()
        sandbox = Sandbox(
            WorkerConfig(
                socket=f"fd:{theirs.fileno()}",
                shm_fd=arena.fd,
                seccomp_policy=self._profile.setting,
                wxorx=self._profile.wxorx,
            )
        )
        sandbox.isolate()
        if held_back:
            lockdown.install_filter(_held_back(), all_threads=False)
        sandbox.bootstrap()
        run: Callable[[], object] = work.run
        if self._thread == "openmp":
            run = _in_openmp(work)
        if self._profile.name != "bootstrap":
            sandbox.lock_down()
        if self._thread == "python":
            thread = threading.Thread(target=work.run)
            thread.start()
            thread.join()
        else:
            run()
        os._exit(_ENDED)


def _near(value: int) -> bool:
    """Whether a value was made from SELF_PID by changing it a little."""
    return ((value ^ SELF_PID) & LOW_32_BITS).bit_count() <= 1 or value - SELF_PID == 1


@functools.cache  # found before the locks close
def _openmp() -> str:
    """The OpenMP library that torch brings."""
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    (path,) = glob.glob(os.path.join(os.path.dirname(found.origin), "lib", "libgomp*.so*"))
    return path


def _held_back() -> bytes:
    """A filter: what is called from the probe's instructions is traced, by nobody; all else is allowed."""
    load, equal, give = 0x20, 0x15, 0x06
    trace, allow = 0x7FF0_0000, 0x7FFF_0000
    native, int_80 = probe.addresses()
    code = []
    for address in (native, int_80):
        code += [(load, 0, 0, 8), (equal, 0, 3, address & LOW_32_BITS), (load, 0, 0, 12), (equal, 0, 1, address >> 32)]
        code.append((give, 0, 0, trace))
    code.append((give, 0, 0, allow))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _in_openmp(work: probe.Work) -> Callable[[], object]:
    """Start OpenMP's threads now; what is returned makes the calls in one of them."""
    parallel = ctypes.CDLL(_openmp()).GOMP_parallel
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    nothing = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
    parallel(ctypes.cast(nothing, ctypes.c_void_p), None, 2, 0)
    return lambda: parallel(*work.elsewhere(), 2, 0)
