"""``vortex-worker doctor``: what it says while it tries, and of a policy that is not there."""

import os
import platform
import signal
import subprocess

import pytest
from shell import COMMAND, vortex


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
