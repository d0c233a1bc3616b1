"""Checkpoints in one safetensors file, under the names that CompVis and Stability AI gave the parts.

Nothing says how such a file's networks are made, so it is read from the shapes of their weights; what shapes
can't tell (attention heads, activation) follows from the family. The names are mapped by diffusers' own
converters.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vortex_worker.errors import ValidationError
from vortex_worker.executor.diffusion import clips, sd3, t5, unets
from vortex_worker.executor.diffusion.families import FAMILIES, MODEL, SD1, SD2, SD3, SDXL, Family
from vortex_worker.executor.diffusion.names import Tensors, check_layers, count, under
from vortex_worker.executor.diffusion.parts import build
from vortex_worker.executor.diffusion.text import TextEncoder
from vortex_worker.executor.diffusion.vae import VAE
from vortex_worker.executor.diffusion.weights import Weights, read, shortened, told_as_damage
from vortex_worker.executor.nodes.sampling.model import DiffusionModel

_VAE = "first_stage_model."


def load(path: Path, device: torch.device) -> tuple[DiffusionModel, TextEncoder, VAE]:
    """The parts of a file.

    Raises:
        ValidationError: of no known family, or weights are missing, unexpected or misshapen.
    """
    weights = read(path)
    family = _family(weights.tensors, path.name)
    with told_as_damage(f"{path.name} is a damaged {family.name} checkpoint", weights.tensors):
        if family is SD3:
            return _flow(weights.tensors, device)
        return _model(weights, family, device), _text(weights.tensors, family, device), _vae(weights.tensors, device)


def load_vae(path: Path, device: torch.device) -> VAE:
    """A VAE by itself, under either naming."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    tensors = read(path).tensors
    with told_as_damage(f"{path.name} is no VAE", tensors):
        if any(name.startswith("encoder.down_blocks.") for name in tensors):
            check_layers(tensors)
            config = _vae_config(_ldm_shapes(tensors))
            return VAE(build(lambda: AutoencoderKL(**config), tensors, "VAE", device))
        if not any(name.startswith(_VAE) for name in tensors):
            tensors = {_VAE + name: tensor for name, tensor in tensors.items()}
        return _vae(tensors, device)


def _family(tensors: Tensors, name: str) -> Family:
    for family in FAMILIES:
        if any(key.startswith(family.marker) for key in tensors):
            return family
    if any(key.startswith(MODEL) for key in tensors):
        raise ValidationError(f"{name} is a checkpoint of a family that isn't supported, or without its text encoder")
    raise ValidationError(f"{name} is no checkpoint: it has {shortened(tensors) or 'no tensors'}")


def _model(weights: Weights, family: Family, device: torch.device) -> DiffusionModel:
    signs = {name: weights.tensors[name] for name in unets.SIGNS if name in weights.tensors}
    return unets.from_tensors(under(weights.tensors, MODEL) | signs, weights.metadata, device, family)


def _flow(tensors: Tensors, device: torch.device) -> tuple[DiffusionModel, TextEncoder, VAE]:
    """Stable Diffusion 3, of a file with its two CLIPs, its VAE, and its T5 or not."""
    if not any(name.startswith("text_encoders.") for name in tensors):
        raise ValidationError("this Stable Diffusion 3 checkpoint has no text encoders: take one that includes clips")
    model = sd3.from_tensors(under(tensors, MODEL), device)
    first = clips.openai(under(tensors, "text_encoders.clip_l.transformer."), device, layer=-2, normed=False)
    second = clips.projected(under(tensors, "text_encoders.clip_g.transformer."), device)
    own = under(tensors, "text_encoders.t5xxl.transformer.")
    third = t5.from_tensors(own, device) if own else None
    text = TextEncoder((first, second), joint=model.cond_width or 0, empty=sd3.T5_TOKENS, t5=third)
    return model, text, _vae(tensors, device)


def _text(tensors: Tensors, family: Family, device: torch.device) -> TextEncoder:
    if family is SD1:
        return TextEncoder((clips.openai(under(tensors, SD1.marker), device),))
    if family is SD2:
        own = under(tensors, SD2.marker)  # of the last layer there is no use
        return TextEncoder((clips.open_clip(own, device, count(own, "transformer.resblocks.") - 1),))
    first = clips.openai(under(tensors, "conditioner.embedders.0.transformer."), device, layer=-2, normed=False)
    return TextEncoder((first, clips.open_clip(under(tensors, SDXL.marker), device)))


def _vae(tensors: Tensors, device: torch.device) -> VAE:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    own = {name: tensor for name, tensor in tensors.items() if name.startswith(_VAE)}
    bare = under(own, _VAE)
    check_layers(bare)
    config = _vae_config(bare)
    converted = convert_ldm_vae_checkpoint(own, config)
    return VAE(build(lambda: AutoencoderKL(**config), converted, "VAE", device))


def _vae_config(vae: Tensors) -> dict[str, Any]:
    levels = count(vae, "encoder.down.")
    channels = [vae[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    return {
        "in_channels": vae["encoder.conv_in.weight"].shape[1],
        "out_channels": vae["decoder.conv_out.weight"].shape[0],
        "latent_channels": vae["decoder.conv_in.weight"].shape[1],
        "block_out_channels": tuple(channels),
        "layers_per_block": count(vae, "encoder.down.0.block."),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "use_quant_conv": "quant_conv.weight" in vae,
        "use_post_quant_conv": "post_quant_conv.weight" in vae,
    }


def _ldm_shapes(tensors: Tensors) -> dict[str, Tensor]:
    """Diffusers' names of a VAE's encoder under the old ones, as far as ``_vae_config`` looks."""
    return {
        re.sub(r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block.", name): tensor
        for name, tensor in tensors.items()
    }
