"""Parts in files of their own: a diffusion model alone, and text encoders alone, each told by its names and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch

from vortex_worker.errors import ValidationError
from vortex_worker.executor.diffusion import clips, sd3, t5, unets
from vortex_worker.executor.diffusion.families import MODEL
from vortex_worker.executor.diffusion.names import Tensors, count, under
from vortex_worker.executor.diffusion.text import TextEncoder, Tower
from vortex_worker.executor.diffusion.weights import is_real, read, shortened, told_as_damage
from vortex_worker.executor.nodes.sampling.model import DiffusionModel

_OPEN = "transformer.resblocks."  # OpenCLIP's names
_H_LAYERS = 23  # of Stable Diffusion 2's text encoder, as it is used: of 24
#: Text encoders, and how they are called.
_KINDS = {
    "clip_l": "OpenAI's CLIP (clip_l)",
    "clip_h": "OpenCLIP's ViT-H (clip_h)",
    "clip_g": "OpenCLIP's ViT-bigG (clip_g)",
    "t5": "a T5 (t5xxl)",
}
_THREE = ("clip_l", "clip_g", "t5")
#: A workflow's ``type`` → the sets of them that make one, and how it is said.
TAKES: dict[str, tuple[tuple[set[str], ...], str]] = {
    "stable_diffusion": (({"clip_l"}, {"clip_h"}), "clip_l (Stable Diffusion 1) or clip_h (2)"),
    "sdxl": (({"clip_l", "clip_g"},), "clip_l and clip_g"),
    "sd3": (
        tuple(set(some) for many in (1, 2, 3) for some in combinations(_THREE, many)),
        "any of clip_l, clip_g and t5xxl",
    ),
}


def load_model(path: Path, device: torch.device, rounded: torch.dtype | None = None) -> DiffusionModel:
    """A diffusion model alone, of a safetensors file, with ``model.diffusion_model.`` before its names or without.

    Args:
        rounded: have the weights only as exactly as this dtype does. They become copies.

    Raises:
        ValidationError: it is none of a known family, or weights are missing, unexpected or misshapen.
    """
    weights = read(path)
    tensors = under(weights.tensors, MODEL) or dict(weights.tensors)
    tensors |= {name: weights.tensors[name] for name in unets.SIGNS if name in weights.tensors}
    if rounded is not None:
        tensors = {name: t.to(rounded) if is_real(t) else t for name, t in tensors.items()}
    if any(name.startswith("joint_blocks.") for name in tensors):
        with told_as_damage(f"{path.name} is a damaged Stable Diffusion 3 model", tensors):
            return sd3.from_tensors(tensors, device)
    if any(name.startswith("input_blocks.") for name in tensors) or unets.is_under_diffusers_names(tensors):
        with told_as_damage(f"{path.name} is a damaged U-Net", tensors):
            return unets.from_tensors(tensors, weights.metadata, device)
    raise ValidationError(f"{path.name} is no diffusion model of Stable Diffusion: it has {_some(tensors)}")


def load_text(paths: Sequence[Path], family: str, device: torch.device) -> TextEncoder:
    """The text encoder of a family, of one safetensors file for each of its parts, in any order.

    Args:
        family: of ``TAKES``.

    Raises:
        ValidationError: a file is no text encoder, or not one for the family, or weights don't fit.
    """
    found: dict[str, tuple[str, Tensors]] = {}
    for path in paths:
        tensors: Tensors = read(path).tensors
        kind = _kind(path.name, tensors)
        if kind in found:
            raise ValidationError(f"{found[kind][0]} and {path.name} are both {_KINDS[kind]}: it takes one of each")
        found[kind] = path.name, tensors
    sets, said = TAKES[family]
    if found.keys() not in sets:
        given = " and ".join(f"{name} is {_KINDS[kind]}" for kind, (name, _) in found.items())
        raise ValidationError(f"{given}: type {family!r} takes {said}")
    parts: dict[str, Tower] = {}
    third = None
    for kind, (name, tensors) in found.items():
        with told_as_damage(f"{name} is a damaged text encoder", tensors):
            if kind == "t5":
                third = t5.from_tensors(tensors, device)
            else:
                parts[kind] = _tower(kind, tensors, device, alone=family == "stable_diffusion")
    towers = tuple(parts[kind] for kind in sorted(parts, reverse=True))  # clip_l before clip_g
    if family != "sd3":
        return TextEncoder(towers)
    absent = tuple(0 if kind in parts else width for kind, width in sd3.POOLED.items())
    joint = third.width if third else sd3.JOINT
    return TextEncoder(towers, joint=joint, empty=sd3.T5_TOKENS, t5=third, beside=(absent[0], absent[1]))


def _kind(name: str, tensors: Tensors) -> str:
    """By the number of layers, as ComfyUI tells them."""
    if any(key.startswith(t5.MARK) for key in tensors):
        return "t5"
    layers = count(tensors, _OPEN) or max(count(tensors, head + "encoder.layers.") for head in ("", "text_model."))
    if not layers:
        raise ValidationError(f"{name} is no text encoder of Stable Diffusion: it has {_some(tensors)}")
    return "clip_g" if layers > 30 else "clip_h" if layers >= _H_LAYERS else "clip_l"


def _tower(kind: str, tensors: Tensors, device: torch.device, *, alone: bool) -> Tower:
    is_open = any(name.startswith(_OPEN) for name in tensors)
    match kind:
        case "clip_g":
            return clips.open_clip(tensors, device) if is_open else clips.projected(tensors, device)
        case "clip_h":
            return (clips.open_clip if is_open else clips.penultimate)(tensors, device, _H_LAYERS)
    return clips.openai(tensors, device) if alone else clips.openai(tensors, device, layer=-2, normed=False)


def _some(tensors: Tensors) -> str:
    return shortened(tensors) or "no tensors"
