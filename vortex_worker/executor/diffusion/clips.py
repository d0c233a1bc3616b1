"""CLIP's text towers of safetensors files: sizes read from the shapes, under transformers' names or OpenCLIP's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vortex_worker.executor.diffusion.names import Tensors, check_layers, count
from vortex_worker.executor.diffusion.parts import build
from vortex_worker.executor.diffusion.text import LENGTH, Tower
from vortex_worker.executor.diffusion.tokenizer import shipped

_SPARE = ("logit_scale", "visual_projection.", "vision_model.")  # of a whole CLIP: no use for text alone


def openai(tensors: Tensors, device: torch.device, *, layer: int = -1, normed: bool = True) -> Tower:
    """OpenAI's CLIP under transformers' names. Its projection, if it is there, isn't used.

    Raises:
        ValidationError: weights are missing, unexpected or misshapen. KeyError: one that its shape is read from.
    """
    module = _transformers(_bare(tensors, "text_projection"), device, "quick_gelu")
    return Tower(module, shipped(), layer, normed)


def projected(tensors: Tensors, device: torch.device) -> Tower:
    """SDXL's and Stable Diffusion 3's larger CLIP, with its projection, under transformers' names. Raises likewise."""
    bare = _bare(tensors)
    if "text_projection" in bare:  # OpenCLIP's name, of a matrix that is multiplied from the other side
        bare["text_projection.weight"] = bare.pop("text_projection").T
    width = bare["text_projection.weight"].shape[0]
    return Tower(_transformers(bare, device, "gelu", width), shipped(pad=0), layer=-2, normed=False)


def penultimate(tensors: Tensors, device: torch.device, layers: int) -> Tower:
    """Stable Diffusion 2's CLIP under transformers' names: its first ``layers`` are used. Raises likewise."""
    spare = tuple(f"encoder.layers.{number}." for number in range(layers, count(_bare(tensors), "encoder.layers.")))
    module = _transformers(_bare(tensors, "text_projection", *spare), device, "gelu")
    return Tower(module, shipped(pad=0), layer=-2, absent=1)


def open_clip(tensors: Tensors, device: torch.device, layers: int | None = None) -> Tower:
    """OpenCLIP's text tower under its own names. Raises likewise.

    Args:
        layers: how many are used, without the projection (Stable Diffusion 2). None: all, with it.
    """
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    check_layers(tensors)
    words, blocks = tensors["token_embedding.weight"], "transformer.resblocks."
    there = count(tensors, blocks)
    sizes = _sizes(words, tensors[blocks + "0.mlp.c_fc.weight"], there if layers is None else layers)
    unused: tuple[str, ...] = ("logit_scale",)
    if layers is None:
        sizes["projection_dim"] = tensors["text_projection"].shape[1]
    else:
        unused += ("text_projection", *(f"{blocks}{layer}." for layer in range(layers, there)))
    config = CLIPTextConfig(**sizes, hidden_act="gelu")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(unused)}
    converted = convert_open_clip_checkpoint(_Sized(config), kept, prefix="")
    make = CLIPTextModelWithProjection if layers is None else CLIPTextModel
    module = build(lambda: make(config), converted, "OpenCLIP text encoder", device)
    if layers is None:
        return Tower(module, shipped(pad=0), layer=-2, normed=False)
    return Tower(module, shipped(pad=0), layer=-2, absent=1)


@dataclass(frozen=True)
class _Sized:
    """What diffusers' converter asks of a model."""

    config: Any


def _bare(tensors: Tensors, *unused: str) -> dict[str, Tensor]:
    """Without ``text_model.`` before the names, which some files leave out, and without what isn't used."""
    check_layers(tensors)
    bare = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in bare.items() if not name.startswith((*_SPARE, *unused))}


def _transformers(bare: Tensors, device: torch.device, act: str, projection: int = 0) -> torch.nn.Module:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    words, widened = bare["embeddings.token_embedding.weight"], bare["encoder.layers.0.mlp.fc1.weight"]
    sizes = _sizes(words, widened, count(bare, "encoder.layers."))
    if projection:
        sizes["projection_dim"] = projection
    config = CLIPTextConfig(**sizes, hidden_act=act)
    make = CLIPTextModelWithProjection if projection else CLIPTextModel
    return build(lambda: make(config), bare, "CLIP text encoder", device)


def _sizes(words: Tensor, widened: Tensor, layers: int) -> dict[str, Any]:
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
