"""Checkpoints in one safetensors file, under the names that CompVis and Stability AI gave the parts.

Nothing says how such a file's networks are made, so it is read from the shapes of their weights; what shapes
can't tell (attention heads, activation) follows from the family. The names are mapped by diffusers' own
converters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vortex_worker.errors import ValidationError
from vortex_worker.executor.diffusion import sd3
from vortex_worker.executor.diffusion.networks import UNet, sdxl_extras
from vortex_worker.executor.diffusion.parts import build
from vortex_worker.executor.diffusion.text import LENGTH, TextEncoder, Tower
from vortex_worker.executor.diffusion.tokenizer import Tokenizer, shipped
from vortex_worker.executor.diffusion.vae import VAE
from vortex_worker.executor.diffusion.weights import Weights, read, shortened
from vortex_worker.executor.nodes.sampling.model import DiffusionModel

Tensors = Mapping[str, Tensor]

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_V_SPREAD = 0.09  # of one norm's biases: SD 2.x files that predict velocity are above, others far below


@dataclass(frozen=True)
class Family:
    """What a file's shapes can't tell."""

    name: str
    marker: str  # a tensor that only this family's files have, or the beginning of its name
    latent_scale: float


SDXL = Family("Stable Diffusion XL", "conditioner.embedders.1.model.", 0.13025)
SD3 = Family("Stable Diffusion 3", _UNET + "joint_blocks.", sd3.LATENT_SCALE)
SD2 = Family("Stable Diffusion 2", "cond_stage_model.model.", 0.18215)
SD1 = Family("Stable Diffusion 1", "cond_stage_model.transformer.", 0.18215)
FAMILIES = (SD3, SDXL, SD2, SD1)


def load(path: Path, device: torch.device) -> tuple[DiffusionModel, TextEncoder, VAE]:
    """The parts of a file.

    Raises:
        ValidationError: of no known family, or weights are missing, unexpected or misshapen.
    """
    weights = read(path)
    family = _family(weights.tensors, path.name)
    if void := [name for name, tensor in weights.tensors.items() if tensor.numel() == 0]:
        raise ValidationError(f"{path.name} is a damaged {family.name} checkpoint: {shortened(void)} are empty")
    try:
        if family is SD3:
            return _flow(weights.tensors, device)
        return _model(weights, family, device), _text(weights.tensors, family, device), _vae(weights.tensors, device)
    except IndexError:
        raise ValidationError(
            f"{path.name} is a damaged {family.name} checkpoint: "
            "the numbers of its layers, or their shapes, make no sense"
        ) from None
    except (KeyError, AttributeError) as error:  # the shapes or names that were to be read
        raise ValidationError(f"{path.name} is a damaged {family.name} checkpoint: it lacks {error}") from None


def load_vae(path: Path, device: torch.device) -> VAE:
    """A VAE by itself, under either naming."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    tensors = read(path).tensors
    try:
        if any(name.startswith("encoder.down_blocks.") for name in tensors):
            config = _vae_config(_ldm_shapes(tensors))
            return VAE(build(lambda: AutoencoderKL(**config), tensors, "VAE", device))
        if not any(name.startswith(_VAE) for name in tensors):
            tensors = {_VAE + name: tensor for name, tensor in tensors.items()}
        return _vae(tensors, device)
    except (KeyError, IndexError) as error:
        raise ValidationError(f"{path.name} is no VAE: it lacks {error}") from None


def _family(tensors: Tensors, name: str) -> Family:
    for family in FAMILIES:
        if any(key.startswith(family.marker) for key in tensors):
            return family
    if any(key.startswith(_UNET) for key in tensors):
        raise ValidationError(f"{name} is a checkpoint of a family that isn't supported, or without its text encoder")
    raise ValidationError(f"{name} is no checkpoint: it has {shortened(tensors) or 'no tensors'}")


# ---------------------------------------------------------------------------------------------- U-Nets


def _model(weights: Weights, family: Family, device: torch.device) -> DiffusionModel:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    own = {name: tensor for name, tensor in weights.tensors.items() if name.startswith(_UNET)}
    config = _unet_config(_under(own, _UNET), family)
    module = build(
        lambda: UNet2DConditionModel(**config), convert_ldm_unet_checkpoint(own, config), f"{family.name} U-Net", device
    )
    return DiffusionModel(
        UNet(module),
        parametrization="v" if _predicts_velocity(weights, family) else "eps",
        latent_channels=config["in_channels"],
        latent_scale=family.latent_scale,
        cond_width=config["cross_attention_dim"],
        extras=sdxl_extras if family is SDXL else None,
    )


def _flow(tensors: Tensors, device: torch.device) -> tuple[DiffusionModel, TextEncoder, VAE]:
    """Stable Diffusion 3, of a file with its two CLIPs and its VAE. A T5 in it is passed over."""
    if not any(name.startswith("text_encoders.") for name in tensors):
        raise ValidationError("this Stable Diffusion 3 checkpoint has no text encoders: take one that includes clips")
    model = sd3.from_tensors(_under(tensors, _UNET), device)
    first = _projected(_under(tensors, "text_encoders.clip_l.transformer."), device, "quick_gelu", shipped())
    second = _projected(_under(tensors, "text_encoders.clip_g.transformer."), device, "gelu", shipped(pad=0))
    text = TextEncoder((first, second), joint=model.cond_width or 0, empty=sd3.T5_TOKENS)
    return model, text, _vae(tensors, device)


def _unet_config(unet: Tensors, family: Family) -> dict[str, Any]:
    channels, layers, depths = [], [0], []
    count = 1 + max(_number(name, "input_blocks.") for name in unet)
    depth = 0
    for place in range(1, count):
        block = f"input_blocks.{place}."
        if block + "0.op.weight" in unet:  # a level ends by halving the size
            layers.append(0)
            continue
        depth = _count(unet, block + "1.transformer_blocks.")
        layers[-1] += 1
        if layers[-1] == 1:
            channels.append(unet[block + "0.out_layers.3.weight"].shape[0])
            depths.append(depth)
    middle = _count(unet, "middle_block.1.transformer_blocks.")
    if len(set(layers)) != 1 or (depths[-1] and depths[-1] != middle):
        raise ValidationError(f"this U-Net has {layers} layers by level and depths {depths}: not one that is supported")
    attended = next(tensor for name, tensor in unet.items() if name.endswith("attn2.to_k.weight"))
    projection = next(tensor for name, tensor in unet.items() if name.endswith(".proj_in.weight"))
    config: dict[str, Any] = {
        "in_channels": unet["input_blocks.0.0.weight"].shape[1],
        "out_channels": unet["out.2.weight"].shape[0],
        "block_out_channels": tuple(channels),
        "layers_per_block": layers[0],
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        "up_block_types": tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)),
        # The last one is the middle's, too.
        "transformer_layers_per_block": (*(depth or 1 for depth in depths[:-1]), middle),
        "cross_attention_dim": attended.shape[1],
        "use_linear_projection": projection.dim() == 2,
        # diffusers' name for the number of heads: 8 in the first family, of 64 channels each in the others.
        "attention_head_dim": 8 if family is SD1 else tuple(max(1, width // 64) for width in channels),
    }
    if config["in_channels"] != config["out_channels"]:
        raise ValidationError(
            f"this U-Net takes {config['in_channels']} channels: inpainting and other variants that see more than "
            "the latent are not supported; VAEEncodeForInpaint works with ordinary models"
        )
    if "label_emb.0.0.weight" in unet:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": unet["label_emb.0.0.weight"].shape[1],
        }
    return config


def _predicts_velocity(weights: Weights, family: Family) -> bool:
    tensors, said = weights
    if "v_pred" in tensors or said.get("modelspec.prediction_type") in ("v", "v_prediction"):
        return True
    if family is not SD2:
        return False
    last = max(_number(name, _UNET + "output_blocks.") for name in tensors)
    biases = tensors.get(f"{_UNET}output_blocks.{last}.1.transformer_blocks.0.norm1.bias")
    return biases is not None and float(biases.float().std(correction=0)) > _V_SPREAD


# ---------------------------------------------------------------------------------------- text encoders


def _text(tensors: Tensors, family: Family, device: torch.device) -> TextEncoder:
    if family is SD1:
        return TextEncoder((_clip(_under(tensors, SD1.marker), device),))
    if family is SD2:
        return TextEncoder((_open_clip(_under(tensors, SD2.marker), device, whole=False),))
    first = _clip(_under(tensors, "conditioner.embedders.0.transformer."), device, layer=-2, normed=False)
    return TextEncoder((first, _open_clip(_under(tensors, SDXL.marker), device, whole=True)))


def _clip(tensors: Tensors, device: torch.device, *, layer: int = -1, normed: bool = True) -> Tower:
    """OpenAI's CLIP under transformers' names."""
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    # Some files have the names without it, as the installed library may.
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    words = tensors["embeddings.token_embedding.weight"]
    config = CLIPTextConfig(
        **_clip_sizes(words, tensors["encoder.layers.0.mlp.fc1.weight"], _count(tensors, "encoder.layers.")),
        hidden_act="quick_gelu",
    )
    return Tower(build(lambda: CLIPTextModel(config), tensors, "CLIP text encoder", device), shipped(), layer, normed)


def _projected(tensors: Tensors, device: torch.device, act: str, tokenizer: Tokenizer) -> Tower:
    """A CLIP with its projection, under transformers' names."""
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

    bare = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    words, layers = bare["embeddings.token_embedding.weight"], _count(bare, "encoder.layers.")
    sizes = _clip_sizes(words, bare["encoder.layers.0.mlp.fc1.weight"], layers)
    config = CLIPTextConfig(**sizes, hidden_act=act, projection_dim=bare["text_projection.weight"].shape[0])
    module = build(lambda: CLIPTextModelWithProjection(config), bare, "CLIP text encoder", device)
    return Tower(module, tokenizer, layer=-2, normed=False)


def _open_clip(tensors: Tensors, device: torch.device, *, whole: bool) -> Tower:
    """OpenCLIP's text tower. Not ``whole``: of the last layer and the projection there is no use (SD 2.x)."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    words = tensors["token_embedding.weight"]
    layers = _count(tensors, "transformer.resblocks.")
    unused: tuple[str, ...] = ("logit_scale",)
    if not whole:
        layers -= 1
        unused += (f"transformer.resblocks.{layers}.", "text_projection")
    sizes = _clip_sizes(words, tensors["transformer.resblocks.0.mlp.c_fc.weight"], layers)
    if whole:
        sizes["projection_dim"] = tensors["text_projection"].shape[1]
    config = CLIPTextConfig(**sizes, hidden_act="gelu")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(unused)}
    converted = convert_open_clip_checkpoint(_Sized(config), kept, prefix="")
    make = CLIPTextModelWithProjection if whole else CLIPTextModel
    module = build(lambda: make(config), converted, "OpenCLIP text encoder", device)
    if whole:
        return Tower(module, shipped(pad=0), layer=-2, normed=False)
    return Tower(module, shipped(pad=0), layer=-2, absent=1)


@dataclass(frozen=True)
class _Sized:
    """What diffusers' converter asks of a model."""

    config: Any


def _clip_sizes(words: Tensor, widened: Tensor, layers: int) -> dict[str, Any]:
    vocabulary, width = words.shape
    shipped().check(vocabulary)
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": widened.shape[0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": LENGTH,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }


# ------------------------------------------------------------------------------------------------- VAEs


def _vae(tensors: Tensors, device: torch.device) -> VAE:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    own = {name: tensor for name, tensor in tensors.items() if name.startswith(_VAE)}
    config = _vae_config(_under(own, _VAE))
    converted = convert_ldm_vae_checkpoint(own, config)
    return VAE(build(lambda: AutoencoderKL(**config), converted, "VAE", device))


def _vae_config(vae: Tensors) -> dict[str, Any]:
    levels = _count(vae, "encoder.down.")
    channels = [vae[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    return {
        "in_channels": vae["encoder.conv_in.weight"].shape[1],
        "out_channels": vae["decoder.conv_out.weight"].shape[0],
        "latent_channels": vae["decoder.conv_in.weight"].shape[1],
        "block_out_channels": tuple(channels),
        "layers_per_block": _count(vae, "encoder.down.0.block."),
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


# ------------------------------------------------------------------------------------------------ names


def _under(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _number(name: str, prefix: str) -> int:
    """The number after ``prefix``; −1 where there is none."""
    if not name.startswith(prefix):
        return -1
    head = name[len(prefix) :].partition(".")[0]
    return int(head) if head.isdecimal() and len(head) < 5 else -1


def _count(tensors: Tensors, prefix: str) -> int:
    """How many numbers follow ``prefix``."""
    return len({number for name in tensors if (number := _number(name, prefix)) >= 0})
