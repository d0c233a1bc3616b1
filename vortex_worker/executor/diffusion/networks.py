"""diffusers' networks as ``DiffusionModel`` asks them, and what conditions them beside the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vortex_worker.executor.nodes.image import resize
from vortex_worker.executor.nodes.sampling.conditioning import SIZES
from vortex_worker.executor.nodes.sampling.model import DiffusionModel

Blocks = tuple[int, tuple[int, ...], int]  # a latent's channels, the channels by level, layers of a level


class UNet:
    """``UNet2DConditionModel``: noisy latents, timesteps and text [B, tokens, width] → noise or velocity."""

    is_controllable = True
    of_pictures = True  # latents have a height and a width

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        config: Any = module.config
        if config.addition_embed_type == "text_time":  # pooled text beside six sizes
            beside = len(SIZES) * config.addition_time_embed_dim
            self.pooled_width: int = config.projection_class_embeddings_input_dim - beside

    @property
    def blocks(self) -> Blocks:
        """What a ControlNet for it has, too."""
        return _blocks(self.module)

    def __call__(
        self, x: Tensor, t: Tensor, cond: Tensor, added: Sequence[Tensor] = (), **extras: Tensor
    ) -> Tensor:  # fmt: skip
        """``added``: to what its blocks pass on, and last to the middle's; empty: nothing."""
        dtype = next(self.module.parameters()).dtype
        residuals: dict[str, Any] = {}
        if added:
            *blocks, middle = (tensor.to(dtype) for tensor in added)
            residuals = {"down_block_additional_residuals": blocks, "mid_block_additional_residual": middle}
        given = {name: tensor.to(dtype) for name, tensor in extras.items()} or None
        out: Tensor = self.module(
            x.to(dtype), t, cond.to(dtype), added_cond_kwargs=given, return_dict=False, **residuals
        )[0]
        return out


class ControlNet:
    """``ControlNetModel``: as ``UNet``, and pictures [B, 3, …], 0 to 1 → what is added to a U-Net's blocks.

    The picture is brought to eight times the latent's size, cut to its shape around the middle.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        config: Any = module.config
        self.width: int = config.cross_attention_dim
        self.has_extras = config.addition_embed_type is not None
        self.blocks = _blocks(module)

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor, hint: Tensor, **extras: Tensor) -> list[Tensor]:
        dtype = next(self.module.parameters()).dtype
        given = {name: tensor.to(dtype) for name, tensor in extras.items()} or None
        size = {
            "height": x.shape[-2] * 8,
            "width": x.shape[-1] * 8,
            "upscale_method": "nearest-exact",
            "crop": "center",
        }
        blocks, middle = self.module(
            x.to(dtype), t, cond.to(dtype), resize(hint, size).to(dtype),
            added_cond_kwargs=given, return_dict=False,
        )  # fmt: skip
        return [*blocks, middle]


def _blocks(module: Any) -> Blocks:
    config = module.config
    return config.in_channels, tuple(config.block_out_channels), config.layers_per_block


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
