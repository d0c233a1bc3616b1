"""The sandbox changes no result: a sampling run gives the same bits under each policy as without."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from sandbox_child import supported

pytest.importorskip("torch")


def digest(*policy: str) -> tuple[str, int]:
    """SHA-256 of the latent after 25 steps, and the seccomp mode it was sampled in."""
    done = subprocess.run(
        [sys.executable, "-m", "vortex_worker.bench.sandbox_child", "sample", *policy],
        input="\n", capture_output=True, text=True, check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    answer = json.loads(done.stdout)
    return answer["digest"], answer["seccomp"]


@pytest.mark.skipif(not supported(), reason="this machine lacks seccomp or Landlock")
def test_a_sampling_run_gives_the_same_bits_under_every_policy() -> None:
    bare, mode = digest()
    assert mode == 0
    for policy in ("execute", "strict"):
        assert digest(policy) == (bare, 2)
