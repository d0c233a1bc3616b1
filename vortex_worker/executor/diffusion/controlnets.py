"""ControlNets of safetensors files, under diffusers' names or CompVis's, these with ``control_model.`` or without."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from vortex_worker.errors import ValidationError
from vortex_worker.executor.diffusion import unets
from vortex_worker.executor.diffusion.names import Tensors, count, under
from vortex_worker.executor.diffusion.networks import ControlNet
from vortex_worker.executor.diffusion.parts import build
from vortex_worker.executor.diffusion.weights import read, shortened, told_as_damage

_PREFIX = "control_model."
#: Names that the converter doesn't know: SDXL's sizes and pooled text.
_ADDED = {r"label_emb\.0\.0\.": "add_embedding.linear_1.", r"label_emb\.0\.2\.": "add_embedding.linear_2."}
_HALVINGS = 3  # of a picture's sides, to a latent's
_HINT = "controlnet_cond_embedding."
#: Tensors by which other kinds are told.
_OTHERS = {"lora_controlnet": "a control LoRA", "task_embedding": "a union of ControlNets"}


def load(path: Path, device: torch.device) -> ControlNet:
    """The ControlNet of a file.

    Raises:
        ValidationError: it is none, or weights are missing, unexpected or misshapen.
    """
    tensors = read(path).tensors
    tensors = under(tensors, _PREFIX) or tensors
    if other := next((what for name, what in _OTHERS.items() if name in tensors), None):
        raise ValidationError(f"{path.name} is {other}, which isn't supported")
    if not any(name.startswith(("zero_convs.", "controlnet_down_blocks.")) for name in tensors):
        raise ValidationError(f"{path.name} is no ControlNet: it has {shortened(tensors) or 'no tensors'}")
    with told_as_damage(f"{path.name} is a damaged ControlNet", tensors):
        return _from_tensors(tensors, path.stem, device)


def _from_tensors(tensors: Tensors, stem: str, device: torch.device) -> ControlNet:
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
    from diffusers.models.controlnets.controlnet import ControlNetModel

    found, family = unets.config_of(tensors)
    config: dict[str, Any] = {
        name: value for name, value in found.items() if name not in ("out_channels", "up_block_types")
    }
    renamed = dict(tensors)
    if not unets.is_under_diffusers_names(tensors):
        renamed = unets.with_unknown(convert_controlnet_checkpoint(renamed, config), tensors)
        for theirs, new in _ADDED.items():
            renamed = {re.sub(f"^{theirs}", new, name): tensor for name, tensor in renamed.items()}
    blocks = range(1, count(renamed, _HINT + "blocks."), 2)  # every other one makes it wider, and the picture smaller
    if len(blocks) != _HALVINGS:
        times = 2 ** min(len(blocks), 16)
        raise ValidationError(
            f"this ControlNet makes its picture {times} times smaller: it takes one for latents, of 8"
        )
    first = renamed[_HINT + "conv_in.weight"]
    config["conditioning_embedding_out_channels"] = (
        first.shape[0],
        *(renamed[f"{_HINT}blocks.{block}.weight"].shape[0] for block in blocks),
    )
    config["global_pool_conditions"] = stem.endswith(("_shuffle", "_shuffle_fp16"))  # as ComfyUI tells
    return ControlNet(build(lambda: ControlNetModel(**config), renamed, f"{family.name} ControlNet", device))
