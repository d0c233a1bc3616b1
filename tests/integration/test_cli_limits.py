"""``vortex-worker run``: limits of a workflow's time and memory, and settings that can't be."""

import json

import pytest
from shell import STRANGE, vortex, workflow


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "gpu"], "device is 'gpu': it takes auto, cpu, cuda, cuda:N or mps"),
        (["--policy", "nosuch"], "policy is 'nosuch': it takes execute, strict, cuda or the path of a TOML file"),
        (["--policy", "./none.toml"], "policy ./none.toml: "),
        (["--models", "nowhere"], "'nowhere' does not exist"),
    ],
)
def test_bad_settings_are_told_before_a_worker_starts(tmp_path, arguments, said):
    done = vortex("run", workflow(tmp_path), *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "worker" not in done.stderr.replace("vortex-worker", "")


@pytest.mark.parametrize(
    ("node", "limit", "code"),
    [("Forever", ["--timeout", "3"], "WK-008"), ("Greedy", ["--memory-limit", "2G"], "WK-001")],
)
def test_a_workflow_of_a_strangers_is_limited_in_time_and_memory(tmp_path, node, limit, code):
    """Found by a first user: the command line had no limit for either."""
    (tmp_path / "strange.py").write_text(STRANGE)
    path = workflow(tmp_path, {"1": {"class_type": node, "inputs": {}}})
    done = vortex("run", path, *limit, "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["error"]["code"] == code


@pytest.mark.parametrize(
    ("option", "value"),
    [("--memory-limit", value) for value in ("2X", "-1", "0", "1.5G", "G", "9999999999G")]
    + [("--timeout", value) for value in ("0", "-1", "nan", "soon")]
    + [("--lease-size", value) for value in ("0", "1.5G", "2X")],
)
def test_a_limit_that_is_none_is_refused_by_name(tmp_path, option, value):
    done = vortex("run", workflow(tmp_path), option, value, cwd=tmp_path)
    assert done.returncode == 2
    assert option in done.stderr
    assert value in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--device", "cuda:99", "device is 'cuda:99', which is not here"),
        ("--module", "nosuch", "modules is 'nosuch'"),
        ("--lease-size", "1M", "lease_size is 1048576: it takes a whole number, 2097152 to "),
        ("--lease-size", "16T", "leases of lease_size 17592186044416 take "),
        ("--memory-limit", "50M", "the memory limit is 52428800 bytes, and a worker that starts here has"),
    ],
)
def test_a_setting_that_a_worker_refuses_is_told_in_words(tmp_path, option, value, said):
    """Found by a first user: the worker's log was shown as it was, in JSON."""
    done = vortex("run", workflow(tmp_path), option, value, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("bad settings\n")
    assert said in done.stderr
    assert "{" not in done.stderr


def test_a_worker_s_outputs_have_the_room_that_they_are_given(tmp_path):
    big = {"a": {"class_type": "EmptyImage", "inputs": {"width": 2048, "height": 1024}}}
    big["b"] = {"class_type": "ImageInvert", "inputs": {"image": ["a", 0]}}
    small = vortex("run", workflow(tmp_path, big), "--lease-size", "16M", cwd=tmp_path)
    assert small.returncode == 2
    assert "a worker's outputs have 16777216 bytes, and --lease-size or Fabric's" in " ".join(small.stderr.split())
    half = vortex("run", workflow(tmp_path, big), "--lease-size", "32M", "--json", cwd=tmp_path)
    assert half.returncode == 1
    assert "--lease-size or Fabric's lease_size= gives them more" in json.loads(half.stdout)["error"]["message"]
    enough = vortex("run", workflow(tmp_path, big), "--lease-size", "64M", cwd=tmp_path)
    assert enough.returncode == 0, enough.stderr
