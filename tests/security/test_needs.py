"""Every line of a policy is needed: taken away, some honest piece of work breaks.

A line that breaks nothing when it goes is a line that only an attacker could miss. The work is that of
``workload.py``; each rule is taken away in a process of its own, forked from one that has imported torch.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sandbox_child import supported
from test_workload import make_folder
from workload_jobs import ENDS, JOBS

from vortex_worker.sandbox import seccomp

pytestmark = [
    pytest.mark.skipif(not supported(), reason="this machine lacks seccomp or Landlock"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="which lines are needed was found on x86-64"),
]
pytest.importorskip("torch")

#: Lines for other machines than this: there, they are what keeps a worker alive.
ELSEWHERE = {
    "readlinkat": "aarch64 has no readlink",
    "faccessat": "aarch64 has no access",
    "linkat": "aarch64 has no link",
}
Run = dict[str, Any]


def lines(name: str) -> list[tuple[str, str, int]]:
    """``(policy, call, number)`` of every rule that stands in the policy's own file."""
    policy = seccomp.load_policy(name)
    base = seccomp.load_policy("strict").rules if name != "strict" else {}
    return [
        (name, call, number)
        for call, rules in policy.rules.items()
        if rules != base.get(call)
        for number, rule in enumerate(rules)
        if rule not in base.get(call, ()) and not (number and rule.reason == rules[number - 1].reason)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Run]]:
    folder = make_folder(tmp_path_factory.mktemp("models"))
    quiet = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false", "HOME": "/nonexistent"}
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("workload.py"), folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | quiet,
    ) as server:  # fmt: skip
        assert server.stdin is not None
        assert server.stdout is not None

        def ask(policy: str, without: tuple[str, int] | None, work: list[str]) -> Run:
            print(json.dumps({"policy": policy, "without": without, "work": work}), file=server.stdin, flush=True)
            return dict(json.loads(server.stdout.readline()))

        yield ask
        server.stdin.close()


def outcome(run: Run) -> tuple[int, list[str]]:
    """How it ended and what each piece of work gave, without what differs from run to run."""
    kept = [line for line in run["said"].splitlines() if line.startswith(("end ", "Fatal ", "free()"))]
    return run["end"], kept


@pytest.fixture(scope="module")
def whole(run: Callable[..., Run]) -> dict[str, dict[str, tuple[int, list[str]]]]:
    """How all the work ends under the whole policy."""
    return {
        policy: {name: outcome(run(policy, None, work)) for name, work in pieces().items()}
        for policy in ("strict", "execute")
    }


def pieces() -> dict[str, list[str]]:
    return {"all": list(JOBS)} | {name: [name] for name in ENDS}


def test_the_work_is_done(whole: dict[str, dict[str, tuple[int, list[str]]]]) -> None:
    for policy, runs in whole.items():
        status, said = runs["all"]
        assert status == 0, (policy, said)
        assert len(said) == len(JOBS)
        assert runs["exit"][0] == 7
        assert runs["abort"] == (-signal.SIGABRT, ["Fatal Python error: Aborted"])
        assert runs["a fault"] == (-signal.SIGSEGV, ["Fatal Python error: Segmentation fault"])
        assert runs["a heap destroyed"][0] == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in whole["execute"]["a heap destroyed"][1]
    assert "free(): invalid pointer" in whole["execute"]["a heap destroyed"][1]


@pytest.mark.parametrize(("policy", "call", "number"), lines("strict") + lines("execute"))
def test_a_line_is_needed(
    run: Callable[..., Run],
    whole: dict[str, dict[str, tuple[int, list[str]]]],
    policy: str,
    call: str,
    number: int,
) -> None:
    if call in ELSEWHERE:
        pytest.skip(ELSEWHERE[call])
    for name, work in pieces().items():
        if outcome(run(policy, (call, number), work)) != whole[policy][name]:
            return
    pytest.fail(f"policy {policy} without rule {number} of {call}: all the work is done as before")


@pytest.mark.parametrize(("policy", "most"), [("strict", 24), ("execute", 40)])
def test_few_calls_are_allowed(policy: str, most: int) -> None:
    """OpenSSH's sandbox has 35, Firecracker's CPU threads 50, Chromium's renderer 86."""
    assert len(seccomp.load_policy(policy).allowed) <= most
