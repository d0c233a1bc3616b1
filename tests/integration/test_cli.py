"""The command line as a whole: its usage, what it shows at a terminal and in a pipe, and to whom."""

import contextlib
import os
import pty
import subprocess
import termios

import pytest
from shell import COMMAND, SMALL, vortex, workflow


def test_a_workflow_that_is_neither_file_nor_example_is_told_what_there_is(tmp_path):
    done = vortex("run", "digit", cwd=tmp_path)
    assert done.returncode == 2
    assert "no file 'digit'" in done.stderr
    assert "there is digits" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "missing.json"],
        ["run"],
        ["fly"],
        ["run", "workflow.json", "--workers", "0"],
        ["run", "workflow.json", "--set", "a"],
        ["run", "workflow.json", "-o", ""],
    ],
)
def test_bad_usage_is_status_2(tmp_path, arguments):
    workflow(tmp_path)
    done = vortex(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_start_is_a_worker_configured_by_the_environment(tmp_path):
    env = {key: value for key, value in os.environ.items() if not key.startswith("VORTEX_")}
    done = vortex("start", cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert "VORTEX_SOCKET is not set" in done.stderr


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


@pytest.mark.parametrize("group", [[], ["policy"]])
def test_the_list_of_commands_says_all_in_80_columns(tmp_path, group):
    """Found by a first user: sentences ended in "..."."""
    done = vortex(*group, "--help", cwd=tmp_path, env=os.environ | {"COLUMNS": "80"})
    assert "Commands:" in done.stdout
    assert "..." not in done.stdout.replace("[ARGS]...", "")
    assert max(map(len, done.stdout.splitlines())) <= 80


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
