"""U-Nets of safetensors files: their configuration read from the shapes, under CompVis's names or diffusers'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vortex_worker.errors import ValidationError
from vortex_worker.executor.diffusion.families import MODEL, SD1, SD2, SDXL, Family
from vortex_worker.executor.diffusion.names import Tensors, check_layers, count, number
from vortex_worker.executor.diffusion.networks import UNet, sdxl_extras
from vortex_worker.executor.diffusion.parts import build
from vortex_worker.executor.nodes.sampling.model import DiffusionModel, zero_terminal

#: Tensors beside a U-Net's own, by which files say what they predict.
SIGNS = ("v_pred", "ztsnr")
_SPREAD = 0.09  # of one norm's biases: SD 2.x files that predict velocity are above, others far below
#: Widths of the text, and of what else conditions, of those that are told by them.
_OTHERS = {(1280, 2560): "SDXL's refiner", (1024, 2048): "an unCLIP", (1024, 1536): "an unCLIP"}


def from_tensors(
    tensors: Tensors, said: Mapping[str, str], device: torch.device, family: Family | None = None
) -> DiffusionModel:
    """The U-Net of a file.

    Args:
        tensors: its own, ``model.diffusion_model.`` left out of their names, and what is there of ``SIGNS``.
        said: what the file says of itself.
        family: None: told from the shapes.

    Raises:
        ValidationError: weights are missing, unexpected or misshapen, or it is of a kind that isn't supported.
        KeyError, IndexError, AttributeError, StopIteration: of what its shape is read from.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    own = {name: tensor for name, tensor in tensors.items() if name not in SIGNS}
    config, family = config_of(own, family)
    renamed = own
    if not is_under_diffusers_names(own):
        converted = convert_ldm_unet_checkpoint({MODEL + name: tensor for name, tensor in own.items()}, config)
        renamed = with_unknown(converted, own)
    module = build(lambda: UNet2DConditionModel(**config), renamed, f"{family.name} U-Net", device)
    model = DiffusionModel(
        UNet(module),
        parametrization="v" if _predicts_velocity(tensors, said, family) else "eps",
        latent_channels=config["in_channels"],
        latent_scale=family.latent_scale,
        cond_width=config["cross_attention_dim"],
        extras=sdxl_extras if family is SDXL else None,
    )
    if family is SDXL and all(sign in tensors for sign in SIGNS):
        return model.with_sampling("v", zero_terminal(model.sigmas))
    return model


def config_of(unet: Tensors, family: Family | None = None) -> tuple[dict[str, Any], Family]:
    """diffusers' configuration of a U-Net, under either naming, and its family. Raises as ``from_tensors``."""
    check_layers(unet)
    config = _diffusers_config(unet) if is_under_diffusers_names(unet) else _config(unet)
    family = family or _family(config)
    # diffusers' name for the number of heads: 8 in the first family, of 64 channels each in the others.
    heads = tuple(max(1, width // 64) for width in config["block_out_channels"])
    return config | {"attention_head_dim": 8 if family is SD1 else heads}, family


def with_unknown(converted: dict[str, torch.Tensor | None], own: Tensors) -> dict[str, torch.Tensor]:
    """What a converter of diffusers gave, and what it passed over, which is to be told: names that it doesn't know."""
    renamed = {name: tensor for name, tensor in converted.items() if tensor is not None}
    used = set(map(id, renamed.values()))
    return renamed | {name: tensor for name, tensor in own.items() if id(tensor) not in used}


def is_under_diffusers_names(tensors: Tensors) -> bool:
    """Whether a U-Net has the names of diffusers."""
    return any(name.startswith("down_blocks.") for name in tensors)


def _family(config: Mapping[str, Any]) -> Family:
    added: int = config.get("projection_class_embeddings_input_dim", 0)
    if other := _OTHERS.get((config["cross_attention_dim"], added)):
        raise ValidationError(f"this U-Net is {other}: it takes one of Stable Diffusion 1, 2 or XL")
    if added:
        return SDXL
    return SD2 if config["use_linear_projection"] else SD1


def _config(unet: Tensors) -> dict[str, Any]:
    channels, layers, depths = [], [0], []
    places = 1 + max(number(name, "input_blocks.") for name in unet)
    depth = 0
    for place in range(1, places):
        block = f"input_blocks.{place}."
        if block + "0.op.weight" in unet:  # a level ends by halving the size
            layers.append(0)
            continue
        depth = count(unet, block + "1.transformer_blocks.")
        layers[-1] += 1
        if layers[-1] == 1:
            channels.append(unet[block + "0.out_layers.3.weight"].shape[0])
            depths.append(depth)
    middle = count(unet, "middle_block.1.transformer_blocks.")
    ends = unet["input_blocks.0.0.weight"].shape[1], _channels_out(unet, "out.2.weight")
    return _config_of(unet, channels, layers, depths, middle, ends, "label_emb.0.0.weight")


def _diffusers_config(unet: Tensors) -> dict[str, Any]:
    channels, layers, depths = [], [], []
    for level in range(count(unet, "down_blocks.")):
        block = f"down_blocks.{level}."
        channels.append(unet[block + "resnets.0.conv2.weight"].shape[0])
        layers.append(count(unet, block + "resnets."))
        depths.append(count(unet, block + "attentions.0.transformer_blocks."))
    middle = count(unet, "mid_block.attentions.0.transformer_blocks.")
    ends = unet["conv_in.weight"].shape[1], _channels_out(unet, "conv_out.weight")
    return _config_of(unet, channels, layers, depths, middle, ends, "add_embedding.linear_1.weight")


def _channels_out(unet: Tensors, name: str) -> int | None:
    return unet[name].shape[0] if name in unet else None  # a ControlNet has no such end


def _config_of(
    unet: Tensors,
    channels: list[int],
    layers: list[int],
    depths: list[int],
    middle: int,
    ends: tuple[int, int | None],
    added: str,
) -> dict[str, Any]:
    """diffusers' configuration.

    Args:
        channels, layers, depths: by level: of its blocks, how many there are, transformers in each.
        ends: channels that go in and come out. added: the weight that takes sizes and pooled text.
    """
    if len(set(layers)) != 1 or (depths[-1] and depths[-1] != middle):
        raise ValidationError(f"this U-Net has {layers} layers by level and depths {depths}: not one that is supported")
    attended = next(tensor for name, tensor in unet.items() if name.endswith("attn2.to_k.weight"))
    projection = next(tensor for name, tensor in unet.items() if name.endswith(".proj_in.weight"))
    config: dict[str, Any] = {
        "in_channels": ends[0],
        "out_channels": ends[1] or ends[0],
        "block_out_channels": tuple(channels),
        "layers_per_block": layers[0],
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        "up_block_types": tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)),
        # The last one is the middle's, too.
        "transformer_layers_per_block": (*(depth or 1 for depth in depths[:-1]), middle),
        "cross_attention_dim": attended.shape[1],
        "use_linear_projection": projection.dim() == 2,
    }
    if ends[1] not in (None, ends[0]):
        raise ValidationError(
            f"this U-Net takes {config['in_channels']} channels: inpainting and other variants that see more than "
            "the latent are not supported; VAEEncodeForInpaint works with ordinary models"
        )
    if added in unet:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": unet[added].shape[1],
        }
    return config


def _predicts_velocity(tensors: Tensors, said: Mapping[str, str], family: Family) -> bool:
    if "v_pred" in tensors or said.get("modelspec.prediction_type") in ("v", "v_prediction"):
        return True
    if family is not SD2:
        return False
    last = max(number(name, "output_blocks.") for name in tensors)
    biases = tensors.get(f"output_blocks.{last}.1.transformer_blocks.0.norm1.bias")
    if last < 0:
        levels, blocks = count(tensors, "up_blocks."), count(tensors, "up_blocks.0.resnets.")
        biases = tensors.get(f"up_blocks.{levels - 1}.attentions.{blocks - 1}.transformer_blocks.0.norm1.bias")
    return biases is not None and float(biases.float().std(correction=0)) > _SPREAD
