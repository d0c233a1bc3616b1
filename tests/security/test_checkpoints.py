"""Hostile checkpoints: each ends in an error or a death that says what it was, with no effect outside, and no hang."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_child import supported

import vortex_worker as vw
from vortex_worker.errors import ExecutionError, JobError, OOMSoft, SandboxViolation, WorkerLost

torch = pytest.importorskip("torch")
import hostile_files  # noqa: E402

pytestmark = pytest.mark.skipif(not supported(), reason="this machine lacks seccomp or Landlock")
NODES = Path(__file__).parent / "nodes"
MARK = "/tmp/vw-a-checkpoint-ran-code"
DEADLINE = 60.0  # s: nothing hangs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def fabric(folder: Path) -> Iterator[vw.Fabric]:
    with vw.Fabric(1, custom_nodes=NODES, models=folder, threads=1, memory_limit=4 << 30) as fabric:
        yield fabric.wait_ready(120)


def load(fabric: vw.Fabric, folder: Path, name: str, content: bytes, *, unsafe: bool = False) -> JobError | None:
    """Have a worker load it: the error, if there was one. The mark must not be there, and the fabric go on."""
    path = folder / name
    path.write_bytes(content)
    error = None
    try:
        fabric.run("LoadCheckpoint", params={"path": str(path), "unsafe": unsafe}, deadline=DEADLINE)
    except JobError as caught:
        error = caught
    finally:
        path.unlink()
    assert not Path(MARK).exists(), "code in a checkpoint had an effect"
    assert fabric.run("Identity", {"tensor": 7}) == {"tensor": 7}
    return error


def test_a_good_one_is_loaded(fabric: vw.Fabric, folder: Path) -> None:
    torch.save({"a": torch.ones(4)}, folder / "good.pt")
    assert fabric.run("LoadCheckpoint", params={"path": str(folder / "good.pt")}) == {"tensors": 1}
    header = {"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}
    (folder / "good.safetensors").write_bytes(hostile_files.safetensors(header))
    assert fabric.run("LoadCheckpoint", params={"path": str(folder / "good.safetensors")}) == {"tensors": 1}


@pytest.mark.parametrize("name", hostile_files.code(MARK))
@pytest.mark.parametrize("form", ["archive", "legacy"])
def test_code_is_not_run_by_a_careful_load(fabric: vw.Fabric, folder: Path, name: str, form: str) -> None:
    pickled = hostile_files.code(MARK)[name]
    error = load(fabric, folder, "code.pt", hostile_files.archive(pickled) if form == "archive" else pickled)
    assert isinstance(error, ExecutionError), error
    assert "Weights only load failed" in error.message or "Invalid magic number" in error.message


@pytest.mark.parametrize("name", hostile_files.code(MARK))
def test_code_that_is_run_does_nothing_outside(fabric: vw.Fabric, folder: Path, name: str) -> None:
    """The node was careless: the sandbox is not."""
    error = load(fabric, folder, "code.pt", hostile_files.archive(hostile_files.code(MARK)[name]), unsafe=True)
    assert error is None or isinstance(error, ExecutionError | SandboxViolation), error
    if isinstance(error, SandboxViolation):
        assert error.details["syscall"]


@pytest.mark.parametrize("name", hostile_files.broken())
def test_broken_archives(fabric: vw.Fabric, folder: Path, name: str) -> None:
    error = load(fabric, folder, "broken.pt", hostile_files.broken()[name])
    harmless = ("a path that climbs out", "a bomb of 256 MiB", "a cycle", "truncated by a byte")
    assert error is not None or name in harmless
    assert error is None or isinstance(error, ExecutionError | OOMSoft | WorkerLost), error


@pytest.mark.parametrize("name", hostile_files.lying_tensors())
def test_lying_safetensors(fabric: vw.Fabric, folder: Path, name: str) -> None:
    error = load(fabric, folder, "lying.safetensors", hostile_files.lying_tensors()[name])
    assert isinstance(error, ExecutionError), error


def test_enough_of_them() -> None:
    every = [hostile_files.code(MARK), hostile_files.broken(), hostile_files.lying_tensors()]
    assert sum(map(len, every)) >= 50
