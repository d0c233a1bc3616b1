"""Stable Diffusion 3: a rectified flow (Esser et al. 2024, "Scaling Rectified Flow Transformers …"), through diffusers.

It was trained to do without any of its text encoders. Where there is no T5, the third, its place is filled with zeros
here, as diffusers does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vortex_worker.errors import ValidationError
from vortex_worker.executor.diffusion.names import Tensors, check_layers
from vortex_worker.executor.diffusion.parts import build
from vortex_worker.executor.diffusion.vae import VAE
from vortex_worker.executor.diffusion.weights import read_folder, read_json
from vortex_worker.executor.nodes.sampling.model import DiffusionModel, flow_sigmas

T5_TOKENS = 256  # diffusers' and the reference's number of them
JOINT = 4096  # the text's width, a T5's
POOLED = {"clip_l": 768, "clip_g": 1280}  # widths of the CLIPs
LATENT_SCALE, LATENT_SHIFT = 1.5305, 0.0609  # of the family's VAE
SHIFT = 3.0  # of its times towards noise, for pictures of a megapixel
_HEAD = 64  # channels


class Transformer:
    """``SD3Transformer2DModel``: noisy latents, times 0 to 1000 and text [B, tokens, width] → velocity.

    Sides that fill no whole patch go on at their other end, as in ComfyUI.
    """

    of_pictures = True

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        config: Any = module.config
        self._patch: int = config.patch_size
        self.pooled_width: int = config.pooled_projection_dim

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor, *, pooled: Tensor) -> Tensor:
        dtype = next(self.module.parameters()).dtype
        height, width = x.shape[-2:]
        down, across = -height % self._patch, -width % self._patch
        if down or across:
            x = nn.functional.pad(x, (0, across, 0, down), mode="circular")
        out: Tensor = self.module(
            hidden_states=x.to(dtype), timestep=t, encoder_hidden_states=cond.to(dtype),
            pooled_projections=pooled.to(dtype), return_dict=False,
        )[0]  # fmt: skip
        return out[..., :height, :width]


def from_folder(path: Path, vae: VAE, device: torch.device) -> DiffusionModel:
    """The transformer of a diffusers folder.

    Raises:
        ValidationError: a part is missing or malformed.
    """
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    given = read_json(path / "transformer" / "config.json")
    if given.get("_class_name") != SD3Transformer2DModel.__name__:
        raise ValidationError(
            f"transformer is a {str(given.get('_class_name'))[:100]}: it takes a SD3Transformer2DModel"
        )
    weights = read_folder(path / "transformer", "diffusion_pytorch_model")
    module = build(lambda: SD3Transformer2DModel.from_config(given), weights, "SD 3 transformer", device)
    shift = read_json(path / "scheduler" / "scheduler_config.json").get("shift", SHIFT)
    if not isinstance(shift, int | float) or isinstance(shift, bool) or not 0 < shift < 1000:
        raise ValidationError(f"the scheduler's shift is {shift!r:.50}: it takes a number above 0")
    config = vae.module.config
    return _model(module, float(shift), config.scaling_factor, config.shift_factor or 0.0)


def from_tensors(tensors: Tensors, device: torch.device) -> DiffusionModel:
    """The transformer of a single file, its names without ``model.diffusion_model.``.

    Raises:
        ValidationError: weights are missing, unexpected or misshapen. KeyError: one that its shape is read from.
            ValueError: one that can't be cut.
    """
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    check_layers(tensors)
    places = tensors["pos_embed"].shape[1]
    numbers = {name.split(".")[1] for name in tensors if name.startswith("joint_blocks.")}
    blocks = sorted(int(number) for number in numbers if number.isdecimal() and len(number) < 5)
    twice = tuple(number for number in blocks if f"joint_blocks.{number}.x_block.attn2.qkv.weight" in tensors)
    patch = tensors["x_embedder.proj.weight"]
    config: dict[str, Any] = {
        "sample_size": 128,  # of no meaning beside the next
        "pos_embed_max_size": round(places**0.5),
        "patch_size": patch.shape[-1],
        "in_channels": patch.shape[1],
        "out_channels": tensors["final_layer.linear.weight"].shape[0] // patch.shape[-1] ** 2,
        "num_layers": len(blocks),
        "attention_head_dim": _HEAD,
        "num_attention_heads": patch.shape[0] // _HEAD,
        "joint_attention_dim": tensors["context_embedder.weight"].shape[1],
        "caption_projection_dim": tensors["context_embedder.weight"].shape[0],
        "pooled_projection_dim": tensors["y_embedder.mlp.0.weight"].shape[1],
        "dual_attention_layers": twice,
        "qk_norm": "rms_norm" if any(".ln_q." in name for name in tensors) else None,
    }  # fmt: skip
    try:
        converted = convert_sd3_transformer_checkpoint_to_diffusers(dict(tensors))
    except RuntimeError as error:  # of a tensor that can't be cut in three
        raise ValueError(str(error)) from None
    module = build(lambda: SD3Transformer2DModel(**config), converted, "SD 3 transformer", device)
    return _model(module, SHIFT, LATENT_SCALE, LATENT_SHIFT)


def _model(module: nn.Module, shift: float, scale: float, offset: float) -> DiffusionModel:
    config: Any = module.config
    return DiffusionModel(
        Transformer(module),
        parametrization="flow",
        sigmas=flow_sigmas(shift),
        latent_channels=config.in_channels,
        latent_scale=scale,
        latent_shift=offset,
        cond_width=config.joint_attention_dim,
        extras=_pooled,
    )


def _pooled(options: Mapping[str, Any], like: Tensor) -> dict[str, Tensor]:
    return {"pooled": options["pooled_output"].float()}
