"""What is left of a run that is interrupted or killed: nothing."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from shell import COMMAND


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
