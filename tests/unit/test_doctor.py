"""What ``doctor`` shows, and advises where something is missing."""

import io
import subprocess
import sys
from collections import Counter

import pytest
from rich.console import Console

from vortex_worker.cli.doctor import _tell_in_lines, hints

WELL = {
    "landlock_abi": 7, "seccomp": True, "view": "can be had", "denied_calls_named": True,
    "huge_pages": "always [madvise] never",
}  # fmt: skip


def test_a_machine_that_has_all_is_told_nothing():
    assert hints(WELL, enforced=True) == []


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ({"landlock_abi": 0}, "landlock_create_ruleset"),
        ({"landlock_abi": 4}, "ABI 6"),
        ({"seccomp": False}, "CONFIG_SECCOMP_FILTER"),
        ({"view": "view: a namespace of its own: Operation not permitted"}, "user.max_user_namespaces"),
        ({"denied_calls_named": False}, "can't name the call"),
        ({"huge_pages": "always madvise [never]"}, "transparent_hugepage/enabled"),
    ],
)
def test_each_thing_that_is_missing_has_its_advice(lacks, said):
    (hint,) = hints(WELL | lacks, enforced=True)
    assert said in hint


def test_a_failure_without_a_cause_in_the_kernel_points_to_its_message():
    (hint,) = hints(WELL, enforced=False)
    assert "message above" in hint


def test_the_matrix_tells_each_quarter_once():
    said, told = io.StringIO(), Counter()
    for done in [*range(64, 1000, 64), 1000]:
        _tell_in_lines(Console(file=said), told, done, 1000)
    assert [int(line.split()[0]) for line in said.getvalue().splitlines()] == [256, 512, 768, 1000]


def test_what_is_in_brackets_is_shown_too():
    """``always [madvise] never``: brackets are markup to rich."""
    path = "/sys/kernel/mm/transparent_hugepage/enabled"
    try:
        with open(path) as file:
            now = file.read().strip()
    except OSError:
        pytest.skip("this kernel has no huge pages")
    done = subprocess.run([sys.executable, "-P", "-m", "vortex_worker", "doctor"], capture_output=True, text=True)
    assert now in done.stdout
