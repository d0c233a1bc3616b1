"""A denied call ends its worker and is named, whatever the node did before: in real workers of a real fabric."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_child import supported

import vortex_worker as vw
from vortex_worker.errors import LaunchError, SandboxViolation

pytestmark = [
    pytest.mark.skipif(not supported(), reason="this machine lacks seccomp or Landlock"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the node's numbers are those of x86-64"),
]
NODES = Path(__file__).parent / "nodes"


@pytest.fixture(scope="module", params=["zygote", "exec"])
def fabric(request: pytest.FixtureRequest) -> Iterator[vw.Fabric]:
    with vw.Fabric(1, custom_nodes=NODES, threads=1, zygote=request.param == "zygote") as fabric:
        yield fabric.wait_ready(60)


def death(fabric: vw.Fabric, how: str, attempts: int = 1) -> SandboxViolation:
    job = fabric.submit("Denied", params={"how": how}, retries=3)
    with pytest.raises(SandboxViolation) as caught:
        job.result(60)
    assert job.attempts <= attempts  # the same code would do it again
    return caught.value


@pytest.mark.parametrize("how", ["plain", "thread", "ignored", "handled", "blocked", "descriptors", "slot", "a result"])
def test_it_is_named(fabric: vw.Fabric, how: str) -> None:
    # A worker whose socket is closed is ended for that, if it comes first: then the job is begun once more.
    error = death(fabric, how, attempts=4 if how == "descriptors" else 1)
    assert error.details["syscall"] == "getpgid"
    assert error.details["syscall_number"] == "121"
    assert error.details["syscall_args"].startswith("7, ")
    assert "getpgid (system call 121" in error.message


@pytest.mark.parametrize(
    ("how", "name"),
    [("x32", "getpid"), ("number -1", "unknown(-1)"), ("number 1000", "unknown(1000)"), ("int 0x80", "execve")],
)
def test_numbers_of_other_kinds(fabric: vw.Fabric, how: str, name: str) -> None:
    assert death(fabric, how).details["syscall"] == name


@pytest.mark.parametrize(
    ("how", "deed"),
    [
        ("execve", "start a program or process"),
        ("clone", "start a program or process"),
        ("socket", "use the network"),
    ],
)
def test_what_it_was_for_is_told_in_words(fabric: vw.Fabric, how: str, deed: str) -> None:
    """Found by a first user, who did not know what clone is."""
    assert f"it tried to {deed}, and policy 'execute' denies {how} (" in death(fabric, how).message


@pytest.mark.parametrize("how", ["posix_spawn", "subprocess", "fork"])
def test_the_line_is_told_where_libc_blocks_all_signals(fabric: vw.Fabric, how: str) -> None:
    """Found by a first user: its thread could not hear that it was asked."""
    error = death(fabric, how)
    assert error.details["syscall"] in ("clone", "vfork", "fork")
    assert "; called from\n" in error.message
    lines = error.details["traceback"].splitlines()
    assert [line.rpartition(" ")[2] for line in lines if "denied.py" in line] == ["start_a_program", "execute"]


@pytest.mark.parametrize("how", ["sendmsg", "seccomp"])
def test_what_the_seal_denies(fabric: vw.Fabric, how: str) -> None:
    """The one filter without a listener: two calls, of which it was one. The first sign of such a death doesn't
    tell it from others, so the job may have been begun once more before it was known."""
    assert "denies sendmsg or seccomp" in death(fabric, how, attempts=2).message


def test_the_line_of_the_node_is_told(fabric: vw.Fabric) -> None:
    error = death(fabric, "plain")
    first, *others = error.details["traceback"].splitlines()
    assert "denied.py" in first
    assert first.endswith("in call")
    assert others[-1].endswith("in execute")
    assert not any("runner.py" in line for line in others)


def test_a_pack_that_makes_one_when_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "pack.py").write_text("import ctypes\nctypes.CDLL(None).syscall(121, 0)\n")
    with pytest.raises(LaunchError, match="denied getpgid"):
        vw.Fabric(1, custom_nodes=tmp_path, standby=0).wait_ready(60)
