"""A policy that can't be read for certain is refused, by file, table and key."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from vortex_worker.errors import ConfigError
from vortex_worker.sandbox import seccomp
from vortex_worker.sandbox.policy_file import POLICIES

DEFAULT = '\n[default]\naction = "kill_process"\nreason = "all else"\n'


def load(tmp_path: Path, text: str) -> seccomp.Policy:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return seccomp.load_policy(path)


@pytest.mark.parametrize("path", sorted(Path(POLICIES).glob("*.toml")), ids=lambda path: path.stem)
def test_shipped(path: Path) -> None:
    policy = seccomp.load_policy(path.stem)
    assert policy.default == "kill_process"
    assert list(tomllib.loads(path.read_text()))[-1] == "default"
    for rules in policy.rules.values():
        for rule in rules:
            assert rule.reason.endswith((".", "!", "?")), f"{rule.call}: a reason is a sentence"
    assert max(map(len, path.read_text().splitlines())) <= 120


def test_forms(tmp_path: Path) -> None:
    policy = load(
        tmp_path,
        """
[memory]
brk = "the heap"
mremap = { errno = "ENOMEM", reason = "no" }
[[memory.mmap]]
reason = "private"
masked_eq = [{ index = 3, mask = "MAP_TYPE|MAP_ANONYMOUS", value = 0x22 }]
[[files.openat]]
reason = "read"
masked_eq = [{ index = 2, mask = "~(O_CLOEXEC | O_DIRECTORY)", value = 0 }]
[[files.openat]]
reason = "write"
errno = "EROFS"
any_bit = [{ index = 2, mask = 3 }]
"""
        + DEFAULT,
    )
    assert policy.name == "mine"
    assert policy.decide("brk") == ("allow", 0)
    assert policy.decide("mremap")[0] == "errno"
    assert policy.decide("mmap", (0, 0, 0, 0x22, 0, 0)) == ("allow", 0)
    assert policy.decide("mmap", (0, 0, 0, 0x21, 0, 0)) == ("kill_process", 0)
    assert policy.decide("openat", (0, 0, 1, 0, 0, 0))[0] == "errno"
    assert policy.decide("openat", (0, 0, 4, 0, 0, 0))[0] == "kill_process"
    assert policy.decide("reboot") == ("kill_process", 0)
    assert policy.allowed == ("brk", "mmap", "openat")
    assert policy.refused == ("mremap",)


def test_extends_replaces_call_by_call(tmp_path: Path) -> None:
    text = 'extends = "execute"\n[files]\nopenat = { errno = "EACCES", reason = "none" }\n'
    policy = load(tmp_path, text + DEFAULT)
    assert policy.decide("openat", (0,) * 6) == ("errno", 13)
    assert policy.decide("read") == ("allow", 0)


def test_what_happens_to_other_calls_may_be_left_to_the_policy_that_is_extended(tmp_path: Path) -> None:
    """Found by a first user: its absence was told before the mistakes that mattered."""
    policy = load(tmp_path, 'extends = "execute"\n[mine]\ngetpgid = "A need of its own."\n')
    assert policy.decide("getpgid") == ("allow", 0)
    assert policy.decide("reboot") == ("kill_process", 0)
    assert policy.default_reason == seccomp.load_policy("execute").default_reason


RULE = '[[g.read]]\nreason = "r"\n'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("[g\n", "is not TOML"),
        ('[g]\nread = "r"\n', r"no \[default\]"),
        (DEFAULT, "holds no rule"),
        (DEFAULT + '[g]\nread = "r"\n', r"\[default\]: must be the last"),
        (
            '[g]\nread = "r"\n[default]\naction = "allow"\nreason = "x"\n',
            "the only default is 'kill_process'",
        ),
        ('[g]\nread = "r"\n[default]\nreason = "x"\n', "action: is None"),
        ('[g]\nread = "r"\n[default]\naction = "kill_process"\n', r"\[default\] reason: is missing"),
        ('[g]\nread = "r"\n[default]\naction = "kill_process"\nreason = "x"\nlog = 1\n', "log: is not known"),
        ('read = "r"\n' + DEFAULT, "read: is neither a group"),
        ('[g]\nread = ""\n' + DEFAULT, r"\[g\] read reason: is missing"),
        ("[g]\nread = 1\n" + DEFAULT, "takes a reason, a rule, or a list"),
        ("[g]\nread = []\n" + DEFAULT, "takes a reason, a rule, or a list"),
        ('[g]\nread = "r"\n[h]\nread = "r"\n' + DEFAULT, r"\[h\] read: is in \[g\] already"),
        ('[g]\nraed = "r"\n' + DEFAULT, r"\[g\] raed: is not a system call"),
        (RULE + "eqq = 1\n" + DEFAULT, r"\[g\] read eqq: is not known"),
        (RULE + 'errno = "EWHAT"\n' + DEFAULT, "errno: is 'EWHAT'"),
        (RULE + "errno = 13\n" + DEFAULT, "errno: is 13"),
        (RULE + 'errno = "EACCES"\naction = "allow"\n' + DEFAULT, "both 'errno' and 'action'"),
        (RULE + 'action = "log"\n' + DEFAULT, "action: is 'log'"),
        (RULE + "eq = []\n" + DEFAULT, "at least one condition"),
        (RULE + "eq = [{ index = 6, value = 0 }]\n" + DEFAULT, "index: is 6"),
        (RULE + "eq = [{ index = true, value = 0 }]\n" + DEFAULT, "index: is True"),
        (RULE + "eq = [{ index = 0 }]\n" + DEFAULT, "has the keys index, value"),
        (RULE + "eq = [{ index = 0, value = 0, mask = 1 }]\n" + DEFAULT, "has the keys index, value"),
        (RULE + "eq = [{ index = 0, value = -1 }]\n" + DEFAULT, "value: is -1"),
        (RULE + "eq = [{ index = 0, value = 1.5 }]\n" + DEFAULT, "value: is 1.5"),
        (RULE + "eq = [{ index = 0, value = 0x100000000 }]\n" + DEFAULT, "can never hold"),
        (RULE + 'eq = [{ index = 0, value = "O_NOPE" }]\n' + DEFAULT, "names 'O_NOPE'"),
        (RULE + "masked_eq = [{ index = 0, mask = 1, value = 2 }]\n" + DEFAULT, "can never hold"),
        (RULE + "masked_eq = [{ index = 0, mask = 0, value = 0 }]\n" + DEFAULT, "can never hold"),
        (
            RULE + "any_bit = [{ index = 0, mask = 1 }, { index = 1, mask = 1 }]\n" + DEFAULT,
            "takes one condition",
        ),
        # libseccomp would keep only the unconditional one, without a word
        (RULE + "eq = [{ index = 0, value = 1 }]\n" + RULE + DEFAULT, "must be the call's only rule"),
        (RULE + RULE + "eq = [{ index = 0, value = 1 }]\n" + DEFAULT, "must be the call's only rule"),
        # which one wins would depend on the compiler
        (
            RULE
            + "eq = [{ index = 0, value = 1 }]\n"
            + RULE
            + 'errno = "EPERM"\neq = [{ index = 1, value = 1 }]\n'
            + DEFAULT,
            r"rule 2: overlaps an earlier rule",
        ),
        ("extends = 1\n[g]\nread = 'r'\n" + DEFAULT, "extends: is 1"),
        ("extends = '../execute'\n[g]\nread = 'r'\n" + DEFAULT, "extends: is '../execute'"),
        (
            "extends = 'nothing'\n[g]\nread = 'r'\n" + DEFAULT,
            "toml: extends: is 'nothing': there are bootstrap, cuda, .*, or a TOML file$",
        ),
        ("extends = 'exec'\n[g]\nread = 'r'\n" + DEFAULT, r"toml: extends: is 'exec': .*; did you mean 'execute'\?"),
        ("extends = 'execute'\n[g]\nread = { reson = 'r' }\n", r"\[g\] read reson: is not known"),
    ],
)
def test_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        load(tmp_path, text)
    assert ".toml" in str(caught.value)


def test_refused_files(tmp_path: Path) -> None:
    known = "bootstrap, cuda, cuda_start, execute, handover, strict"
    with pytest.raises(ConfigError, match=f"no policy 'exceute'; there are {known}"):
        seccomp.load_policy("exceute")
    with pytest.raises(ConfigError, match="can't be read"):
        seccomp.load_policy(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="can't be read"):
        seccomp.load_policy(f"{tmp_path}/")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not TOML"):
        seccomp.load_policy(tmp_path / "binary.toml")
    (tmp_path / "huge.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="larger than"):
        seccomp.load_policy(tmp_path / "huge.toml")
