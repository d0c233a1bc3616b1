"""The command line: what it prints, its exit codes, and what an interruption leaves behind (nothing)."""

import contextlib
import json
import os
import platform
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from vortex_worker.cli.changes import Changes

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-P", "-m", "vortex_worker"]
SMALL = {
    "a": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64}},
    "b": {"class_type": "RepeatLatentBatch", "inputs": {"samples": ["a", 0], "amount": 2}},
}


def vortex(*arguments, cwd, **options):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=120, **options
    )


def workflow(tmp_path, nodes=SMALL):
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(nodes))
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits example, copied: it must run from anywhere."""
    folder = tmp_path_factory.mktemp("digits")
    for name in ("workflow.json", "nodes.py", "network.py", "digits.safetensors"):
        shutil.copy(ROOT / "examples" / "digits" / name, folder)
    return folder


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


def test_a_workflow_that_is_neither_file_nor_example_is_told_what_there_is(tmp_path):
    done = vortex("run", "digit", cwd=tmp_path)
    assert done.returncode == 2
    assert "no file 'digit'" in done.stderr
    assert "there is digits" in done.stderr


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
    "arguments",
    [
        ["run", "missing.json"],
        ["run"],
        ["fly"],
        ["run", "workflow.json", "--workers", "0"],
        ["run", "workflow.json", "--set", "a"],
    ],
)
def test_bad_usage_is_status_2(tmp_path, arguments):
    workflow(tmp_path)
    done = vortex(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


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


def test_nodes_lists_what_there_is(digits, tmp_path):
    done = vortex("nodes", "--custom-nodes", digits, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    nodes = {node["name"]: node for node in json.loads(done.stdout)["nodes"]}
    assert {"KSampler", "DigitsModelLoader", "SaveImage", "EmptyLatentImage"} <= nodes.keys()
    seed = next(param for param in nodes["KSampler"]["params"] if param["name"] == "seed")
    assert seed["maximum"] == (1 << 64) - 1
    assert len(re.findall(r"\bKSampler\b", vortex("nodes", cwd=tmp_path).stdout)) == 1


def test_start_is_a_worker_configured_by_the_environment(tmp_path):
    env = {key: value for key, value in os.environ.items() if not key.startswith("VORTEX_")}
    done = vortex("start", cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert "VORTEX_SOCKET is not set" in done.stderr


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


def at_a_terminal(*arguments, cwd):
    """What the command shows at a terminal of 80 columns, and its standard output, which goes to a file."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    with open(cwd / "stdout", "w+") as stdout:
        process = subprocess.Popen([*COMMAND, *map(str, arguments)], cwd=cwd, stdout=stdout, stderr=slave)
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # Linux's word for the end of a terminal
            while data := os.read(master, 1 << 16):
                shown += data
        os.close(master)
        assert process.wait(60) == 0
        return shown.decode(), (cwd / "stdout").read_text()


def test_bars_are_for_terminals_and_results_for_standard_output(tmp_path):
    nodes = SMALL | {"c": {"class_type": "SaveLatent", "inputs": {"samples": ["b", 0], "filename_prefix": "x"}}}
    shown, said = at_a_terminal("run", workflow(tmp_path, nodes), cwd=tmp_path)
    assert "━" in shown
    assert "RepeatLatentBatch" in shown
    assert "3 nodes in " in shown
    assert said == "wrote out/x_00001.latent\n"
    shown, said = at_a_terminal("run", "--quiet", tmp_path / "workflow.json", cwd=tmp_path)
    assert (shown, said) == ("", "wrote out/x_00002.latent\n")


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


@pytest.mark.parametrize("group", [[], ["policy"]])
def test_the_list_of_commands_says_all_in_80_columns(tmp_path, group):
    """Found by a first user: sentences ended in "..."."""
    done = vortex(*group, "--help", cwd=tmp_path, env=os.environ | {"COLUMNS": "80"})
    assert "Commands:" in done.stdout
    assert "..." not in done.stdout.replace("[ARGS]...", "")
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_run_without_an_output_node_says_that_it_wrote_nothing(tmp_path):
    nodes = SMALL | {"c": {"class_type": "SaveLatent", "inputs": {"samples": ["b", 0]}}}
    done = vortex("run", workflow(tmp_path, nodes), "--only", "b", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "it ended well; it wrote no file, for none of these is an output node" in done.stderr
    assert "wrote no file" not in vortex("run", tmp_path / "workflow.json", cwd=tmp_path).stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the matrix makes system calls by hand")
def test_the_matrix_says_what_it_does_where_there_is_no_terminal(tmp_path):
    """Found by a first user: it was silent for minutes."""
    matrix = [*COMMAND, "doctor", "--matrix", "--profile", "bootstrap", "--profile", "execute"]  # for a minute or two
    process = subprocess.Popen(
        matrix, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stderr.readline() == "policy bootstrap (1 of 2): trying every system call\n"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("matrix", [[], ["--matrix"]])
def test_doctor_names_the_policies_there_are(tmp_path, matrix):
    done = vortex("doctor", *matrix, "--profile", "nosuch", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("--profile nosuch: no policy 'nosuch'; there are bootstrap, cuda, ")
    assert "execute, " in done.stderr
    assert done.stdout == ""


def test_in_a_pipe_no_name_of_a_node_is_cut(tmp_path):
    folder = tmp_path / "nodes"
    folder.mkdir()
    (folder / "long.py").write_text(
        "from vortex_worker.executor import AbstractExecutor, Param\n"
        f"class Long(AbstractExecutor):\n    op_type = '{'Long' * 40}'\n"
        f"    params = (Param('{'name' * 40}', 'INT'),)\n"
        "    def execute(self, inputs, params): return {}\n"
    )
    listed = vortex("nodes", "--custom-nodes", folder, cwd=tmp_path).stdout
    assert "Long" * 40 + "  nodes/long\n" in listed
    assert f"  takes  {'name' * 40} [a whole number]\n" in listed
    assert "euler_ancestral_cfg_pp" in listed


def test_only_runs_what_a_node_needs_and_a_picture_is_a_workflow(digits, tmp_path):
    done = vortex("run", digits / "workflow.json", "--only", "prompt", "--json", "-o", "out", cwd=tmp_path)
    assert [node["id"] for node in json.loads(done.stdout)["nodes"]] == ["prompt"]
    vortex("run", digits / "workflow.json", "-o", "out", "--set", "sampler.steps=1", cwd=tmp_path)
    picture = tmp_path / "out" / "digits_00001.png"
    again = vortex("run", picture, "--custom-nodes", digits, "-o", "again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again" / "digits_00001.png").read_bytes() == picture.read_bytes()


@pytest.mark.parametrize("after", [0.05, 0.3, 0.8, 1.5, 2.5])
def test_ctrl_c_at_any_moment_leaves_nothing_behind(digits, tmp_path, after):
    before = set(os.listdir("/dev/shm"))
    marker = f"vortex-test-{os.getpid()}-{after}"
    process = subprocess.Popen(
        [*COMMAND, "run", str(digits / "workflow.json"), "-o", "out", "--set", "sampler.steps=9999"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | {"LC_VORTEX_TEST": marker},
    )  # fmt: skip
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT), said.decode()
    if after > 0.5:
        assert process.returncode == 130
        assert b"Traceback" not in said, said.decode()
    assert processes_with(marker) == []
    assert set(os.listdir("/dev/shm")) <= before


@pytest.mark.parametrize("after", [0.3, 1.0, 2.5])
def test_a_killed_supervisor_takes_its_workers_with_it(digits, tmp_path, after):
    before = set(os.listdir("/dev/shm"))
    marker = f"vortex-test-{os.getpid()}-kill-{after}"
    process = subprocess.Popen(
        [*COMMAND, "run", str(digits / "workflow.json"), "-o", "out", "-w", "2", "--set", "sampler.steps=9999"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"LC_VORTEX_TEST": marker},
    )  # fmt: skip
    time.sleep(after)
    process.kill()
    process.wait()
    end = time.monotonic() + 30
    while processes_with(marker) and time.monotonic() < end:
        time.sleep(0.05)
    assert processes_with(marker) == []
    assert set(os.listdir("/dev/shm")) <= before


def processes_with(marker):
    """Processes whose environment has the marker: a run's own, and its workers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                pass  # it ended meanwhile, or is not ours
    return found


def test_a_script_beside_a_workflow_is_no_custom_node(tmp_path):
    """Found by a first user: their own programs were loaded as nodes, or kept workers from starting."""
    path = workflow(tmp_path)
    (tmp_path / "mine.py").write_text("import time\ntime.sleep(1000)\n")
    done = vortex("run", path, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "did not load" not in done.stderr


@pytest.mark.parametrize(("kind", "status"), [("ImageScale", 1), ("\x1b[31m", 2)])
def test_what_a_workflow_names_does_not_steer_the_terminal(tmp_path, kind, status):
    scale = {"image": ["small", 0], "upscale_method": "bilinear", "width": 16384, "height": 16384, "crop": "disabled"}
    path = workflow(
        tmp_path,
        {
            "small": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0}},
            "\x1b[31ma": {"class_type": kind, "inputs": scale},  # more than there is room for
        },
    )
    done = vortex("run", path, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert "node \\x1b[31ma" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


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


STRANGE = """
import time
from vortex_worker.executor import AbstractExecutor

class Forever(AbstractExecutor):
    op_type = "Forever"
    def execute(self, inputs, params):
        while True:
            time.sleep(0.1)

class Greedy(AbstractExecutor):
    op_type = "Greedy"
    output_ports = ()
    def execute(self, inputs, params):
        bytearray(8 << 30)
        return {}
"""


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


def test_verbose_shows_what_nodes_print_and_texts_that_they_show_are_results(tmp_path):
    (tmp_path / "nodes.py").write_text(
        "class Say:\n"
        "    RETURN_TYPES, FUNCTION, OUTPUT_NODE = (), 'say', True\n"
        "    INPUT_TYPES = classmethod(lambda cls: {'required': {'text': ('STRING', {})}})\n"
        "    def say(self, text):\n"
        "        print('the node said', text)\n"
        "        return {'ui': {'text': [text, text.upper()]}}\n"
        "NODE_CLASS_MAPPINGS = {'Say': Say}\n"
    )
    path = workflow(tmp_path, {"1": {"class_type": "Say", "inputs": {"text": "hello\x1b[31m"}}})
    shown = "1: hello\\x1b[31m\n1: HELLO\\x1b[31M\n"
    plain, verbose = vortex("run", path, cwd=tmp_path), vortex("run", path, "-v", cwd=tmp_path)
    assert (plain.returncode, verbose.returncode) == (0, 0), plain.stderr + verbose.stderr
    assert plain.stdout == verbose.stdout == shown
    assert "the node said" not in plain.stderr
    assert "info: w0.1: the node said hello\\x1b[31m" in verbose.stderr


def test_results_that_nobody_can_take_are_told_in_words(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "run", str(workflow(tmp_path)), "--json"], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE,
            text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "standard output can't be written: No space left on device\n"
