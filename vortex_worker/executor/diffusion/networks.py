"""diffusers' networks as ``DiffusionModel`` asks them, and what conditions them beside the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vortex_worker.executor.nodes.sampling.conditioning import SIZES
from vortex_worker.executor.nodes.sampling.model import DiffusionModel


class UNet:
    """``UNet2DConditionModel``: noisy latents, timesteps and text [B, tokens, width] → noise or velocity."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor, **extras: Tensor) -> Tensor:
        dtype = next(self.module.parameters()).dtype
        added = {name: tensor.to(dtype) for name, tensor in extras.items()} or None
        out: Tensor = self.module(x.to(dtype), t, cond.to(dtype), added_cond_kwargs=added, return_dict=False)[0]
        return out


def sdxl_extras(options: Mapping[str, Any], like: Tensor) -> dict[str, Tensor]:
    """SDXL's pooled text and picture sizes: of a conditioning's options, else of the latent's own size."""
    height, width = like.shape[-2] * 8, like.shape[-1] * 8
    sizes = {"height": height, "width": width, "crop_h": 0, "crop_w": 0, **options}
    sizes = {"target_height": sizes["height"], "target_width": sizes["width"], **sizes}
    return {
        "text_embeds": options["pooled_output"].float(),
        "time_ids": torch.tensor([[float(sizes[name]) for name in SIZES]]),
    }


def module_of(model: DiffusionModel) -> nn.Module | None:
    """The diffusers module inside a model, or None if it is another kind of network."""
    network = model.network
    return network.module if isinstance(network, UNet) else None
