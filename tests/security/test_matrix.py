"""The kernel does what the policies say: ``vortex-worker doctor --matrix``, and that it would notice if not.

Here each 32nd call is tried; ``VORTEX_MATRIX=full`` tries them all, which takes some minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sandbox_child import supported

from vortex_worker._core import probe
from vortex_worker.config import WorkerConfig
from vortex_worker.sandbox import bpf, matrix, seccomp
from vortex_worker.sandbox.policy import Condition, Policy, Rule

pytestmark = [
    pytest.mark.skipif(not supported(), reason="this machine lacks seccomp or Landlock"),
    pytest.mark.skipif(not probe.supported(), reason="calls can be made by hand on x86-64 only"),
]
STEP = 1 if os.environ.get("VORTEX_MATRIX") == "full" else 32


def in_a_small_process(profile: str) -> dict[str, Any]:
    """Some hundred forks, of a process that has not imported all that this one has."""
    program = (
        "import json, sys; from vortex_worker.sandbox import matrix; "
        "print(json.dumps(matrix.try_all(sys.argv[1], step=int(sys.argv[2]))._asdict()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, profile, str(STEP)], capture_output=True, text=True, check=True
    )  # fmt: skip
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("profile", matrix.PROFILES)
def test_the_kernel_does_as_the_policy_says(profile: str) -> None:
    finding = in_a_small_process(profile)
    assert finding["mismatches"] == []
    assert finding["redundant"] == []
    assert finding["as_policy"] == finding["tested"] > 9000 // STEP


@pytest.mark.parametrize("profile", matrix.PROFILES)
def test_the_programs_do_as_the_policy_says(profile: str) -> None:
    """All of them: nothing has to die for it."""
    it = matrix.Profile(profile)
    wrong = [vector for vector in matrix.vectors(it) if it.by_policy(vector) != it.by_program(vector)]
    assert wrong == []


@pytest.fixture
def another_policy() -> Iterator[list[str]]:
    """Makes matrix compare with a policy that is not the one in force."""
    load = seccomp.load_policy
    lies: list[str] = []

    def lie(name: str) -> Policy:
        policy = load(name)
        rules = {call: kept for call, kept in policy.rules.items() if call not in lies}
        return policy._replace(rules=rules)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix.seccomp, "load_policy", lie)
        yield lies


def test_a_call_that_a_policy_does_not_mention_is_noticed(another_policy: list[str]) -> None:
    matrix.programs(WorkerConfig(socket="", seccomp_policy="execute"))  # compiled, and kept, before the lie
    another_policy += ["getpid", "uname"]
    it = matrix.Profile("execute")
    tried = [matrix.Vector(seccomp.number_of(call) or 0) for call in ("getpid", "uname", "read", "execve")]
    expected = [it.by_policy(vector) for vector in tried]
    assert [action for action, _ in expected] == ["kill_process", "kill_process", "allow", "kill_process"]
    found = [decision for _, decision in matrix._Prober(it, tried, "main")]
    assert found == [("allow", 0), ("errno", 1), ("allow", 0), ("kill_process", 0)]
    assert [it.by_program(vector) for vector in tried] == found


def test_redundant_rules_are_found() -> None:
    def rule(action: str, *conditions: Condition, reason: str = "r") -> Rule:
        return Rule("mmap", action, 0, conditions, reason, "g")

    wide = rule("allow", Condition(3, 1, 1))
    narrow = rule("allow", Condition(2, 4, 0), Condition(3, 3, 1), reason="covered")
    other = rule("allow", Condition(3, 3, 2), reason="another")
    dead = Rule("read", "kill_process", 0, (), "as the default", "g")
    policy = seccomp.load_policy("execute")._replace(rules={"mmap": (wide, narrow, other), "read": (dead,)})
    assert matrix.redundant(policy) == ("mmap: covered", "read: as the default")


def test_an_own_policy_can_be_tried(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'extends = "strict"\n[mine]\ngetpgid = "why not"\n[default]\naction = "kill_process"\nreason = "as ever"\n'
    )
    finding = matrix.try_all(str(path), threads=("main",), step=64)
    assert finding.mismatches == []
    assert "getpgid" in finding.allowed


def test_the_evaluator_knows_other_architectures() -> None:
    machine = bpf.Machine(seccomp.compile_policy(seccomp.load_policy("execute")).code)
    assert machine.decide(0) == ("allow", 0)
    assert machine.decide(0, arch=bpf.I386) == ("kill_process", 0)
