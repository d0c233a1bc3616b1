"""``vortex-worker run … --learn``: what a policy lacks for a workflow, said aloud to be unsafe, and enough for it."""

import json
import platform
import subprocess
import sys

import pytest

import vortex_worker as vw
from vortex_worker.errors import ConfigError, SandboxViolation
from vortex_worker.sandbox import seccomp

pytestmark = [
    pytest.mark.skipif(not seccomp.available(), reason="this build has no libseccomp"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the node's numbers are those of x86-64"),
]
NODES = '''
import ctypes, mmap, threading

from vortex_worker.executor import AbstractExecutor, Param, Port

libc = ctypes.CDLL(None, use_errno=True)


def call(number, *args):
    return libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in args))


class Greedy(AbstractExecutor):
    """Makes calls that no shipped policy allows; none does harm."""

    op_type = "Greedy"
    output_ports = (Port("text", "STRING"),)
    params = (Param("foreign", "BOOLEAN", default=False),)

    def execute(self, inputs, params):
        assert call(121, 0) > 0  # getpgid
        thread = threading.Thread(target=lambda: call(186))
        thread.start()
        thread.join()
        assert call(135, 0xFFFFFFFF) >= 0  # personality: what it is
        assert call(157, 27, 0, 0, 0, 0) == 0  # prctl, PR_GET_SECUREBITS
        assert call(234, call(39), call(186), 0) == 0  # tgkill, of itself, without a signal
        address, size = ctypes.create_string_buffer(128), ctypes.c_int(128)
        call(45, 2, address, 128, 0x40, address, ctypes.byref(size))  # recvfrom, with an address
        if params["foreign"]:
            room = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)
            room.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret: getpid, were this i386
            ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(room)))()
        return {"text": "done"}


class Show(AbstractExecutor):
    op_type = "Show"
    input_ports = (Port("text", "STRING"),)
    output_ports = (Port("text", "STRING"),)

    def execute(self, inputs, params):
        return {"text": inputs["text"]}
'''
CALLS = {"getpgid", "personality", "prctl", "tgkill", "recvfrom"}
WORKFLOW = {
    "7": {"class_type": "Greedy", "inputs": {"foreign": False}},
    "8": {"class_type": "Show", "inputs": {"text": ["7", 0]}},
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nodes.py").write_text(NODES)
    (tmp_path / "workflow.json").write_text(json.dumps(WORKFLOW))
    return tmp_path


def vortex(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "vortex_worker", *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done, " ".join(done.stderr.split())


def test_what_is_learned_is_enough(folder):
    done, _ = vortex(folder, "run", "workflow.json", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "WK-010"

    done, said = vortex(folder, "run", "workflow.json", "--learn", "out.toml", "--json")
    assert done.returncode == 0, said
    assert "UNSAFE: learning" in said
    report = json.loads(done.stdout)
    assert [w["sandbox"]["enforced"] for w in report["workers"]] == [False]
    assert [w["sandbox"]["learning"] for w in report["workers"]] == [True]
    assert {line["call"] for line in report["learned"]} == CALLS
    text = (folder / "out.toml").read_text()
    assert text.startswith("# UNSAFE")
    assert 'extends = "execute"' in text
    assert 'getpgid = "Learned: node Greedy (1 times)."' in text

    done, said = vortex(folder, "policy", "lint", "out.toml")
    assert done.returncode == 0, said

    done, said = vortex(folder, "run", "workflow.json", "--policy", "out.toml", "--json")
    assert done.returncode == 0, said
    (worker,) = json.loads(done.stdout)["workers"]
    assert (worker["sandbox"]["policy"], worker["sandbox"]["enforced"], worker["sandbox"]["learning"]) == (
        "out", True, False,
    )  # fmt: skip


def test_a_policy_that_lacks_nothing(folder):
    (folder / "workflow.json").write_text(json.dumps({"1": {"class_type": "Show", "inputs": {"text": "x"}}}))
    done, said = vortex(folder, "run", "workflow.json", "--learn", "out.toml")
    assert done.returncode == 0, said
    assert "no file is written" in said
    assert "NOT sandboxed: learning" in " ".join((done.stdout + said).split())
    assert not (folder / "out.toml").exists()


def test_there_must_be_a_place_for_the_file(folder):
    done, said = vortex(folder, "run", "workflow.json", "--learn", "nowhere/out.toml")
    assert done.returncode == 2
    assert "there is no folder" in said


def test_over_a_policy_of_ones_own(folder):
    """Which the learned one extends, wherever each lies; and what it refuses to learn is death as ever."""
    (folder / "mine").mkdir()
    mine = folder / "mine" / "mine.toml"
    mine.write_text(
        'extends = "execute"\n[mine]\ngetpgid = "A need."\n[default]\naction = "kill_process"\nreason = "r"\n'
    )
    with vw.Fabric(1, standby=0, custom_nodes=folder, policy=str(mine), learn=True) as fabric:
        with pytest.raises(SandboxViolation, match="denies"):
            fabric.run("Greedy", params={"foreign": True}, retries=0)
        learned = {line["call"] for line in fabric.write_learned(folder / "a.toml")}
        assert learned == CALLS - {"getpgid"}  # what i386 calls getpid can't be a line of a policy
    with vw.Fabric(1, standby=0, custom_nodes=folder, policy=str(folder / "a.toml"), learn=True) as fabric:
        assert fabric.run("Greedy")["text"] == "done"
        assert fabric.write_learned(folder / "b.toml") == []


def test_nobody_learns_unasked(folder):
    with vw.Fabric(1, standby=0, custom_nodes=folder) as fabric, pytest.raises(ConfigError, match="learn is False"):
        fabric.write_learned(folder / "out.toml")
