"""Small models of each family on disk, in the real formats, and diffusers' pipelines that they were saved from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vortex_worker.executor.nodes.sampling.model import DiffusionModel
from vortex_worker.executor.nodes.sampling.schedules import sigmas_for

os.environ["HF_HUB_OFFLINE"] = "1"
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

EXAMPLES = Path(__file__).parents[2] / "examples" / "diffusion"
CHECKPOINT = "v1-5-pruned-emaonly.safetensors"  # the examples' name of it
CLOSE = 2e-4  # of pixels 0 to 1, between two ways of the same float32 computation


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


def sigmas(steps: int, denoise: float = 1.0, scheduler: str = "normal") -> list[float]:
    return sigmas_for(DiffusionModel(lambda *_: None), scheduler, steps, denoise)  # type: ignore[arg-type,return-value]


def noise(seed: int, side: int) -> Tensor:
    return torch.randn(1, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(seed))


def reference(pipeline: Any, prompt: str, negative: str, *, steps: int, cfg: float, seed: int, side: int) -> Tensor:
    """diffusers' image, [1, height, width, 3]."""
    out: Tensor = pipeline(
        prompt, negative_prompt=negative, guidance_scale=cfg, latents=noise(seed, side), output_type="pt",
        sigmas=sigmas(steps), num_inference_steps=steps, height=side, width=side,
    ).images  # fmt: skip
    return out.movedim(1, -1)


def example(name: str, **values: Any) -> dict[str, Any]:
    """An example's graph with other values: ``node__input=value``."""
    graph: dict[str, Any] = json.loads((EXAMPLES / name).read_text())
    for target, value in values.items():
        node, _, key = target.partition("__")
        graph[node.removeprefix("n")]["inputs"][key] = value
    return graph


def picture(fabric: Any, graph: dict[str, Any], folder: Path) -> Tensor:
    """The saved picture of a run, [1, height, width, 3], in 8 bits."""
    result = fabric.run_workflow(graph, output_dir=folder)
    (file,) = result.files
    return torch.from_numpy(np.asarray(Image.open(file), np.float32) / 255)[None]


def floats(fabric: Any, graph: dict[str, Any]) -> Tensor:
    """What a run would save, before it is cut to 8 bits."""
    (save,) = (key for key, node in graph.items() if node["class_type"] == "SaveImage")
    graph = {key: node for key, node in graph.items() if key != save}
    (values,) = fabric.run_workflow(graph).values.values()
    image: Tensor = values["image"].clone()
    return image


def alike(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.05, "the reference is blank"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=CLOSE)
