"""Workflows that run in a fabric, and diffusers' pipelines of the same weights, noise and sigmas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vortex_worker.executor.nodes.sampling.model import DiffusionModel
from vortex_worker.executor.nodes.sampling.schedules import sigmas_for

EXAMPLES = Path(__file__).parents[2] / "examples" / "diffusion"
CLOSE = 2e-4  # of pixels 0 to 1, between two ways of the same float32 computation


def sigmas(steps: int, denoise: float = 1.0, scheduler: str = "normal") -> list[float]:
    return sigmas_for(DiffusionModel(lambda *_: None), scheduler, steps, denoise)  # type: ignore[arg-type,return-value]


def noise(seed: int, side: int) -> Tensor:
    return torch.randn(1, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(seed))


def reference(
    pipeline: Any, prompt: str, negative: str, *, steps: int, cfg: float, seed: int, side: int,
    levels: list[float] | None = None,
) -> Tensor:  # fmt: skip
    """diffusers' image, [1, height, width, 3]. ``levels``: the sigmas; None: Stable Diffusion's."""
    out: Tensor = pipeline(
        prompt, negative_prompt=negative, guidance_scale=cfg, latents=noise(seed, side), output_type="pt",
        sigmas=levels or sigmas(steps), num_inference_steps=steps, height=side, width=side,
    ).images  # fmt: skip
    return out.movedim(1, -1)


def flow_reference(
    pipeline: Any, prompt: str, negative: str, *, steps: int, cfg: float, seed: int, side: int, shift: float = 3.0,
    **more: Any,
) -> Tensor:  # fmt: skip
    """diffusers' image of Stable Diffusion 3."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    times = torch.arange(1, 1001, dtype=torch.float64) / 1000
    table = (shift * times / (1 + (shift - 1) * times)).float()
    model = DiffusionModel(lambda *_: None, parametrization="flow", sigmas=table)  # type: ignore[arg-type,return-value]
    levels = sigmas_for(model, "normal", steps, 1.0)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)  # what it is given is shifted already
    out: Tensor = pipeline(
        prompt, negative_prompt=negative, guidance_scale=cfg, output_type="pt", height=side, width=side,
        latents=torch.randn(1, 16, side // 8, side // 8, generator=torch.Generator().manual_seed(seed)),
        sigmas=[float(level) for level in levels[:-1]], num_inference_steps=steps, **more,
    ).images  # fmt: skip
    return out.movedim(1, -1)


def example(name: str, **values: Any) -> dict[str, Any]:
    """An example's graph with other values: ``node__input=value``."""
    graph: dict[str, Any] = json.loads((EXAMPLES / name).read_text())
    for target, value in values.items():
        node, _, key = target.partition("__")
        graph[node.removeprefix("n")]["inputs"][key] = value
    return graph


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
