"""A build without seccomp: no worker starts unasked, none runs custom nodes unasked, and one that runs says what it is.

The build itself is only configured here. What runs is the installed one, in processes that find its filter compiler
missing, as they would in such a build.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sandbox_child import supported

pytestmark = pytest.mark.skipif(not supported(), reason="this build has no libseccomp to go without")
ROOT = Path(__file__).parents[2]

#: Stands in for the Python interpreter, and for whatever is started by it.
WITHOUT = """\
#!{python}
import runpy, sys
sys.modules["vortex_worker._core._seccomp"] = None
sys.executable = __file__
arguments = [argument for argument in sys.argv[1:] if argument != "-P"]
if arguments[0] == "-m":
    sys.argv = arguments[1:]
    runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
elif arguments[0] == "-c":
    sys.argv = ["-c"]
    exec(arguments[1])
else:
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
"""
WORKFLOW = {"a": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64}}}
LOOK = """
import json, logging, sys
import vortex_worker as vw
if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    with vw.Fabric(1, standby=0, allow_unsandboxed=True, custom_nodes=sys.argv[1:]) as fabric:
        fabric.run("Identity", {"tensor": [1.0]})
        print(json.dumps([worker["sandbox"] for worker in fabric.workers()]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    python = tmp_path / "python"
    python.write_text(WITHOUT.format(python=sys.executable))
    python.chmod(0o755)
    (tmp_path / "look.py").write_text(LOOK)
    (tmp_path / "flow").mkdir()
    (tmp_path / "flow" / "workflow.json").write_text(json.dumps(WORKFLOW))
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "mine.py").write_text("print('loaded')\n")
    return tmp_path


def run(folder: Path, *arguments: Any) -> tuple[int, str, str]:
    done = subprocess.run(
        [folder / "python", *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout, " ".join(done.stderr.split())


def test_no_worker_starts_unasked(folder: Path) -> None:
    status, _, said = run(folder, "-m", "vortex_worker", "run", "flow/workflow.json")
    assert status == 1
    assert "this build has no seccomp; VORTEX_ALLOW_UNSANDBOXED=1 runs without it" in said


def test_custom_nodes_are_refused_by_name(folder: Path) -> None:
    status, _, said = run(folder, "-m", "vortex_worker", "run", "flow/workflow.json", "--custom-nodes", "nodes")
    assert status == 2  # of bad settings
    assert f"custom nodes are configured ({folder / 'nodes'}), but nothing confines this process" in said


def test_whoever_runs_without_is_told(folder: Path) -> None:
    status, shown, said = run(folder, "look.py", folder / "nodes")
    assert status == 0, said
    (sandbox,) = json.loads(shown)
    assert (sandbox["policy"], sandbox["enforced"], sandbox["kernel"]["seccomp"]) == ("null", False, 0)
    assert not {layer for layer in sandbox["layers"] if layer.startswith(("seccomp", "listener", "seal"))}
    assert "landlock" in sandbox["layers"]  # what can be had is in force
    assert "worker.unsandboxed" in said
    assert "this build has no seccomp" in said


def test_the_doctor_says_so(folder: Path) -> None:
    status, shown, _ = run(folder, "-m", "vortex_worker", "doctor", "--json")
    assert status == 1
    assert "no seccomp" in json.loads(shown)["worker"]["error"]


@pytest.mark.parametrize("setting", ["enabled", "disabled"])
def test_it_is_an_option_of_the_build(tmp_path: Path, setting: str) -> None:
    meson = shutil.which("meson", path=str(Path(sys.executable).parent))
    if meson is None or not (ROOT / "meson.build").exists():
        pytest.skip("there is no source tree, or no meson")
    tools = f"{Path(meson).parent}:{os.environ['PATH']}"  # of the build: cython and others, called by name
    subprocess.run(
        [meson, "setup", f"-Dseccomp={setting}", tmp_path / "build", ROOT],
        check=True, capture_output=True, env=os.environ | {"PATH": tools},
    )  # fmt: skip
    found = subprocess.run([meson, "introspect", "--targets", tmp_path / "build"], check=True, capture_output=True)
    names = {target["name"].partition(".")[0] for target in json.loads(found.stdout)}
    assert "lockdown" in names
    assert ("_seccomp" in names) == (setting == "enabled")
