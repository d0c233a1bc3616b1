"""Small models of each family on disk, in the real formats, and diffusers' pipelines that they were saved from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
import small_models

#: What their libraries warn of, for `pytestmark`.
QUIET = [
    # diffusers calls numpy.array on torch tensors, whose __array__ has no `copy` yet.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]

CHECKPOINT = "v1-5-pruned-emaonly.safetensors"  # the examples' name of it


class Shelf:
    """The models on disk, and the pipelines that they were saved from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sd1, self.sd2, self.sdxl = small_models.sd1(), small_models.sd2(), small_models.sdxl()
        for pipeline in (self.sd1, self.sd2, self.sdxl):
            pipeline.set_progress_bar_config(disable=True)
        small_models.save_file(self.sd1, self.under("checkpoints") / CHECKPOINT)
        small_models.save_folder(self.sd1, folder / "diffusers" / "sd1")
        small_models.save_file(self.sd2, folder / "checkpoints" / "sd2.safetensors", {"v_pred": torch.zeros(1)})
        small_models.save_folder(self.sd2, folder / "diffusers" / "sd2")
        small_models.save_file(self.sdxl, folder / "checkpoints" / "sdxl.safetensors")
        small_models.save_folder(self.sdxl, folder / "diffusers" / "sdxl")

    def under(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path


def picture(fabric: Any, graph: dict[str, Any], folder: Path) -> Tensor:
    """The saved picture of a run, [1, height, width, 3], in 8 bits."""
    result = fabric.run_workflow(graph, output_dir=folder)
    (file,) = result.files
    return torch.from_numpy(np.asarray(Image.open(file), np.float32) / 255)[None]
