"""The three stages of a worker's sandbox, and the report of what holds.

S0 ``isolate``, S1 ``bootstrap``, S2 ``lock_down`` and ``seal``: each is called once, in this order, by ``main``.
A layer that can't be had ends the worker, unless the configuration allows less; then the report
says what is missing. Nothing here runs after lockdown.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import functools
import os
import signal
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from vortex_worker._core import lockdown
from vortex_worker.errors import ConfigError
from vortex_worker.sandbox import landlock, macos, seccomp, view

if TYPE_CHECKING:
    from vortex_worker.config import WorkerConfig

_LOG_FILE_LIMIT = 64 << 20  # 64 MiB that a worker may add to a log that is a regular file
_STARTING = 16 << 20  # 16 MiB that a worker takes until it is ready: its thread pool, first kernels
_CANARY = b"/proc/self/environ"  # exists everywhere, is readable for its owner, and no rule allows it
_UNSEEN = b"/proc/version"  # exists everywhere, and is in no view


class SandboxError(Exception):
    """A layer of the sandbox can't be had, and the configuration does not allow to go without."""


@dataclass(slots=True)
class Descriptors:
    """What is open after S0, beside standard error."""

    arena: int  # read-write
    arena_readonly: int
    socket: int = -1  # inherited and connected; -1: connect to the configured path


@dataclass(slots=True)
class Report:
    """What holds, for the handshake."""

    policy: str = "null"  # no filter at all
    layers: list[str] = field(default_factory=list)
    landlock_abi: int = 0
    filter_hash: str = ""
    enforced: bool = False
    missing: list[str] = field(default_factory=list)  # why, of each layer that could not be had


class Programs(NamedTuple):
    """The filters of a worker's life, compiled."""

    bootstrap: seccomp.Program
    execute: seccomp.Program  # what it denies is death at once
    #: What it denies, a supervisor is told: execute, and what is needed to hand the listener over.
    named: seccomp.Program | None
    seal: seccomp.Program | None  # takes that back

    def pack(self) -> list[list[Any] | None]:
        """As JSON can hold it."""
        return [None if p is None else [p.name, p.code.hex(), p.allowed, p.refused] for p in self]

    @classmethod
    def unpack(cls, packed: list[list[Any] | None]) -> Programs:
        """What ``pack`` gave."""
        return cls._make(
            None if p is None else seccomp.Program(p[0], bytes.fromhex(p[1]), tuple(p[2]), tuple(p[3])) for p in packed
        )


class Sandbox:
    """The sandbox of this process, built up stage by stage."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._report = Report()
        self._programs: Programs | None = None
        self._listening = False
        self._maps = -1  # /proc/self/maps, from before Landlock, until lockdown

    def isolate(self) -> Descriptors:
        """S0. Open the arena; see nothing but the view; close everything else; give up session, capabilities, limits.

        Both filters are compiled here, before there is one that could stand in their way.

        Raises:
            ConfigError: no such shared memory or socket, or a bad policy.
            SandboxError: the kernel refuses a layer. (Only the view may be missing.)
        """
        config = self._config
        # Libraries that look for a home directory would else ask the user database, whose plug-ins make
        # system calls that no filter here allows; and there is nothing of a worker's in a home.
        os.environ["HOME"] = "/nonexistent"
        # Nor can a worker start programs. Where ctypes finds a compiler, it wants a file for what that says, and torch,
        # if built for CUDA, is not imported without.
        os.environ["PATH"] = ""
        if seccomp.available():
            self._programs = programs(config)
        else:
            self._do_without()
        descriptors = _open_descriptors(config)
        if sys.platform == "linux":
            self._enter_view()
        keep = [1, 2, descriptors.arena, descriptors.arena_readonly]
        if descriptors.socket >= 0:
            keep.append(descriptors.socket)
        if config.wxorx and self._programs is not None:
            self._maps = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
            keep.append(self._maps)
        limits: dict[str, int] = {"file_size": _log_limit()}
        if config.memory_limit:
            _check_memory_limit(config.memory_limit)
            limits["data"] = config.memory_limit
        with self._layer("rlimits", "no_new_privs", "capabilities"):
            lockdown.isolate(keep, limits=limits)
        return descriptors

    def _enter_view(self) -> None:
        """A second wall beside Landlock's. Many a container forbids it, so a worker goes on without."""
        if self._config.has_card:  # CUDA looks in more places than are known, and writes its threads' names into /proc
            self._report.missing.append("view: has not been tried with CUDA")
            return
        try:
            lockdown.enter_view(*visible(self._config))
            lockdown.canary(_UNSEEN, expected=(errno.ENOENT,))
        except OSError as error:
            self._report.missing.append(str(error))
            return
        except RuntimeError as error:
            raise SandboxError(f"{error}, and there is no way back") from None
        self._report.layers.append("view")

    def bootstrap(self) -> None:
        """S1. While there is one thread and no socket: Landlock, then the filter for start-up.

        Raises:
            ConfigError: a configured folder is missing.
            SandboxError: the kernel refuses a layer.
        """
        config = self._config
        abi = lockdown.landlock_abi()
        if abi < config.landlock_abi:
            raise SandboxError(
                f"this kernel's Landlock is of ABI {abi}, and VORTEX_LANDLOCK_ABI asks for {config.landlock_abi}"
            )
        if abi:
            rules = readable((*config.models, *config.custom_nodes))
            if config.has_card:
                rules = [*rules, *landlock.device_rules()]
            with self._layer("landlock"):
                self._report.landlock_abi = lockdown.landlock_restrict(rules)
        else:
            self._give_up("this kernel has no Landlock: files can't be restricted")
        if self._programs is not None:
            with self._layer("seccomp-bootstrap"):
                _install(self._programs.bootstrap, all_threads=False)

    @property
    def opens_files(self) -> bool:
        """Whether jobs may open files, so that modules of Python can be imported after lockdown, too."""
        return self._programs is None or "openat" in self._programs.execute.allowed

    def lock_down(self) -> int:
        """S2. The filter that jobs run under, on every thread at once; then try what must fail.

        Returns:
            the filter's listener, to be sent to the supervisor and closed before ``seal``; -1: there is none.

        Raises:
            SandboxError: the kernel refuses the filter, or the canary got through.
        """
        listener = -1
        if self._maps >= 0:
            with self._layer("wxorx"):
                lockdown.freeze_code(self._maps)
            os.close(self._maps)
        if self._programs is not None:
            with self._layer("seccomp-execute"):
                listener = self._install_execute(self._programs)
            self._report.policy = self._programs.execute.name
            self._report.filter_hash = self._programs.execute.sha256
        if self._report.landlock_abi:
            with self._layer("canary"):
                lockdown.canary(_CANARY)
        self._report.enforced = {"landlock", "seccomp-execute", "canary"} <= set(self._report.layers)
        return listener

    def _install_execute(self, programs: Programs) -> int:
        if programs.named is not None:
            # The supervisor asks by this signal where a denied call came from, before it kills us.
            faulthandler.register(signal.SIGSYS, all_threads=False)
            try:
                listener = _install(programs.named, all_threads=True, listener=True)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                # Somebody outside (a container's manager) has a listener already, and there can be but one.
            else:
                self._report.layers.append("listener")
                self._listening = True
                return listener
        _install(programs.execute, all_threads=True)
        return -1

    def seal(self) -> None:
        """S2, its end: what handed the listener over is denied from now on.

        Raises:
            SandboxError: the kernel refuses the filter.
        """
        if self._listening and self._programs is not None and self._programs.seal is not None:
            with self._layer("seal"):
                _install(self._programs.seal, all_threads=True)

    def report(self) -> Report:
        """What holds."""
        return self._report

    @contextlib.contextmanager
    def _layer(self, *names: str) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            self._give_up(f"{names[0]} could not be put in force: {_explain(error)}")
        else:
            self._report.layers += names

    def _do_without(self) -> None:
        """Another system than Linux, or a build without libseccomp: what the system confines us by, or nothing."""
        config = self._config
        confined = macos.require_sandbox(config.custom_nodes, allow_unsandboxed=config.allow_unsandboxed)
        if confined == "none":
            self._give_up("this build has no seccomp")
        else:
            self._report.layers.append(confined)

    def _give_up(self, why: str) -> None:
        if not self._config.allow_unsandboxed:
            raise SandboxError(f"{why}; VORTEX_ALLOW_UNSANDBOXED=1 runs without it")
        self._report.missing.append(why)


@functools.cache  # a zygote finds them before it forks
def readable(folders: tuple[str, ...]) -> list[tuple[bytes, int]]:
    """Landlock's rules for the installation and ``folders``. Raises ConfigError as ``landlock.readonly_rules``."""
    return landlock.readonly_rules(folders)


def visible(config: WorkerConfig) -> view.View:
    """What a worker of that configuration sees. Raises ConfigError as ``landlock.readonly_rules``."""
    sockets = () if config.socket_fd >= 0 else (config.socket,)
    return _outline((*config.models, *config.custom_nodes), config.spellings, sockets)


@functools.cache  # a zygote finds the links before it forks
def _outline(folders: tuple[str, ...], spellings: tuple[str, ...], sockets: tuple[str, ...]) -> view.View:
    return view.outline(readable(folders), landlock.spellings((*folders, *spellings)), sockets)


def programs(config: WorkerConfig) -> Programs:
    """The filters that ``config`` asks for. Compiled once: by a supervisor, or in a zygote before it forks.

    Raises:
        ConfigError: as ``compile_programs``.
    """
    key = _key(config)
    if key not in _compiled:
        _compiled[key] = compile_programs(config)
    return _compiled[key]


def remember_programs(config: WorkerConfig, compiled: Programs) -> None:
    """Let ``programs`` give these, which were compiled elsewhere."""
    _compiled[_key(config)] = compiled


_compiled: dict[tuple[str, bool, bool, bool], Programs] = {}


def _key(config: WorkerConfig) -> tuple[str, bool, bool, bool]:
    return config.seccomp_policy, config.name_denials, config.wxorx, config.has_card


def compile_programs(config: WorkerConfig) -> Programs:
    """The filters of start-up and of jobs, for the policy of that name or file.

    With ``wxorx``, that of jobs lets no memory become executable; the one of start-up, which loads extension
    modules, stays as it is. With ``card``, that of start-up lets CUDA open the card.

    Where filters disagree, the kernel takes the strictest answer, and among equals the newest filter's. So if a
    listener is to hear of denied calls, the bootstrap filter must not kill by itself: before the lockdown, when
    only trusted code runs, what it denies fails with ENOSYS.

    Raises:
        ConfigError: it can't be read, or is malformed.
    """
    execute = seccomp.load_policy(config.seccomp_policy)
    if config.wxorx:
        execute = execute.without_code()
    bootstrap = seccomp.load_policy("bootstrap")
    if config.has_card:
        bootstrap = seccomp.load_policy("cuda_start").including(bootstrap)  # in this order: its errors count
    bootstrap = bootstrap.including(execute)
    first = seccomp.compile_policy(bootstrap, notify=config.name_denials)
    second = seccomp.compile_policy(execute)
    if not config.name_denials:
        return Programs(first, second, None, None)
    handing_over = execute.including(seccomp.load_policy("handover"))
    return Programs(first, second, seccomp.compile_policy(handing_over, notify=True), seccomp.compile_seal())


def _install(program: seccomp.Program, *, all_threads: bool, listener: bool = False) -> int:
    found = lockdown.install_filter(program.for_pid(os.getpid()).code, all_threads=all_threads, listener=listener)
    return -1 if found is None else found


def _open_descriptors(config: WorkerConfig) -> Descriptors:
    if config.shm_name:
        path = "/dev/shm" + config.shm_name
        where = f"VORTEX_SHM_NAME is {config.shm_name!r}"
    else:
        path = f"/proc/self/fd/{config.shm_fd}"
        where = f"VORTEX_SHM_FD is {config.shm_fd}"
    try:
        arena = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW * bool(config.shm_name))
        readonly = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW * bool(config.shm_name))
    except OSError as error:
        raise ConfigError(f"{where}, which can't be opened: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(arena).st_mode):
        raise ConfigError(f"{where}, which is not shared memory")
    if config.socket_fd >= 0:
        try:
            is_socket = stat.S_ISSOCK(os.fstat(config.socket_fd).st_mode)
        except OSError:
            is_socket = False
        if not is_socket:
            raise ConfigError(f"VORTEX_SOCKET is {config.socket!r}, which is not an open socket")
    return Descriptors(arena, readonly, config.socket_fd)


def _check_memory_limit(limit: int) -> None:
    """Refuse one under which the worker could not even start. What RLIMIT_DATA counts, a fork has from its zygote."""
    if sys.platform != "linux":
        return
    with open("/proc/self/statm") as file:
        has = int(file.read().split()[5]) * os.sysconf("SC_PAGESIZE")
    least = -(-(has + _STARTING) >> 20)
    if limit < least << 20:
        raise ConfigError(
            f"the memory limit is {limit} bytes, and a worker that starts here has {has >> 20} MiB: "
            f"it takes {least} MiB or more, and what jobs need"
        )


def _explain(error: OSError | RuntimeError) -> str:
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return f"{error.filename!r} was checked when no part of it was a link, and now one is"
    return str(error)


def _log_limit() -> int:
    """RLIMIT_FSIZE: nothing may be written to files, but for a log that is one."""
    info = os.fstat(2)
    return info.st_size + _LOG_FILE_LIMIT if stat.S_ISREG(info.st_mode) else 0
