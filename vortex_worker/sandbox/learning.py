"""What a policy would have to say for a program to run under it: learned from the calls that it denied.

The supervisor of a fabric that learns lets each denied call through and notes it here; what comes out is a policy
file that extends the one in force. It is a draft for a person to read: whatever ran could have made any call it liked.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from vortex_worker.sandbox.policy import ALL_64_BITS, LOW_32_BITS, SELF_PID, Condition, Policy, Rule

__all__ = ["MOST", "Lesson", "Lessons"]

MOST = 1000  # different lines; a worker that needs more is doing something else than work

_HEAD = """\
# UNSAFE UNTIL YOU HAVE READ IT. Learned by vortex-worker: the calls that policy {name!r} denied while something ran.
# Each was let through, to see what comes next. Code that is not to be trusted may have made any of them. Keep the
# lines that you can explain, and narrow them where you can; a call whose line goes ends its worker again.

extends = {extends}

[learned]
"""
_TAIL = """
[default]
action = "kill_process"
reason = "As in the policy that this one extends."
"""


class Lesson(NamedTuple):
    """A line that is missing: one call, under the conditions by which the policy tells its calls apart."""

    call: str
    conditions: tuple[Condition, ...]


class Lessons:
    """The calls that were denied under one policy. For one thread."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._seen: dict[Lesson, Counter[str]] = {}
        self._args: dict[Lesson, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def note(self, call: str, args: tuple[int, ...], who: str, pid: int) -> bool:
        """Note a denied call.

        Args:
            args: its six registers.
            who: on whose behalf it was made, in words.
            pid: of the worker.

        Returns:
            whether it is new.

        Raises:
            ValueError: there are :data:`MOST` lessons already.
        """
        lesson = Lesson(call, tuple(self._conditions(call, args, pid)))
        new = lesson not in self._seen
        if new and len(self._seen) >= MOST:
            raise ValueError(f"{MOST} different calls were denied: no policy is learned from that")
        self._seen.setdefault(lesson, Counter())[who] += 1
        self._args.setdefault(lesson, args)
        return new

    def _conditions(self, call: str, args: tuple[int, ...], pid: int) -> Iterator[Condition]:
        """What of the arguments counts: the bits that the policy's own rules for the call look at.

        So the new line can't overlap with them: it holds where none of them does.
        """
        masks: dict[int, int] = {}
        own_pid = set()
        for rule in self.policy.rules.get(call, ()):
            for arg, mask, value in rule.conditions:
                masks[arg] = masks.get(arg, 0) | mask
                if value == SELF_PID:
                    own_pid.add(arg)
        for arg, mask in sorted(masks.items()):
            value = args[arg] & mask
            if mask == ALL_64_BITS and value >> 32:
                continue  # a pointer, and another one the next time
            yield Condition(arg, mask, SELF_PID if arg in own_pid and value == pid else value)

    def lines(self) -> list[dict[str, object]]:
        """What was learned, as plain data."""
        return [
            {
                "call": lesson.call,
                "conditions": [condition._asdict() for condition in lesson.conditions],
                "by": dict(by),
                "registers": list(self._args[lesson]),
            }
            for lesson, by in self._seen.items()
        ]

    def toml(self, *, beside: str) -> str:
        """The policy file: :func:`read_policy` reads it, and under it all that was noted is allowed.

        Args:
            beside: the folder that it will lie in.
        """
        by_call: dict[str, list[Lesson]] = {}
        for lesson in sorted(self._seen, key=lambda lesson: lesson.conditions != ()):
            by_call.setdefault(lesson.call, []).append(lesson)
        plain, tables = [], []
        for call, lessons in by_call.items():
            first = lessons[0]
            registers = f"# seen with registers {', '.join(map(hex, self._args[first]))}\n"
            if not first.conditions:
                plain.append(f"{registers}{call} = {_text(self._reason(lessons))}\n")
                continue
            learned = [Rule(call, "allow", 0, x.conditions, self._reason([x]), "learned") for x in lessons]
            learned = [rule for rule in learned if not any(o.covers(rule) for o in learned if o is not rule)]
            kept = [
                rule
                for rule in self.policy.rules.get(call, ())
                if not any(other.covers(rule) for other in learned)
                and (rule.action == "allow" or (rule.action == "errno" and all(map(rule.disjoint, learned))))
            ]
            tables += [_table(rule) for rule in kept] + [registers + _table(rule) for rule in learned]
        head = _HEAD.format(name=self.policy.name, extends=_text(self._base(beside)))
        return head + "".join(plain) + "\n" + "\n".join(tables) + _TAIL

    def _base(self, beside: str) -> str:
        from vortex_worker.sandbox.policy_file import POLICIES

        path = os.path.realpath(self.policy.path)
        if os.path.dirname(path) == os.path.realpath(POLICIES):
            return self.policy.name
        return os.path.relpath(path, os.path.realpath(beside))

    def _reason(self, lessons: list[Lesson]) -> str:
        by: Counter[str] = Counter()
        for lesson in lessons:
            by += self._seen[lesson]
        return "Learned: " + ", ".join(f"{who} ({times} times)" for who, times in by.most_common(5)) + "."


def _table(rule: Rule) -> str:
    lines = [f"[[learned.{rule.call}]]", f"reason = {_text(rule.reason)}"]
    if rule.action == "errno":
        lines.append(f"errno = {_text(errno.errorcode[rule.error])}")
    conditions: dict[str, list[str]] = {}
    for arg, mask, value in rule.conditions:
        shown = _text("self_pid") if value == SELF_PID else hex(value)
        if mask in (LOW_32_BITS, ALL_64_BITS):
            kind, entry = "eq" if mask == LOW_32_BITS else "eq64", f"{{ index = {arg}, value = {shown} }}"
        else:
            kind, entry = "masked_eq", f"{{ index = {arg}, mask = {mask:#x}, value = {shown} }}"
        conditions.setdefault(kind, []).append(entry)
    lines += [f"{kind} = [{', '.join(entries)}]" for kind, entries in conditions.items()]
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    """A TOML string. JSON's escapes are TOML's, but for the one control character that JSON lets stand."""
    return json.dumps(value.encode("utf-8", "replace").decode(), ensure_ascii=False).replace("\x7f", "\\u007f")
