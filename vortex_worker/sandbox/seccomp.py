"""Compiles a policy to the program that the kernel runs before every system call.

    policy = load_policy("execute")
    program = compile_policy(policy)                   # once, before it is needed: a few milliseconds
    install_filter(program.for_pid(os.getpid()).code, all_threads=True)       # later: microseconds

libseccomp does the compiling (only its ``EQ`` and ``MASKED_EQ`` comparisons: versions before 2.6.1 can
miscompile the ordered ones). Installing is the core's work, in C, after a fork.
"""

from __future__ import annotations

import os
import struct
from typing import Any, NamedTuple

from vortex_worker.errors import ConfigError
from vortex_worker.sandbox.policy import ALL_64_BITS, SELF_PID, Policy, Rule
from vortex_worker.sandbox.policy_file import POLICIES, read_policy, shipped_policy

__all__ = ["Policy", "Program", "available", "compile_policy", "compile_seal", "load_policy"]

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jump if true, jump if false, constant
_JEQ = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_MAX_PROGRAM = 4096 * _INSTRUCTION.size  # BPF_MAXINSNS: what the kernel takes
_PLACEHOLDER = struct.pack("=I", SELF_PID)
_BINARY_TREE = 2  # SCMP_FLTATR_CTL_OPTIMIZE
_SEALED = ("seccomp", "sendmsg")  # allowed by policies/handover.toml for a moment


class Program(NamedTuple):
    """A compiled policy. ``code`` is an array of ``struct sock_filter``, ready for seccomp(2)."""

    name: str
    code: bytes
    allowed: tuple[str, ...]  # calls allowed with some or all arguments
    refused: tuple[str, ...]  # calls that fail with an errno

    @property
    def sha256(self) -> str:
        """Hash of the program, the same for every process: taken with the process's number left blank."""
        from hashlib import sha256

        return sha256(self.code).hexdigest()

    def for_pid(self, pid: int) -> Program:
        """The same program with ``self_pid`` filled in. Cheap enough for after a fork.

        A program that is installed without this matches no process at all there, which is safe.
        """
        if not 0 < pid < 1 << 22:
            raise ValueError(f"{pid} is not a process number")
        code = bytearray(self.code)
        at = code.find(_PLACEHOLDER)
        while at >= 0:
            if at % _INSTRUCTION.size == 4 and code[at - 4] == _JEQ:
                code[at : at + 4] = struct.pack("=I", pid)
            at = code.find(_PLACEHOLDER, at + 1)
        return self._replace(code=bytes(code))


def available() -> bool:
    """Whether this build can compile policies: Linux, with libseccomp."""
    try:
        _library()
    except ConfigError:
        return False
    return True


def load_policy(name_or_path: str | os.PathLike[str]) -> Policy:
    """A policy of this package by name (``bootstrap``, ``execute``, ``strict``), or a TOML file by path.

    Args:
        name_or_path: a path has a ``/`` in it or ends in ``.toml``.

    Raises:
        ConfigError: the policy is unknown, unreadable, empty, malformed or ambiguous, or names a system call
            that libseccomp doesn't know. The message names file, table and key.
    """
    name = os.fspath(name_or_path)
    if "/" in name or name.endswith(".toml"):
        policy = read_policy(name)
    else:
        if not name.isidentifier() or not os.path.exists(os.path.join(POLICIES, name + ".toml")):
            known = sorted(file.removesuffix(".toml") for file in os.listdir(POLICIES) if file.endswith(".toml"))
            raise ConfigError(f"no policy {name!r}; there are {', '.join(known)}, or the path of a TOML file")
        policy = shipped_policy(name)
    if available():
        for call, rules in policy.rules.items():
            if number_of(call) is None:
                where = f"policy {policy.path}: [{rules[0].group}] {call}"
                raise ConfigError(f"{where}: is not a system call that libseccomp knows")
    return policy


def compile_policy(policy: Policy, *, pid: int | None = None, notify: bool = False) -> Program:
    """Compile a policy for this machine's architecture; calls of any other one meet the default, x32 too.

    Args:
        pid: fill ``self_pid`` in at once; None leaves it for :meth:`Program.for_pid`.
        notify: calls that the policy doesn't mention, and those of other architectures, go to the filter's
            listener (seccomp_unotify(2)), which can name them before it kills the process; without a listener
            they fail with ENOSYS.

    Raises:
        ConfigError: libseccomp is missing, or refuses a rule.
    """
    _, lib = _library()
    with _Builder(lib.SCMP_ACT_NOTIFY if notify else lib.SCMP_ACT_KILL_PROCESS) as builder:
        for rules in policy.rules.values():
            for rule in rules:
                # What a rule kills is left to the default: libseccomp refuses rules that repeat it.
                if rule.action != "kill_process":
                    builder.add(rule, f"policy {policy.path}: [{rule.group}] {rule.call}")
        code = builder.program(f"policy {policy.path}")
    program = Program(policy.name, code, policy.allowed, policy.refused)
    return program if pid is None else program.for_pid(pid)


def compile_seal() -> Program:
    """The last filter of a worker whose supervisor holds the listener: what handed it over is death now.

    All else, calls of other architectures too, it leaves to the filters below it. Without this one, hostile
    code could send descriptors.
    """
    _, lib = _library()
    with _Builder(lib.SCMP_ACT_ALLOW) as builder:
        for call in _SEALED:
            builder.add(Rule(call, "kill_process", 0, (), "the handover is over", "seal"), "seal")
        return Program("seal", builder.program("seal"), (), ())


class _Builder:
    """One filter in the making. Owns libseccomp's context."""

    def __init__(self, default: int) -> None:
        """``default`` is for every call that no rule matches, and for calls of other architectures."""
        self._ffi, self._lib = ffi, lib = _library()
        self._context = lib.seccomp_init(default)
        if self._context == ffi.NULL:
            raise ConfigError("libseccomp could not start a filter")
        _check(
            lib.seccomp_attr_set(self._context, lib.SCMP_FLTATR_ACT_BADARCH, default),
            "arch",
        )
        _check(lib.seccomp_attr_set(self._context, lib.SCMP_FLTATR_CTL_OPTIMIZE, _BINARY_TREE), "optimize")

    def __enter__(self) -> _Builder:
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.seccomp_release(self._context)

    def add(self, rule: Rule, where: str) -> None:
        ffi, lib = self._ffi, self._lib
        number = number_of(rule.call)
        if number is None or number < 0:  # a call of another architecture: nothing to match here
            return
        if rule.action == "errno":
            action = lib.vw_act_errno(rule.error)
        else:
            action = lib.SCMP_ACT_ALLOW if rule.action == "allow" else lib.SCMP_ACT_KILL_PROCESS
        conditions = [
            (arg, lib.SCMP_CMP_EQ, value, 0) if mask == ALL_64_BITS else (arg, lib.SCMP_CMP_MASKED_EQ, mask, value)
            for arg, mask, value in rule.conditions
        ]
        array = ffi.new("struct scmp_arg_cmp[]", conditions)
        _check(lib.seccomp_rule_add_array(self._context, action, number, len(conditions), array), where)

    def program(self, where: str) -> bytes:
        buffer = self._ffi.new("char[]", _MAX_PROGRAM)
        size = self._ffi.new("size_t *", _MAX_PROGRAM)
        _check(self._lib.vw_export_bpf(self._context, buffer, size), where)
        return bytes(self._ffi.buffer(buffer, size[0]))


def number_of(call: str) -> int | None:
    """The call's number; negative if this architecture lacks it; None if libseccomp never heard of it."""
    _, lib = _library()
    number: int = lib.seccomp_syscall_resolve_name(call.encode())
    return None if number == lib.__NR_SCMP_ERROR else number


def name_of(number: int, arch: int | None = None) -> str | None:
    """The name of a call of this or of another architecture (``AUDIT_ARCH_…``); None if it has none.

    Raises:
        ConfigError: this build has no libseccomp.
    """
    ffi, lib = _library()
    wide = arch is None and number >> 30 == 1
    token = lib.SCMP_ARCH_X32 if wide else lib.seccomp_arch_native() if arch is None else arch
    found = lib.seccomp_syscall_resolve_num_arch(token, number)
    if found == ffi.NULL:
        return None
    try:
        return str(ffi.string(found), "ascii")
    finally:
        lib.free(found)


def _check(rc: int, where: str) -> None:
    if rc < 0:
        raise ConfigError(f"{where}: libseccomp refused it: {os.strerror(-rc)}")


def _library() -> tuple[Any, Any]:
    """``(ffi, lib)`` of libseccomp. ConfigError where the build has none."""
    try:
        from vortex_worker._core._seccomp import ffi, lib
    except ImportError as error:
        raise ConfigError(f"no system-call filter can be compiled here: {error}") from error
    return ffi, lib
