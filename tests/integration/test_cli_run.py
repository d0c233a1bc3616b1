"""``vortex-worker run``: what it prints and writes, and its exit codes."""

import json
import os
from pathlib import Path

import pytest
from shell import SMALL, STRANGE, vortex, workflow


def test_run_json_tells_outputs_nodes_and_the_sandbox_in_force(digits, tmp_path):
    done = vortex(
        "run", digits / "workflow.json", "-o", tmp_path / "out", "--json", "--set", "sampler.steps=2", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert report["seconds"] > 0
    (output,) = report["outputs"]
    assert output["node"] == "save"
    assert Path(output["files"][0]).read_bytes().startswith(b"\x89PNG")
    assert [node["id"] for node in report["nodes"]] == ["model", "prompt", "sampler", "picture", "save"]
    assert all(set(node) == {"id", "class_type", "worker", "ms"} for node in report["nodes"])
    (worker,) = report["workers"]
    assert worker["sandbox"]["enforced"] is True
    assert worker["sandbox"]["kernel"] == {"seccomp": 2, "filters": 3, "no_new_privs": True, "capabilities": 0}


def test_run_digits_needs_no_file_of_ours(tmp_path):
    done = vortex("run", "digits", "-o", "out", "--set", "sampler.steps=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "digits_00001.png").exists()


def test_run_says_where_the_picture_went_and_how_it_was_made(digits, tmp_path):
    done = vortex("run", digits / "workflow.json", "-o", "out", "--set", "sampler.steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "wrote out/digits_00001.png\n"
    assert "5 nodes in " in done.stderr
    assert "━" not in done.stderr  # bars are for terminals
    assert (tmp_path / "out" / "digits_00001.png").exists()


def test_a_second_run_writes_beside_the_first(digits, tmp_path):
    for _ in range(2):
        vortex("run", digits / "workflow.json", "-o", "out", "--set", "sampler.steps=1", cwd=tmp_path)
    assert sorted(os.listdir(tmp_path / "out")) == ["digits_00001.png", "digits_00002.png"]


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ({"a": {"class_type": "EmptyLatentImag", "inputs": {}}}, "did you mean 'EmptyLatentImage'"),
        (
            {**SMALL, "b": {"class_type": "RepeatLatentBatch", "inputs": {"samples": ["z", 0]}}},
            "'z', which is not there",
        ),
        (
            {n: {"class_type": "RepeatLatentBatch", "inputs": {"samples": [m, 0]}} for n, m in ("ab", "ba")},
            "part of a cycle",
        ),
        ({**SMALL, "a": {"class_type": "EmptyLatentImage", "inputs": {"width": "wide"}}}, "'width' is 'wide'"),
    ],
)
def test_a_bad_workflow_is_status_2_and_told_by_node(tmp_path, nodes, said):
    path = workflow(tmp_path, nodes)
    done = vortex("run", path, cwd=tmp_path)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    as_json = vortex("run", path, "--json", cwd=tmp_path)
    assert as_json.returncode == 2
    error = json.loads(as_json.stdout)
    assert error["ok"] is False
    assert any(said in problem["message"] for problem in error["error"]["problems"])


@pytest.mark.parametrize(
    ("target", "depth", "said"),
    [
        ("a.width", 50_000, "--set a.width: its value is nested too deeply"),
        ("a.width", 200, "--set a.width is nested too deeply, or holds itself"),
        ("a.width", 50, "'width' is a list: it takes a whole number"),
        ("switch.yes", 50, "'yes' can't be sent to a worker: lists and dicts are nested deeper than 32"),
    ],
)
def test_a_deep_set_is_status_2_and_told(tmp_path, target, depth, said):
    switch = {"switch": {"class_type": "PackSwitch", "inputs": {"on": True, "yes": 1, "no": 2}}}
    path, pack = workflow(tmp_path, SMALL | switch), Path(__file__).parent / "packs" / "tensors"
    value = "[" * depth + "]" * depth
    done = vortex("run", path, "--custom-nodes", pack, "--set", f"{target}={value}", cwd=tmp_path)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_failing_node_is_status_1_and_named(tmp_path):
    (tmp_path / "bad.py").write_text(
        "from vortex_worker.executor import AbstractExecutor\n"
        "class Bad(AbstractExecutor):\n    op_type = 'Bad'\n"
        "    def execute(self, inputs, params):\n        raise ValueError('no such luck')\n"
    )
    path = workflow(tmp_path, {"7": {"class_type": "Bad", "inputs": {}}})
    done = vortex("run", path, cwd=tmp_path)
    assert done.returncode == 1
    assert "node 7" in done.stderr
    assert "no such luck" in done.stderr
    error = json.loads(vortex("run", path, "--json", cwd=tmp_path).stdout)["error"]
    assert (error["code"], error["details"]["node"]) == ("WK-006", "7")


def test_an_output_folder_that_cannot_be_made_is_told(digits, tmp_path):
    (tmp_path / "file").write_text("")
    done = vortex("run", digits / "workflow.json", "-o", "file/out", "--set", "sampler.steps=1", cwd=tmp_path)
    assert done.returncode == 2
    assert "node save: output folder 'file/out' can't be made: Not a directory" in done.stderr


def test_a_plugin_that_fails_is_told_once_in_a_line_and_with_v_its_traceback(tmp_path):
    """Found by first users: each worker wrote it, with its line ends escaped; then it was thirty lines of ours."""
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "slip.py").write_text("import nothing_of_this_name\n")
    done = vortex("run", workflow(tmp_path), "--custom-nodes", "nodes", "--workers", "2", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.count("nothing_of_this_name'") == 1
    assert done.stderr.startswith("warning: nodes/slip did not load: ModuleNotFoundError: No module named ")
    (line,) = [line for line in done.stderr.splitlines() if "nothing_of_this_name" in line]
    assert "install it beside vortex-worker" in line
    assert line.endswith(f" ({tmp_path}/nodes/slip.py:1)")
    assert '\n  File "' not in done.stderr
    done = vortex("run", workflow(tmp_path), "--custom-nodes", "nodes", "--workers", "2", "-v", cwd=tmp_path)
    assert done.stderr.count(f'\n  File "{tmp_path}/nodes/slip.py", line 1, in <module>\n') == 1
    assert "direct cause" not in done.stderr
    unknown = workflow(tmp_path, {"1": {"class_type": "Facefix", "inputs": {}}})
    done = vortex("run", unknown, "--custom-nodes", "nodes", cwd=tmp_path)
    assert (
        "there is no node 'Facefix'. Folders of custom nodes are given by custom_nodes= or --custom-nodes"
        in done.stderr
    )


def test_a_run_without_an_output_node_says_that_it_wrote_nothing(tmp_path):
    nodes = SMALL | {"c": {"class_type": "SaveLatent", "inputs": {"samples": ["b", 0]}}}
    done = vortex("run", workflow(tmp_path, nodes), "--only", "b", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "it ended well; it wrote no file, for none of these is an output node" in done.stderr
    assert "wrote no file" not in vortex("run", tmp_path / "workflow.json", cwd=tmp_path).stderr


def test_only_runs_what_a_node_needs_and_a_picture_is_a_workflow(digits, tmp_path):
    done = vortex("run", digits / "workflow.json", "--only", "prompt", "--json", "-o", "out", cwd=tmp_path)
    assert [node["id"] for node in json.loads(done.stdout)["nodes"]] == ["prompt"]
    vortex("run", digits / "workflow.json", "-o", "out", "--set", "sampler.steps=1", cwd=tmp_path)
    picture = tmp_path / "out" / "digits_00001.png"
    again = vortex("run", picture, "--custom-nodes", digits, "-o", "again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again" / "digits_00001.png").read_bytes() == picture.read_bytes()


def test_a_script_beside_a_workflow_is_no_custom_node(tmp_path):
    """Found by a first user: their own programs were loaded as nodes, or kept workers from starting."""
    path = workflow(tmp_path)
    (tmp_path / "mine.py").write_text("import time\ntime.sleep(1000)\n")
    done = vortex("run", path, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "did not load" not in done.stderr


def test_a_refused_node_is_named_among_those_that_loaded(tmp_path):
    """Found by a first user: it said that the whole file had not loaded."""
    (tmp_path / "two.py").write_text(
        STRANGE + '\nclass Bad(AbstractExecutor):\n    op_type = "Greedy"\n    def execute(self, inputs, params): ...\n'
    )
    nodes = SMALL | {"c": {"class_type": "Lost", "inputs": {}}}
    done = vortex("run", workflow(tmp_path, nodes), "--only", "c", cwd=tmp_path)
    folder = tmp_path.name
    assert f"warning: a node of {folder}/two did not load: ValueError: there are two nodes 'Greedy'" in done.stderr
    assert done.returncode == 2
    assert "there is no node 'Lost'. " in done.stderr
    assert done.stderr.rstrip().endswith(f". These did not load: {folder}/two")
