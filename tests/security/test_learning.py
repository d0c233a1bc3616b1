"""A learned policy allows what was noted, leaves everything else as it was, and can be read for certain."""

from __future__ import annotations

from pathlib import Path

import pytest

from vortex_worker.errors import ConfigError
from vortex_worker.sandbox import matrix, seccomp
from vortex_worker.sandbox.learning import MOST, Lessons
from vortex_worker.sandbox.policy import SELF_PID

pytestmark = pytest.mark.skipif(not seccomp.available(), reason="this build has no libseccomp")
PID = 4242


def learn(policy: str, denied: list[tuple[str, tuple[int, ...]]], path: Path) -> seccomp.Policy:
    lessons = Lessons(seccomp.load_policy(policy))
    for call, args in denied:
        lessons.note(call, args, 'node "Odd"\n\x7f\ud800', PID)
    path.write_text(lessons.toml(beside=str(path.parent)), encoding="utf-8")
    return seccomp.load_policy(path)


@pytest.mark.parametrize("name", ["execute", "strict", "cuda"])
def test_every_denied_call_can_be_learned(name: str, tmp_path: Path) -> None:
    policy = seccomp.load_policy(name)
    profile = matrix.Profile(name)
    tried = [
        (profile.call(vector), vector.args)
        for vector in matrix.vectors(profile, numbers=False)
        if profile.call(vector) in policy.rules
    ]
    denied = [(call, args) for call, args in tried if policy.decide(call, args)[0] == "kill_process"]
    assert len(denied) > 100
    for begin in range(3):  # not all at once: what one line allows could be what another one was for
        part = denied[begin::60]
        learned = learn(name, part, tmp_path / "out.toml")
        assert matrix.redundant(learned) == ()
        for call, args in part:
            assert learned.decide(call, args) == ("allow", 0), (call, args)
        noted = {call for call, _ in part}
        for call, args in tried:
            if call not in noted:
                assert learned.decide(call, args) == policy.decide(call, args)
            elif policy.decide(call, args)[0] == "allow":
                assert learned.decide(call, args) == ("allow", 0)
    seccomp.compile_policy(learned)


def test_a_line_is_no_wider_than_the_policy_can_tell(tmp_path: Path) -> None:
    learned = learn("execute", [("prctl", (4, 1, 7, 7, 7, 7))], tmp_path / "out.toml")
    assert learned.decide("prctl", (4, 0, 0, 0, 0, 0)) == ("allow", 0)
    assert learned.decide("prctl", (15, 0, 0, 0, 0, 0)) == ("errno", 1)
    assert learned.decide("prctl", (22, 0, 0, 0, 0, 0)) == ("kill_process", 0)


def test_its_own_number_is_not_the_workers_that_was_learned_from(tmp_path: Path) -> None:
    learned = learn("execute", [("tgkill", (PID, 17, 10, 0, 0, 0))], tmp_path / "out.toml")
    assert learned.decide("tgkill", (SELF_PID, 1, 10, 0, 0, 0)) == ("allow", 0)
    assert learned.decide("tgkill", (PID, 17, 10, 0, 0, 0)) == ("kill_process", 0)


def test_an_address_is_another_one_the_next_time(tmp_path: Path) -> None:
    learned = learn("execute", [("sendto", (3, 0, 0, 0, 0x7F00_0000_1000, 16))], tmp_path / "out.toml")
    assert learned.decide("sendto", (3, 0, 0, 0, 0x7E00_0000_2000, 16)) == ("allow", 0)


def test_of_a_policy_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / "mine.toml"
    mine.write_text(
        'extends = "strict"\n[mine]\ngetpgid = "Needed."\n[default]\naction = "kill_process"\nreason = "all else"\n'
    )
    learned = learn(str(mine), [("getsid", (0,) * 6)], tmp_path / "out.toml")
    assert [learned.decide(call)[0] for call in ("getsid", "getpgid", "openat")] == ["allow", "allow", "errno"]


def test_a_flood_is_not_learned() -> None:
    lessons = Lessons(seccomp.load_policy("execute"))
    for number in range(MOST):
        assert lessons.note("prctl", (number + 1000, 0, 0, 0, 0, 0), "node X", PID)
        assert not lessons.note("prctl", (number + 1000, 1, 0, 0, 0, 0), "node X", PID)
    with pytest.raises(ValueError, match="different calls"):
        lessons.note("getpgid", (0,) * 6, "node X", PID)


def test_no_policy_extends_itself(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "sub/../a"), ("c", "c")):
        (tmp_path / f"{name}.toml").write_text(
            f'extends = "{other}.toml"\n[g]\ngetpgid = "Needed."\n[default]\naction = "kill_process"\nreason = "r"\n'
        )
    (tmp_path / "sub").mkdir()
    for name in "ac":
        with pytest.raises(ConfigError, match="extends itself"):
            seccomp.load_policy(tmp_path / f"{name}.toml")
