"""A system-call policy as data, and what it says of a call.

``policy_file.py`` reads one from TOML, ``seccomp.py`` compiles it. Nothing here needs a kernel or
libseccomp: a policy can be asked on any machine what it would do.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["ALL_64_BITS", "LOW_32_BITS", "MAX_ARGS", "SELF_PID", "Condition", "Policy", "Rule"]

#: Stands for the process's own number until :meth:`Program.for_pid` fills it in. No process can have
#: this number (Linux stops at 2**22), so a program that was never filled in matches nobody.
SELF_PID = 0x5E1F_91D0

MAX_ARGS = 6  # registers that carry arguments
LOW_32_BITS = 0xFFFF_FFFF
ALL_64_BITS = 0xFFFF_FFFF_FFFF_FFFF

_PROTECTION = 2  # the argument of mmap and its like that says what may be done with the memory
_PROT_EXEC = 4
_MAKE_CODE = ("mmap", "mprotect", "pkey_mprotect")


class Condition(NamedTuple):
    """``args[arg] & mask == value``. For an ``int``, the mask has the 32 bits that the kernel reads."""

    arg: int
    mask: int
    value: int

    def holds(self, args: tuple[int, ...]) -> bool:
        return args[self.arg] & self.mask == self.value


class Rule(NamedTuple):
    """What happens to one call when every condition holds."""

    call: str
    action: str  # "allow", "errno" or "kill_process"
    error: int  # the number, for "errno"
    conditions: tuple[Condition, ...]
    reason: str
    group: str

    def disjoint(self, other: Rule) -> bool:
        """Whether no arguments satisfy both rules: some bit must be 0 for one and 1 for the other."""
        return any(
            a.arg == b.arg and (a.value ^ b.value) & a.mask & b.mask for a in self.conditions for b in other.conditions
        )

    def covers(self, other: Rule) -> bool:
        """Whether every argument list that satisfies ``other`` satisfies this one."""
        return all(
            any(
                c.arg == w.arg and w.mask & ~c.mask == 0 and c.value & w.mask == w.value
                for c in other.conditions
            )
            for w in self.conditions
        )  # fmt: skip


class Policy(NamedTuple):
    """Rules by system call, in the order of the file, and what happens to every other call.

    The rules of one call never overlap with different outcomes, so their order does not matter.
    """

    name: str
    path: str
    rules: Mapping[str, tuple[Rule, ...]]
    default: str
    default_reason: str

    def decide(self, call: str, args: tuple[int, ...] = (0,) * MAX_ARGS) -> tuple[str, int]:
        """What this policy says of one call: ``(action, errno)``. Tests hold compiled programs to it."""
        for rule in self.rules.get(call, ()):
            if all(condition.holds(args) for condition in rule.conditions):
                return rule.action, rule.error
        return self.default, 0

    def including(self, other: Policy) -> Policy:
        """This policy, widened until it allows all that ``other`` allows.

        A filter can't be taken away, so the bootstrap filter stays in force under the execute filter: a
        worker installs ``bootstrap.including(execute)``, whichever policy ``execute`` is. Where an error of
        the one meets an allowance of the other, the allowance stays.
        """
        rules = dict(self.rules)
        for call, theirs in other.rules.items():
            ours = rules.get(call, ())
            rules[call] = ours if ours is theirs else _union(ours, theirs)
        return self._replace(rules=rules)

    def without_code(self) -> Policy:
        """This policy, less all that makes memory executable: that fails with EACCES.

        With it, memory that nobody may write and execute at once when it comes into force stays so.
        """
        reason = "W^X: no memory becomes executable after lockdown."
        rules = dict(self.rules)
        for call in _MAKE_CODE:
            if call in rules:
                refused = Rule(
                    call, "errno", errno.EACCES, (Condition(_PROTECTION, _PROT_EXEC, _PROT_EXEC),), reason, "wxorx"
                )
                data = [kept for rule in rules[call] if (kept := _of_data(rule)) is not None]
                rules[call] = (*data, refused)
        # libffi's last resort for a callback (ctypes): code in a memory file. Refused, ctypes raises MemoryError.
        reason = "ctypes callbacks, which are made of code."
        rules.setdefault("memfd_create", (Rule("memfd_create", "errno", errno.EACCES, (), reason, "wxorx"),))
        return self._replace(rules=rules)

    @property
    def allowed(self) -> tuple[str, ...]:
        """Calls that are allowed with some or all arguments."""
        return tuple(c for c, rules in self.rules.items() if any(r.action == "allow" for r in rules))

    @property
    def refused(self) -> tuple[str, ...]:
        """Calls that only ever fail with an ``errno``."""
        return tuple(c for c, rules in self.rules.items() if all(r.action == "errno" for r in rules))


def _of_data(rule: Rule) -> Rule | None:
    """The rule for memory that is not executable; None if it is only about memory that is."""
    mask = value = 0
    others = []
    for condition in rule.conditions:
        if condition.arg == _PROTECTION:  # libseccomp takes one condition an argument
            mask, value = mask | condition.mask, value | condition.value
        else:
            others.append(condition)
    if value & _PROT_EXEC:
        return None
    return rule._replace(conditions=tuple(sorted((*others, Condition(_PROTECTION, mask | _PROT_EXEC, value)))))


def _union(ours: tuple[Rule, ...], theirs: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Rules of one call that allow what either allows, and still don't overlap with different outcomes."""
    both = (*ours, *theirs)
    for rule in both:
        if rule.action == "allow" and not rule.conditions:
            return (rule,)
    made: list[Rule] = []
    for rule in sorted(both, key=lambda rule: rule.action != "allow"):
        same = [other for other in made if (other.action, other.error) == (rule.action, rule.error)]
        if any(other.conditions == rule.conditions for other in same):
            continue
        if rule.action == "allow" or all(rule.disjoint(other) for other in made if other not in same):
            made.append(rule)
    # An unconditional error can only stand alone: libseccomp would keep nothing else.
    return tuple(rule for rule in made if rule.conditions or len(made) == 1)
