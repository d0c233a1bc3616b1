"""The view: what a process still sees in it, that there is no way out of it, and that honest work goes on."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sandbox_child import Outcome, no_view, raised, run, supported

import vortex_worker as vw
from vortex_worker._core import lockdown
from vortex_worker.sandbox import landlock, view

pytestmark = [
    pytest.mark.skipif(not supported(), reason="this machine lacks seccomp or Landlock"),
    pytest.mark.skipif(bool(no_view()), reason=f"this machine lets nobody have a view: {no_view()}"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two folders to be seen, one of them reached through links, and something that is not."""
    for path in ("real/models/blobs", "real/models/snapshots", "other", "closed"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "real/models/blobs/1234").write_text("weights")
    (tmp_path / "real/models/snapshots/model").symlink_to("../blobs/1234")  # as Hugging Face's cache has it
    (tmp_path / "real/models/out").symlink_to(tmp_path / "closed/secret")
    (tmp_path / "real/models/across").symlink_to(tmp_path / "other")
    (tmp_path / "other/file").write_text("other")
    (tmp_path / "closed/secret").write_text("hunter2")
    (tmp_path / "first").symlink_to("second/../first-again")
    (tmp_path / "second").symlink_to(tmp_path / "other")
    (tmp_path / "other.link").symlink_to("first")
    (tmp_path / "first-again").symlink_to(tmp_path / "real")
    (tmp_path / "circle").symlink_to("circle")
    return tmp_path


def seen(*paths: Path | str) -> view.View:
    rules = [(os.fsencode(os.path.realpath(path)), landlock.READ_FILE) for path in (*paths, "/dev/null")]
    return view.outline(rules, map(str, paths))


def inside(action: Callable[[], Any], *paths: Path | str) -> Outcome:
    """What an action gives in the view of these paths, in a process of its own."""
    wanted = seen(*paths)

    def enter() -> Any:
        lockdown.enter_view(*wanted)
        return action()

    return run(enter, stages=None)


def test_nothing_else_exists(folder: Path) -> None:
    def look() -> Any:
        return sorted(os.listdir("/")), os.listdir("/dev"), os.listdir(folder), os.getcwd()

    top = {folder.parts[1], "dev", "proc"} | ({"etc"} if os.path.exists("/etc/alternatives") else set())
    assert inside(look, folder / "other").value == [sorted(top), ["null"], ["other"], "/"]


def test_of_proc_only_its_own_part() -> None:
    def look() -> Any:
        others = [name for name in os.listdir("/proc") if name not in ("self", str(os.getpid()))]
        return others, os.readlink("/proc/self") == str(os.getpid()), os.path.samefile("/proc/self/root", "/")

    assert inside(look) == Outcome("returned", [[], True, True])


@pytest.mark.parametrize(
    "way", ["/..", "..", *(os.path.join("/proc/self", name, "..") for name in ("root", "cwd")), "/dev/../.."]
)
def test_there_is_nothing_above(folder: Path, way: str) -> None:
    assert inside(lambda: os.stat(f"{way}{folder}/closed")) == raised("ENOENT")
    assert inside(lambda: os.path.samefile(way, "/")) == Outcome("returned", True)


def test_no_mount_of_the_old_root_is_left(folder: Path) -> None:
    def look() -> Any:
        with open("/proc/self/mountinfo") as file:
            return [(line.split()[4], line.split()[5].split(",")[0]) for line in file]

    mounts = inside(look, folder / "other").value
    assert [os.fspath(folder / "other"), "ro"] in mounts
    assert {rights for _, rights in mounts} == {"ro"}
    allowed = ("/", "/dev/null", "/etc/alternatives", str(folder / "other"))
    assert all(path in allowed or path.startswith("/proc/") for path, _ in mounts)


@pytest.mark.parametrize(
    "act",
    [
        lambda folder: os.open(folder / "other" / "file", os.O_RDWR),
        lambda folder: (folder / "other" / "new").touch(),
        lambda folder: (folder / "other" / "file").unlink(),
        lambda folder: (folder / "other" / "file").chmod(0o777),
        lambda folder: os.utime(folder / "other" / "file"),
        lambda folder: (folder / "new").mkdir(),
        lambda folder: os.symlink("/", "/new"),
    ],
)
def test_all_of_it_is_read_only(folder: Path, act: Callable[[Path], Any]) -> None:
    assert inside(lambda: act(folder), folder / "other") == raised("EROFS")


def test_devices_work_and_programs_stay_without_privileges(folder: Path) -> None:
    def write() -> int:
        with open("/dev/null", "wb", buffering=0) as null:
            return null.write(b"x")

    assert inside(write) == Outcome("returned", 1)
    flags = inside(lambda: os.statvfs(folder / "other").f_flag, folder / "other").value
    assert flags & os.ST_NOSUID


@pytest.mark.parametrize("spelling", ["real", "first", "first-again", "other.link", "other/../first", "second/../real"])
def test_every_spelling_of_a_listed_path_works(folder: Path, spelling: str) -> None:
    wanted = folder / spelling / "models"
    assert inside(lambda: (wanted / "blobs/1234").read_text(), wanted, folder / "other").value == "weights"


def test_links_lead_where_they_may(folder: Path) -> None:
    models = folder / "first" / "models"
    assert inside(lambda: (models / "snapshots/model").read_text(), models).value == "weights"
    assert inside(lambda: (models / "across/file").read_text(), models, folder / "other").value == "other"
    assert inside(lambda: (models / "across/file").read_text(), models) == raised("ENOENT")
    assert inside(lambda: (models / "out").read_text(), models) == raised("ENOENT")


def test_a_link_to_itself_is_no_path(folder: Path) -> None:
    wanted = view.outline([(os.fsencode(folder / "other"), landlock.READ_FILE)], [str(folder / "circle" / "x")])
    assert len(wanted.links) == 1


def test_what_python_imports_has_all_its_spellings() -> None:
    paths = [path for path in landlock.spellings() if os.path.exists(path)]
    wanted = view.outline(landlock.readonly_rules(), paths)

    def look() -> Any:
        lockdown.enter_view(*wanted)
        return [path for path in paths if not os.path.exists(path)]

    assert run(look, stages=None) == Outcome("returned", [])


def test_a_missing_path_changes_nothing(folder: Path) -> None:
    def enter() -> Any:
        os.chdir(folder)
        try:
            lockdown.enter_view([os.fsencode(folder / "other"), os.fsencode(folder / "missing")])
        except OSError as error:
            return error.filename, error.errno, os.path.exists("closed/secret"), os.path.exists("/proc/version")

    assert run(enter, stages=None).value == [str(folder / "missing"), errno.ENOENT, True, True]


def test_a_folder_that_became_a_link_is_not_shown(folder: Path) -> None:
    """Where it leads now, nobody has looked at."""
    wanted = seen(folder / "other")
    (folder / "other").rename(folder / "before")
    (folder / "other").symlink_to("closed")

    def enter() -> Any:
        try:
            lockdown.enter_view(*wanted)
        except OSError as error:
            return error.filename, error.errno

    assert run(enter, stages=None).value == [str(folder / "other"), errno.ELOOP]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device files")
def test_a_device_file_in_a_folder_is_none(folder: Path) -> None:
    """Say a disk's, in what somebody unpacked as root. Those that are listed by name work."""
    os.mknod(folder / "other/zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))

    def look() -> Any:
        found = []
        for path in (folder / "other/zero", Path("/dev/null"), folder / "other/file"):
            try:
                found.append(path.open("rb").read(4))
            except OSError as error:
                found.append(errno.errorcode[error.errno or 0].encode())
        return b" ".join(found).decode()

    assert inside(look, folder / "other").value == "EACCES  othe"


def test_not_with_threads() -> None:
    def enter() -> None:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        lockdown.enter_view([b"/dev/null"])

    assert run(enter, stages=None) == raised("EBUSY")


# Workers

NODES = """
from pathlib import Path

from vortex_worker.executor import AbstractExecutor, Param, Port


class Look(AbstractExecutor):
    op_type = "Look"
    params = (Param("path", "STRING"),)
    output_ports = (Port("text", "STRING"),)

    def execute(self, inputs, params):
        path = Path(params["path"])
        if not path.exists():
            return {"text": "nothing"}
        return {"text": path.read_text() if path.is_file() else "folder"}


class Late(AbstractExecutor):
    op_type = "Late"
    output_ports = (Port("text", "STRING"),)

    def execute(self, inputs, params):
        import sys

        assert "xml.dom.pulldom" not in sys.modules
        import xml.dom.pulldom
        from . import chunk_of_mine

        return {"text": chunk_of_mine.TEXT + xml.dom.pulldom.START_DOCUMENT}
"""


@pytest.fixture
def fabric(folder: Path) -> Iterator[vw.Fabric]:
    (folder / "pack" / "mine").mkdir(parents=True)
    (folder / "pack" / "mine" / "__init__.py").write_text(NODES)
    (folder / "pack" / "mine" / "chunk_of_mine.py").write_text("TEXT = 'late '\n")
    (folder / "nodes").symlink_to("pack")
    with vw.Fabric(
        1, standby=0, threads=1, models=folder / "first" / "models", custom_nodes=folder / "nodes"
    ) as fabric:
        fabric.wait_ready(60)
        assert not fabric.plugin_errors()
        yield fabric


def look(fabric: vw.Fabric, path: Path | str) -> str:
    return str(fabric.run("Look", params={"path": str(path)})["text"])


def test_a_worker_has_one(fabric: vw.Fabric, folder: Path) -> None:
    (worker,) = fabric.workers()
    assert "view" in worker["sandbox"]["layers"]
    assert worker["sandbox"]["enforced"]
    for spelling in ("real", "first"):
        assert look(fabric, folder / spelling / "models" / "snapshots" / "model") == "weights"
    for path in (folder / "closed", folder / "closed/secret", "/etc/passwd", f"/proc/{os.getpid()}", "/dev/shm"):
        assert look(fabric, path) == "nothing"
    assert fabric.run("Late")["text"] == "late START_DOCUMENT"


def test_none_of_its_descriptors_is_a_folder(fabric: vw.Fabric) -> None:
    """By one from before, everything could be reached."""
    (worker,) = fabric.workers()
    links = Path(f"/proc/{worker['pid']}/fd")
    with contextlib.suppress(PermissionError):  # whoever isn't root may not look
        assert not [link for link in links.iterdir() if link.is_dir()]


def test_a_reload_sees_folders_that_were_replaced(fabric: vw.Fabric, folder: Path) -> None:
    model, node = folder / "first/models/snapshots/model", folder / "pack/mine/chunk_of_mine.py"
    (folder / "real/models").rename(folder / "old")
    (folder / "real/models/snapshots").mkdir(parents=True)
    model.write_text("new weights")
    (folder / "pack").rename(folder / "old pack")
    (folder / "pack" / "mine").mkdir(parents=True)
    (folder / "pack" / "mine" / "__init__.py").write_text(NODES)
    node.write_text("TEXT = 'later '\n")
    fabric.reload(60)
    assert look(fabric, model) == "new weights"
    assert fabric.run("Late")["text"] == "later START_DOCUMENT"


def test_a_folder_that_became_a_link_stops_new_workers(fabric: vw.Fabric, folder: Path) -> None:
    """Whoever can write beside a folder of models must not choose what workers read."""
    (folder / "real/models").rename(folder / "old")
    (folder / "real/models").symlink_to(folder / "closed")
    (worker,) = fabric.workers()
    os.kill(worker["pid"], signal.SIGKILL)
    with pytest.raises(vw.errors.LaunchError, match=r"real/models' was checked when no part of it was a link"):
        fabric.run("Look", params={"path": str(folder / "real/models/secret")})


@pytest.mark.parametrize("zygote", [True, False])
def test_a_folder_that_is_gone_stops_new_workers_and_is_named(folder: Path, zygote: bool) -> None:
    with vw.Fabric(1, standby=0, threads=1, models=folder / "other", zygote=zygote) as fabric:
        fabric.wait_ready(60)
        (folder / "other").rename(folder / "away")
        (worker,) = fabric.workers()
        os.kill(worker["pid"], signal.SIGKILL)
        with pytest.raises(vw.errors.LaunchError, match=r"VORTEX_MODELS is .*other.*folders that exist"):
            fabric.run("Identity", {"tensor": 1})


REFUSED = """
import ctypes, json, struct, sys
import vortex_worker as vw
from vortex_worker._core import lockdown
from vortex_worker.sandbox import seccomp

if __name__ == "__main__":
    number = seccomp.number_of("unshare")
    program = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
    assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0
    lockdown.install_filter(b"".join(struct.pack("=HBBI", *line) for line in program), all_threads=True)
    with vw.Fabric(1, standby=0, threads=1) as fabric:
        fabric.run("Identity", {"tensor": [1.0]})
        print(json.dumps(fabric.workers()[0]["sandbox"]))
    from vortex_worker.cli.doctor import doctor_command
    assert doctor_command("execute", False, as_json=True) == 0
"""


def test_where_it_is_forbidden_a_worker_goes_on_without_and_says_so(tmp_path: Path) -> None:
    """As in a container whose filter refuses unshare."""
    script = tmp_path / "refused.py"
    script.write_text(REFUSED)
    done = subprocess.run([sys.executable, "-P", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, _, rest = done.stdout.partition("\n")
    sandbox, report = json.loads(first), json.loads(rest)
    assert sandbox["enforced"]
    assert {"landlock", "canary"} <= set(sandbox["layers"])
    assert "view" not in sandbox["layers"]
    assert "a namespace of its own" in report["machine"]["view"]
    assert any("which files exist" in hint for hint in report["hints"])
