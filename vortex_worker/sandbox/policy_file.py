"""Reads a policy from a TOML table, and refuses what it can't be sure of: by file, table and key.

The format is explained in ``docs/sandbox.md``. In short::

    [memory]                                     a group; its name is for the reader
    futex = "locks and condition variables"      allowed, for this reason
    mremap = { errno = "ENOMEM", reason = "…" }  refused softly

    [[memory.mmap]]                              one of several rules for a call
    reason = "…"
    masked_eq = [{ index = 3, mask = "MAP_TYPE", value = "MAP_PRIVATE" }]

    [default]                                    last: what happens to every other call
    action = "kill_process"
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

from vortex_worker.errors import ConfigError
from vortex_worker.sandbox.policy import ALL_64_BITS, LOW_32_BITS, MAX_ARGS, SELF_PID, Condition, Policy, Rule

__all__ = ["CONSTANTS", "POLICIES", "read_policy", "shipped_policy"]

#: Where the policies of this package live.
POLICIES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "policies")

MAX_FILE_SIZE = 1 << 20  # 1 MiB; the largest policy here has 16 kB

#: The kernel's numbers that policies may call by name, besides ``O_*`` (those are taken from ``os``, because
#: they differ by architecture). All of these are the same on x86-64 and aarch64.
CONSTANTS: dict[str, int] = {
    "NULL": 0,
    # mmap, mprotect
    "PROT_NONE": 0, "PROT_READ": 1, "PROT_WRITE": 2, "PROT_EXEC": 4,
    "MAP_SHARED": 1, "MAP_PRIVATE": 2, "MAP_DROPPABLE": 8, "MAP_TYPE": 0x0F, "MAP_ANONYMOUS": 0x20,
    # clone
    "CLONE_VM": 0x100, "CLONE_FS": 0x200, "CLONE_FILES": 0x400, "CLONE_SIGHAND": 0x800,
    "CLONE_THREAD": 0x1_0000, "CLONE_SYSVSEM": 0x4_0000, "CLONE_SETTLS": 0x8_0000,
    "CLONE_PARENT_SETTID": 0x10_0000, "CLONE_CHILD_CLEARTID": 0x20_0000,
    # fcntl
    "F_DUPFD": 0, "F_GETFD": 1, "F_SETFD": 2, "F_GETFL": 3, "F_SETFL": 4, "F_SETLK": 6, "F_SETLKW": 7,
    "F_DUPFD_CLOEXEC": 1030, "FD_CLOEXEC": 1,
    # prctl
    "PR_GET_DUMPABLE": 3, "PR_SET_NAME": 15, "PR_GET_NAME": 16, "PR_GET_SECCOMP": 21,
    "PR_SET_NO_NEW_PRIVS": 38, "PR_GET_NO_NEW_PRIVS": 39, "PR_SET_VMA": 0x5356_4D41,
    # seccomp
    "SECCOMP_SET_MODE_FILTER": 1, "SECCOMP_GET_ACTION_AVAIL": 2, "SECCOMP_GET_NOTIF_SIZES": 3,
    # sockets
    "AF_UNIX": 1, "SOCK_STREAM": 1, "SOCK_SEQPACKET": 5, "SOCK_CLOEXEC": 0o2000000, "SOCK_NONBLOCK": 0o4000,
    # signals
    "SIGILL": 4, "SIGABRT": 6, "SIGBUS": 7, "SIGFPE": 8, "SIGSEGV": 11,
    # ioctl
    "TCGETS": 0x5401, "FIONBIO": 0x5421, "FIOCLEX": 0x5451,
}  # fmt: skip

_RULE_KEYS = {"reason", "eq", "eq64", "masked_eq", "any_bit", "errno", "action"}
_CONDITION_KEYS = {
    "eq": {"index", "value"},
    "eq64": {"index", "value"},
    "masked_eq": {"index", "mask", "value"},
    "any_bit": {"index", "mask"},
}
_ACTIONS = ("allow", "kill_process")
_TOP_KEYS = {"default", "extends"}  # everything else at the top is a group


@cache
def shipped_policy(name: str) -> Policy:
    """A policy of this package, read once: its file doesn't change under a running process."""
    return read_policy(os.path.join(POLICIES, name + ".toml"))


def read_policy(path: str) -> Policy:
    """Read one TOML file. A call in it replaces all rules that the policy it extends has for the call.

    Raises:
        ConfigError: naming the file, the table and the key, if anything is missing, unknown or ambiguous.
    """
    return _Reader(path).policy()


class _Reader:
    """One file on its way to a :class:`Policy`. Holds only what error messages need, and who extends it."""

    def __init__(self, path: str, extended_by: tuple[str, ...] = ()) -> None:
        self.path = path
        self._chain = (*extended_by, os.path.realpath(path))

    def fail(self, where: str, problem: str) -> ConfigError:
        return ConfigError(": ".join(part for part in (f"policy {self.path}", where, problem) if part))

    def policy(self) -> Policy:
        table = self.parse()
        base = self.base(table["extends"]) if "extends" in table else None
        if "default" in table:
            if list(table)[-1] != "default":
                raise self.fail("[default]", "must be the last table: a policy is read from top to bottom")
            default, default_reason = self.default(table["default"])
        elif base is not None:
            default, default_reason = base.default, base.default_reason
        else:
            raise self.fail("", "there is no [default] table, so nothing says what happens to other calls")

        own: dict[str, tuple[Rule, ...]] = {}
        for group, calls in table.items():
            if group in _TOP_KEYS:
                continue
            if not isinstance(calls, dict):
                raise self.fail(group, "is neither a group of calls nor 'extends' or 'default'")
            for call, value in calls.items():
                if call in own:
                    raise self.fail(f"[{group}] {call}", f"is in [{own[call][0].group}] already")
                own[call] = tuple(self.rules(group, call, value))
        if not own:
            raise self.fail("", "holds no rule")
        rules = {**(base.rules if base else {}), **own}
        name = os.path.splitext(os.path.basename(self.path))[0]
        return Policy(name, self.path, rules, default, default_reason)

    def parse(self) -> dict[str, Any]:
        try:
            with open(self.path, "rb") as file:
                data = file.read(MAX_FILE_SIZE + 1)
        except OSError as error:
            raise self.fail("", f"can't be read: {error.strerror}") from error
        if len(data) > MAX_FILE_SIZE:
            raise self.fail("", f"is larger than {MAX_FILE_SIZE} bytes")
        import tomllib  # a zygote that is given its programs reads no policy

        try:
            table = tomllib.loads(data.decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise self.fail("", f"is not TOML: {error}") from error
        if not table:
            raise self.fail("", "is empty")
        return table

    def default(self, value: Any) -> tuple[str, str]:
        where = "[default]"
        if not isinstance(value, dict):
            raise self.fail(where, "must be a table with 'action' and 'reason'")
        self.only(where, value, {"action", "reason"})
        action = value.get("action")
        if action != "kill_process":  # an allow-list that ends in "allow" would be no list at all
            raise self.fail(f"{where} action", f"is {action!r}; the only default is 'kill_process'")
        return action, self.reason(where, value)

    def base(self, name: Any) -> Policy:
        """The policy that this one extends: one of this package by its name, or a file, seen from this one."""
        if isinstance(name, str) and name.endswith(".toml") and "\0" not in name:
            path = os.path.join(os.path.dirname(self.path), name)
            if os.path.realpath(path) in self._chain:
                raise self.fail("extends", f"is {name!r}, and so the policy extends itself")
            return _Reader(path, self._chain).policy()
        if not isinstance(name, str) or not name.isidentifier():
            raise self.fail("extends", f"is {name!r}; it takes the name of a policy such as 'execute', or a TOML file")
        if os.path.abspath(self.path) == os.path.join(POLICIES, name + ".toml"):
            raise self.fail("extends", "names the policy itself")
        if not os.path.exists(os.path.join(POLICIES, name + ".toml")):
            known = sorted(file.removesuffix(".toml") for file in os.listdir(POLICIES) if file.endswith(".toml"))
            near = difflib.get_close_matches(name, known, n=2)
            meant = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise self.fail("extends", f"is {name!r}: there are {', '.join(known)}, or a TOML file{meant}")
        return shipped_policy(name)

    def rules(self, group: str, call: str, value: Any) -> Iterator[Rule]:
        where = f"[{group}] {call}"
        if isinstance(value, str):
            value = [{"reason": value}]
        elif isinstance(value, dict):
            value = [value]
        if not isinstance(value, list) or not value:
            raise self.fail(where, "takes a reason, a rule, or a list of rules")
        made: list[Rule] = []
        for number, item in enumerate(value, 1):
            here = where if len(value) == 1 else f"{where} rule {number}"
            for rule in self.rule(here, group, call, item):
                self.unambiguous(here, rule, made)
                made.append(rule)
        yield from made

    def unambiguous(self, where: str, rule: Rule, earlier: list[Rule]) -> None:
        """Order must not matter: libseccomp keeps none, and an unconditional rule drops all the others."""
        for other in earlier:
            if not rule.conditions or not other.conditions:
                raise self.fail(where, "a rule without conditions must be the call's only rule")
            if (rule.action, rule.error) != (other.action, other.error) and not rule.disjoint(other):
                raise self.fail(where, f"overlaps an earlier rule with another outcome ({other.reason!r})")

    def rule(self, where: str, group: str, call: str, item: Any) -> Iterator[Rule]:
        """One rule of the file; several of the policy where it says ``any_bit``."""
        if not isinstance(item, dict):
            raise self.fail(where, f"is {item!r}; a rule is a table")
        self.only(where, item, _RULE_KEYS)
        reason = self.reason(where, item)
        action, error = self.action(where, item)
        conditions: list[Condition] = []
        for kind in ("eq", "eq64", "masked_eq"):
            conditions += self.conditions(where, kind, item)
        conditions.sort(key=lambda condition: condition.arg)
        alternatives = self.conditions(where, "any_bit", item)
        if not alternatives:
            yield Rule(call, action, error, tuple(conditions), reason, group)
        for bit in alternatives:
            yield Rule(call, action, error, (*conditions, bit), reason, group)

    def action(self, where: str, item: dict[str, Any]) -> tuple[str, int]:
        if "errno" in item:
            if "action" in item:
                raise self.fail(where, "has both 'errno' and 'action'")
            number = getattr(errno, item["errno"], None) if isinstance(item["errno"], str) else None
            if not isinstance(number, int):
                raise self.fail(f"{where} errno", f"is {item['errno']!r}; it takes a name such as 'EACCES'")
            return "errno", number
        action = item.get("action", "allow")
        if action not in _ACTIONS:
            raise self.fail(f"{where} action", f"is {action!r}; it takes one of {', '.join(_ACTIONS)}")
        return action, 0

    def conditions(self, where: str, kind: str, item: dict[str, Any]) -> list[Condition]:
        if kind not in item:
            return []
        here = f"{where} {kind}"
        entries = item[kind]
        if not isinstance(entries, list) or not entries:
            raise self.fail(here, "takes a list of at least one condition")
        if kind == "any_bit" and len(entries) != 1:
            raise self.fail(here, "takes one condition")
        made = []
        for entry in entries:
            keys = _CONDITION_KEYS[kind]
            if not isinstance(entry, dict) or set(entry) != keys:
                raise self.fail(here, f"each condition has the keys {', '.join(sorted(keys))}")
            index = entry["index"]
            if type(index) is not int or not 0 <= index < MAX_ARGS:
                raise self.fail(f"{here} index", f"is {index!r}; arguments are numbered 0 to {MAX_ARGS - 1}")
            if kind == "any_bit":
                bits = self.number(f"{here} mask", entry["mask"])
                made += [Condition(index, 1 << bit, 1 << bit) for bit in range(64) if bits >> bit & 1]
                continue
            value = self.number(f"{here} value", entry["value"])
            if kind == "masked_eq":
                mask = self.number(f"{here} mask", entry["mask"])
            else:
                mask = LOW_32_BITS if kind == "eq" else ALL_64_BITS
            if not mask or value & ~mask:
                problem = f"{value:#x} has bits outside the mask {mask:#x}: it can never hold"
                raise self.fail(f"{here} value", problem)
            made.append(Condition(index, mask, value))
        return made

    def number(self, where: str, value: Any) -> int:
        """An integer, ``"A|B"`` of known constants, or ``"~(A|B)"``: every other bit of an int."""
        if type(value) is int and 0 <= value <= ALL_64_BITS:
            return value
        if not isinstance(value, str):
            raise self.fail(where, f"is {value!r}; it takes a number of 64 bits or names such as 'O_CREAT|O_TRUNC'")
        inverted = value.startswith("~(") and value.endswith(")")
        number = 0
        for name in (value[2:-1] if inverted else value).split("|"):
            number |= self.constant(where, name.strip())
        return LOW_32_BITS & ~number if inverted else number

    def constant(self, where: str, name: str) -> int:
        if name == "self_pid":
            return SELF_PID
        bits = getattr(os, name, None) if name.startswith("O_") else CONSTANTS.get(name)
        if not isinstance(bits, int):
            raise self.fail(where, f"names {name!r}, which is no constant known here; write its number")
        return bits

    def reason(self, where: str, item: dict[str, Any]) -> str:
        reason = item.get("reason")
        if not isinstance(reason, str) or not reason.strip():
            raise self.fail(f"{where} reason", "is missing: every line says why it is there")
        return reason

    def only(self, where: str, item: dict[str, Any], known: set[str]) -> None:
        for key in item:
            if key not in known:
                raise self.fail(f"{where} {key}", f"is not known; known keys are {', '.join(sorted(known))}")
