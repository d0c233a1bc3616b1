"""``vortex-worker run --watch``: what it takes for a change, and what it runs then."""

import json
import os
import re
import shutil
import signal
import subprocess

from shell import COMMAND, SMALL, workflow

from vortex_worker.cli.changes import Changes


def test_watch_runs_again_what_a_change_touches(tmp_path):
    path = workflow(tmp_path)
    process = subprocess.Popen(
        [*COMMAND, "run", str(path), "--watch", "--json"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        told = lambda: json.loads(process.stdout.readline())  # noqa: E731
        assert [node["id"] for node in told()["nodes"]] == ["a", "b"]
        workflow(
            tmp_path, {**SMALL, "b": {"class_type": "RepeatLatentBatch", "inputs": {"samples": ["a", 0], "amount": 3}}}
        )
        second = told()
        assert ([node["id"] for node in second["nodes"]], second["cached"]) == (["b"], ["a"])
        path.write_text("{")
        assert "not JSON" in told()["error"]["message"]
        workflow(tmp_path)
        assert told()["nodes"] == []  # as at first
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130


def test_watch_says_when_nothing_changed_and_writes_nothing_then(tmp_path):
    nodes = SMALL | {"c": {"class_type": "SaveLatent", "inputs": {"samples": ["b", 0], "filename_prefix": "x"}}}
    path = workflow(tmp_path, nodes)
    process = subprocess.Popen(
        [*COMMAND, "run", str(path), "--watch"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "wrote out/x_00001.latent\n"
        assert re.match(r"\d\d:\d\d:\d\d 3 nodes in [\d.]+ s, sandboxed by ", process.stderr.readline())
        path.write_text(path.read_text() + "\n")
        assert re.fullmatch(r"\d\d:\d\d:\d\d nothing changed\n", process.stderr.readline())
        nodes["b"]["inputs"]["amount"] = 3
        workflow(tmp_path, nodes)
        assert process.stdout.readline() == "wrote out/x_00002.latent\n"
        assert " 2 nodes (1 unchanged) in " in process.stderr.readline()
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert sorted(os.listdir(tmp_path / "out")) == ["x_00001.latent", "x_00002.latent"]


def test_a_folder_that_has_gone_is_a_change_like_any_other(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    changes = Changes(workflow(folder), [str(folder)])
    shutil.rmtree(folder)
    assert changes.wait() is False
    folder.mkdir()
    (folder / "nodes.py").touch()
    assert changes.wait() is True


def test_what_the_workflow_does_not_name_is_not_watched(tmp_path):
    """Found by a first user: a log beside the workflow made it run for ever."""
    path = workflow(tmp_path, {"1": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}}})
    (tmp_path / "cat.png").touch()
    changes = Changes(path, [])
    (tmp_path / "watch.log").write_text("more")
    before = dict(changes._last)
    assert changes._now() == before
    (tmp_path / "cat.png").write_bytes(b"1")
    assert changes._now() != before
