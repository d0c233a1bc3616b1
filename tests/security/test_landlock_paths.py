"""Which files the worker may read: enough to work, and nothing of the user's."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
from sandbox_child import Outcome, libc, raised, run, supported

from vortex_worker.errors import ConfigError
from vortex_worker.sandbox import landlock
from vortex_worker.sandbox.landlock import READ_DIR, READ_FILE, readonly_rules


def rules(*extra: str | Path) -> dict[str, int]:
    return {os.fsdecode(path): rights for path, rights in readonly_rules(extra)}


def covers(given: dict[str, int], path: str | Path) -> bool:
    real = Path(os.path.realpath(path))
    return any(str(parent) in given for parent in (real, *real.parents))


def test_enough_to_work() -> None:
    given = rules()
    own = Path(landlock.__file__)
    for path in (os.__file__, own, own.with_name("policies"), "/usr/lib"):
        assert covers(given, path), path
    import numpy as np

    assert covers(given, np.__file__)
    from vortex_worker._core import _seccomp

    assert covers(given, _seccomp.__file__)  # in a development install, in the build folder


def test_nothing_of_the_users() -> None:
    given = rules()
    closed = ["/", "/etc", "/etc/passwd", "/proc", "/proc/self/mem", "/dev/shm", "/tmp", "/var", "/sys"]
    for path in (*closed, os.path.expanduser("~")):
        assert not covers(given, path), path


def test_only_reading() -> None:
    given = rules()
    assert all(rights in (READ_FILE, READ_FILE | READ_DIR) for rights in given.values())
    assert all(rights == READ_FILE for path, rights in given.items() if os.path.isfile(path))


def test_no_rule_repeats_another() -> None:
    given = list(rules())
    for path in given:
        assert not any(path != other and path.startswith(other.rstrip("/") + "/") for other in given)


def test_where_it_was_started_stays_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """python -m puts the current folder on sys.path."""
    monkeypatch.chdir(tmp_path)
    for entry in ("", str(tmp_path)):
        monkeypatch.setattr(sys, "path", [entry, *sys.path])
        assert not covers(rules(), tmp_path)


def test_sys_path_is_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "added by a pth file").mkdir()
    added = [str(tmp_path / "added by a pth file"), str(tmp_path / "missing")]
    monkeypatch.setattr(sys, "path", [*sys.path, *added])
    given = rules()
    assert covers(given, tmp_path / "added by a pth file")
    assert not covers(given, tmp_path / "missing")


def test_home_on_sys_path_stays_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "people" / "ann"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(sys, "path", [*sys.path, str(home), str(tmp_path / "people"), "/"])
    assert not covers(rules(), home)


def test_links_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert str(tmp_path / "real") in rules(tmp_path / "link")
    assert str(tmp_path / "link") not in rules(tmp_path / "link")


def test_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    given = rules(tmp_path / "model.safetensors")
    assert given[str(tmp_path / "model.safetensors")] == READ_FILE
    assert not covers(given, tmp_path)


def test_missing_is_an_error(tmp_path: Path) -> None:
    """Never dropped in silence: a typing error would otherwise show only as a node that finds no model."""
    with pytest.raises(ConfigError, match="modles"):
        rules(tmp_path / "modles")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"dangling.*nowhere"):
        rules(tmp_path / "dangling")
    with pytest.raises(ConfigError, match="empty string"):
        rules("")


def test_another_home_is_too_wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also for a worker that was given a HOME of its own."""
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setattr(landlock, "_HOMES", (str(tmp_path),))
    (tmp_path / "ann" / "models").mkdir(parents=True)
    with pytest.raises(ConfigError, match="would open all of"):
        rules(tmp_path / "ann")
    assert covers(rules(tmp_path / "ann" / "models"), tmp_path / "ann" / "models")


@pytest.mark.parametrize("path", ["/", "/etc", "/tmp", "/home", "/proc", "~", "~/.."])
def test_too_wide_is_an_error(path: str) -> None:
    if not os.path.isdir(os.path.expanduser(path)):
        pytest.skip(f"no {path} here")
    with pytest.raises(ConfigError, match="would open all of"):
        rules(path)


def test_a_link_to_something_wide_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to("/etc")
    with pytest.raises(ConfigError, match="would open all of '/etc'"):
        rules(tmp_path / "models")


@pytest.mark.skipif(not supported(), reason="this machine lacks seccomp or Landlock")
def test_in_force(tmp_path: Path) -> None:
    """The list, held by the kernel."""
    for name in ("models", "private"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "models" / "out").symlink_to(tmp_path / "private")
    os.link(tmp_path / "private" / "file", tmp_path / "models" / "hard")
    models = tmp_path / "models"

    def read(path: Path) -> Outcome:
        return run(path.read_text, readable=[str(models)])

    assert read(models / "file") == Outcome("returned", "models")
    assert read(models / "hard") == Outcome("returned", "private")  # a hard link is the file, not a way to it
    assert read(tmp_path / "private" / "file") == raised("EACCES")
    assert read(models / "out" / "file") == raised("EACCES")
    assert run(lambda: sorted(os.listdir(models)), readable=[str(models)]).how == "returned"
    assert run(lambda: os.listdir(tmp_path), readable=[str(models)]) == raised("EACCES")


@pytest.mark.skipif(not supported(), reason="this machine lacks seccomp or Landlock")
def test_a_rule_that_vanished_is_an_error(tmp_path: Path) -> None:
    """Between making the list and binding to it: the worker must not start with fewer rules, or none."""

    def action() -> str:
        from vortex_worker._core import lockdown

        (tmp_path / "models").mkdir()
        given = readonly_rules([tmp_path / "models"])
        (tmp_path / "models").rmdir()
        libc.prctl(38, 1, 0, 0, 0)  # no_new_privs
        try:
            lockdown.landlock_restrict(given)
        except OSError as error:
            return str(error.filename)
        return "bound all the same"

    assert run(action, stages=None) == Outcome("returned", str(tmp_path / "models"))


@pytest.mark.skipif(not supported(), reason="this machine lacks seccomp or Landlock")
@pytest.mark.parametrize("part", ["models", "parent"])
def test_a_folder_that_became_a_link_is_an_error(tmp_path: Path, part: str) -> None:
    """Between making the list and binding to it: where it leads now, nobody has looked whether it is too wide."""

    def action() -> str:
        from vortex_worker._core import lockdown

        models = tmp_path / "parent" / "models"
        models.mkdir(parents=True)
        given = readonly_rules([models])
        replaced = models if part == "models" else models.parent
        replaced.rename(tmp_path / "old")
        replaced.symlink_to("/etc" if part == "models" else tmp_path / "old")
        libc.prctl(38, 1, 0, 0, 0)  # no_new_privs
        try:
            lockdown.landlock_restrict(given)
        except OSError as error:
            return f"{errno.errorcode[error.errno or 0]} {error.filename}"
        return "bound all the same"

    assert run(action, stages=None) == Outcome("returned", f"ELOOP {tmp_path}/parent/models")
