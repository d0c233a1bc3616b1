"""Textual inversions (Gal et al. 2022, arXiv 2208.01618): rows that a prompt names, as ``embedding:NAME``.

A row stands for a token: it is what the text encoder's table of tokens would have for one. Files are safetensors, or
pickles as training programs write them, of which no code is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vortex_worker.errors import ValidationError
from vortex_worker.executor import model_files
from vortex_worker.executor.diffusion import weights
from vortex_worker.executor.diffusion.prompt import weighted

MARK = "embedding:"
_ENDS = ("", ".safetensors", ".pt", ".bin")
_PICKLED = (".pt", ".bin")
_MOST_BYTES = 64 << 20  # 64 MiB: 10,000 rows for SDXL
_MOST_ROWS = 1024  # tokens of one name
_TOWERS = ("clip_l", "clip_g")  # how files for several text encoders name their parts


def named(word: str) -> tuple[str, str]:
    """The name in a word that begins with the mark, and what follows it: commas."""
    name = word.removeprefix(MARK)
    bare = name.rstrip(",")
    return bare, name[len(bare) :]


def stamp(text: str | None) -> str:
    """What changes when other content comes under the names in a prompt. None: a prompt that isn't known yet."""
    return model_files.stamp("embeddings", [None] if text is None else _names(text), _ENDS)


def _names(text: str) -> list[str]:
    try:
        words = [word for piece, _ in weighted(text) for word in piece.split()]
    except ValidationError:  # it is told when the prompt is to be encoded
        return []
    return [named(word)[0] for word in words if word.startswith(MARK)]


def rows(name: str, widths: Sequence[int]) -> dict[int, Tensor]:
    """An embedding's rows [count, width], float32, by the place of the tower that they are for.

    Args:
        widths: of the tokens of each of the text encoder's towers.

    Raises:
        ValidationError: there is no such file; it can't be read, or holds no rows of these widths.
    """
    path = model_files.find("embeddings", name, _ENDS)
    tensors = _read(path)
    found = {}
    for place, width in enumerate(widths):
        of_tower = tensors.get(_TOWERS[place]) if place < len(_TOWERS) else None
        for tensor in tensors.values() if of_tower is None else [of_tower]:
            if tensor.dim() in (1, 2) and tensor.shape[-1] == width and weights.is_real(tensor):
                found[place] = tensor.detach().float().reshape(-1, width)
                break
    if not found:
        has = ", ".join(str(list(tensor.shape)) for tensor in list(tensors.values())[:8]) or "no tensors"
        raise ValidationError(f"embedding {path.name} has {has}: this text encoder takes rows of {_either(widths)}")
    for each in found.values():
        if not 0 < len(each) <= _MOST_ROWS or not each.isfinite().all():
            raise ValidationError(f"embedding {path.name} has {len(each)} rows: it takes 1 to {_MOST_ROWS}, finite")
    return found


def _either(widths: Sequence[int]) -> str:
    return " or ".join(map(str, dict.fromkeys(widths)))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ValidationError(f"{path.name} can't be read: {error.strerror}") from None
    if size > _MOST_BYTES:
        raise ValidationError(f"{path.name} has {size} bytes: an embedding has at most {_MOST_BYTES}")
    if path.suffix.lower() not in _PICKLED:
        return weights.read(path).tensors
    try:
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValidationError(f"{path.name} can't be read: {error.strerror or error}") from None
    except Exception as error:  # whatever a damaged file makes it raise
        said = str(error).strip().split("\n")[0]
        raise ValidationError(f"{path.name} is no pickle of plain tensors: {said:.200}") from None
    if isinstance(held, Mapping) and isinstance(held.get("string_to_param"), Mapping):
        held = held["string_to_param"]  # AUTOMATIC1111's, beside notes on the training
    if not isinstance(held, Mapping):
        raise ValidationError(f"{path.name} holds a {type(held).__name__}: an embedding is a dict of tensors")
    return {str(key): tensor for key, tensor in held.items() if isinstance(tensor, Tensor)}
