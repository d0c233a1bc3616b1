"""safetensors files that can't be mapped, or hold what nobody computes with: told by what is wrong, and by name."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vortex_worker.errors import ValidationError
from vortex_worker.executor.diffusion import parts, weights
from vortex_worker.executor.diffusion.lora import Pair


def written(path: Path, dtype: str, shape: list[int], size: int) -> Path:
    """A file of one tensor, ``layer.weight``, all holes."""
    header = {"layer.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    return path


LIMITED = """
import resource, sys
from pathlib import Path
from vortex_worker import device
from vortex_worker.executor.diffusion import weights
resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
device.limit_memory(int(sys.argv[2]))
try:
    weights.read(Path(sys.argv[1]))
except MemoryError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("limit", "said"), [(4 << 30, r"this worker has a memory_limit of 4294967296"), (0, r"this machine has \d+")]
)
def test_a_file_larger_than_can_be_mapped_is_told_with_what_bounds_it(tmp_path: Path, limit: int, said: str) -> None:
    path = written(tmp_path / "x.safetensors", "F32", [5 << 28], 5 << 30)
    command = [sys.executable, "-c", LIMITED, str(path), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    size = path.stat().st_size
    assert re.fullmatch(rf"x.safetensors has {size} bytes, more than can be mapped: {said}\n", done.stdout), done.stderr


def test_a_file_that_went_away_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"x.safetensors can't be read: No such file or directory$"):
        weights.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("dtype", "size"), [("F7", 8), ("F8_E4M3FN", 8), ("F6_E2M3", 6), ("Q4_K", 8), (7, 8), (None, 8), ([], 8)]
)
def test_a_dtype_that_nobody_knows_is_told_with_its_tensor(tmp_path: Path, dtype: Any, size: int) -> None:
    with pytest.raises(ValidationError) as caught:
        weights.read(written(tmp_path / "x.safetensors", dtype, [8], size))
    said = f"x.safetensors: layer.weight is of dtype {dtype!r}: it takes BOOL, U8, I8, "
    assert said in str(caught.value)


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "loads"),
    [
        ("F64", [1, 8], 64, True), ("F32", [1, 8], 32, True), ("BF16", [1, 8], 16, True), ("F16", [1, 8], 16, True),
        ("F8_E4M3", [1, 8], 8, True), ("F8_E5M2", [1, 8], 8, True), ("F8_E4M3FNUZ", [1, 8], 8, True),
        ("F8_E5M2FNUZ", [1, 8], 8, True), ("F8_E8M0", [1, 8], 8, False), ("F4", [1, 16], 8, False),
        ("I32", [1, 8], 32, False), ("U16", [1, 8], 16, False), ("U64", [1, 8], 64, False), ("C64", [1, 8], 64, False),
        ("BOOL", [1, 8], 8, False),
    ],
)  # fmt: skip
def test_what_weights_may_be(tmp_path: Path, dtype: str, shape: list[int], size: int, loads: bool) -> None:
    """Every dtype that files have: computed with, or refused by name."""
    given = weights.read(written(tmp_path / "x.safetensors", dtype, shape, size)).tensors
    cpu = torch.device("cpu")
    if loads:
        module = parts.build(Layer, given, "layer", cpu)
        assert torch.equal(module(torch.ones(8).to(next(module.parameters()).dtype)), torch.zeros(1))
        return
    own = str(given["layer.weight"].dtype)
    with pytest.raises(ValidationError, match=rf"the weights are no layer: no real numbers: layer.weight {own}$"):
        parts.build(Layer, given, "layer", cpu)
    with pytest.raises(ValidationError, match=f"of {own} and torch.float32: it takes floats"):
        Pair(given["layer.weight"], torch.ones(8, 1), 1.0, ["a"]).change(torch.zeros(8, 8))
