"""What the sandbox must not stop: a worker's day under Landlock and both filters, in a program of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sandbox_child import supported

pytestmark = pytest.mark.skipif(not supported(), reason="this machine lacks seccomp or Landlock")
torch = pytest.importorskip("torch")

#: What the strict policy takes away on purpose: whatever needs a file.
NEEDS_FILES = {
    "safetensors_by_path", "torch_load", "a_custom_node", "the_standard_library",
    "memory_mapped_files", "a_slip_of_the_pen", "looking_around",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("models"))


def make_folder(folder: Path) -> Path:
    """Fill a folder with what the workload reads."""
    import safetensors.torch

    safetensors.torch.save_file({"a": torch.ones(8, 8)}, folder / "model.safetensors")
    torch.save({"a": torch.ones(8, 8)}, folder / "model.pt")
    (folder / "slip.py").write_text("def half(:\n")
    (folder / "node_pack.py").write_text("import math, torch\ndef double(x):\n    return 2 * x\n")
    return folder


def work(folder: Path, policy: str) -> dict[str, Any]:
    program = Path(__file__).with_name("workload.py")
    done = subprocess.run(
        [sys.executable, program, folder, policy], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"ended with {done.returncode}; its last words:\n{done.stderr[-2000:]}"
    return dict(json.loads(done.stdout))


def test_execute(folder: Path) -> None:
    report = work(folder, "execute")
    jobs = report["jobs"]
    late = jobs.pop("a_late_extension_module")
    assert {name: result for name, result in jobs.items() if not result.startswith("ok")} == {}
    assert len(jobs) >= 18
    assert "PNG JPEG" in jobs["images"]
    assert "failed to map segment" in late or late == "ok (built in)"
    assert not [name for name in report["missing"] if not name.startswith("PIL._")]
    assert not (folder / "new.txt").exists()
    assert not (folder / "__pycache__").exists()


def test_strict(folder: Path) -> None:
    jobs = work(folder, "strict")["jobs"]
    jobs.pop("a_late_extension_module")
    failed = {name for name, result in jobs.items() if not result.startswith("ok")}
    assert failed == NEEDS_FILES, jobs
