"""``vortex-worker policy`` and ``doctor``, as a user runs them."""

import json
import subprocess
import sys

import pytest

from vortex_worker.sandbox import seccomp

pytestmark = pytest.mark.skipif(not seccomp.available(), reason="this build has no libseccomp")
DEFAULT = '[default]\naction = "kill_process"\nreason = "as ever"\n'


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "vortex_worker", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_show_tells_every_line_and_its_reason():
    done = run("policy", "show", "strict")
    assert done.returncode == 0, done.stderr
    assert "24 calls allowed" in done.stdout
    shown = json.loads(run("policy", "show", "strict", "--json").stdout)
    assert len(shown["allowed"]) == 24
    assert all(rule["reason"] for rule in shown["rules"])
    clone = next(rule for rule in shown["rules"] if rule["call"] == "clone")
    assert clone["conditions"] == [{"arg": 0, "mask": 0xFFFFFFFF, "value": 0x3D0F00}]


def test_show_of_an_unknown_policy_names_those_there_are():
    done = run("policy", "show", "exceute")
    assert done.returncode == 2
    assert "there are bootstrap, cuda, cuda_start, execute, handover, strict" in " ".join(done.stderr.split())


def test_lint_takes_a_good_policy(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('extends = "execute"\n[mine]\ngetpgid = "A need of its own."\n' + DEFAULT)
    done = run("policy", "lint", path)
    assert done.returncode == 0, done.stderr
    assert "41 calls allowed" in done.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[mine]\ngetpgdi = "Misspelt."\n', "[mine] getpgdi: is not a system call"),
        (
            '[[mine.read]]\nreason = "Wide."\nmasked_eq = [{ index = 1, mask = 1, value = 1 }]\n'
            '[[mine.read]]\nreason = "Narrow."\neq = [{ index = 1, value = 3 }]\n',
            "redundant: read: Narrow.",
        ),
    ],
)
def test_lint_names_what_is_wrong(tmp_path, text, said):
    path = tmp_path / "mine.toml"
    path.write_text(text + DEFAULT)
    done = run("policy", "lint", path)
    assert done.returncode == 1
    assert said in " ".join(done.stderr.split())


def test_doctor_tells_what_is_in_force():
    report = json.loads(run("doctor", "--json").stdout)
    assert report["worker"]["enforced"] is True
    assert report["worker"]["kernel"]["seccomp"] == 2
    assert report["machine"]["landlock_abi"] >= 1
