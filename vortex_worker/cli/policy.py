"""``vortex-worker policy``: read policies, and check one of your own."""

from __future__ import annotations

import errno
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from vortex_worker.cli import EXIT_FAILED, EXIT_USAGE
from vortex_worker.errors import ConfigError
from vortex_worker.sandbox import matrix, seccomp
from vortex_worker.sandbox.policy import Policy, Rule


def show_command(name: str, as_json: bool) -> int:
    """Every rule of a policy, with its reason. Returns the exit status."""
    try:
        policy = seccomp.load_policy(name)
    except ConfigError as error:
        Console(stderr=True).print(str(error), style="red", markup=False)
        return EXIT_USAGE
    if as_json:
        print(json.dumps(_as_dict(policy), indent=2))
        return 0
    table = Table("call", "outcome", "when", "reason", title=f"{policy.name}: {len(policy.allowed)} calls allowed")
    group = ""
    for rules in policy.rules.values():
        for rule in rules:
            if rule.group != group:
                group = rule.group
                table.add_section()
            table.add_row(rule.call, _outcome(rule), _conditions(rule), rule.reason)
    table.add_section()
    table.add_row("any other", policy.default, "", policy.default_reason)
    Console().print(table)
    return 0


def lint_command(path: str) -> int:
    """Check a policy: it can be read and compiled, means what it says, and has no line too many."""
    console, errors = Console(), Console(stderr=True)
    try:
        policy = seccomp.load_policy(path)
        program = seccomp.compile_policy(policy)
        profile = matrix.Profile(path)
        wrong = [
            vector for vector in matrix.vectors(profile) if profile.by_policy(vector) != profile.by_program(vector)
        ]
    except ConfigError as error:
        errors.print(str(error), style="red", markup=False)
        return EXIT_FAILED
    problems = [f"redundant: {line}" for line in matrix.redundant(policy)]
    problems += [f"the compiled program differs for {profile.call(vector)}{vector.args}" for vector in wrong]
    for problem in problems:
        errors.print(f"policy {policy.path}: {problem}", style="red", markup=False)
    console.print(
        f"{policy.name}: {len(policy.allowed)} calls allowed, {len(policy.refused)} refused softly, all others death; "
        f"{len(program.code) // 8} instructions",
        markup=False,
    )
    return EXIT_FAILED if problems else 0


def _outcome(rule: Rule) -> str:
    return errno.errorcode[rule.error] if rule.action == "errno" else rule.action


def _conditions(rule: Rule) -> str:
    parts = []
    for arg, mask, value in rule.conditions:
        whole = mask in (0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF)
        parts.append(f"arg{arg} = {value:#x}" if whole else f"arg{arg} & {mask:#x} = {value:#x}")
    return ", ".join(parts)


def _as_dict(policy: Policy) -> dict[str, Any]:
    return {
        "name": policy.name,
        "path": policy.path,
        "allowed": list(policy.allowed),
        "refused": list(policy.refused),
        "default": {"action": policy.default, "reason": policy.default_reason},
        "rules": [
            {
                "call": rule.call,
                "group": rule.group,
                "outcome": _outcome(rule),
                "conditions": [condition._asdict() for condition in rule.conditions],
                "reason": rule.reason,
            }
            for rules in policy.rules.values()
            for rule in rules
        ],
    }
