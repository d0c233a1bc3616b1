"""safetensors files as tensors that stay in the file: mapped, so that all workers hold them once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vortex_worker.errors import ValidationError

_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_MAX_JSON = 16 << 20  # bytes: a vocabulary is one or two MB
_MAX_SHARDS = 1000
_SHOWN = 5


class Weights(NamedTuple):
    """Tensors by name, and what the file says of itself."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read(path: Path) -> Weights:
    """The tensors of a file, mapped privately: pages are shared by all who read the same file.

    Raises:
        ValidationError: it can't be read, is no safetensors file, is truncated, or its header lies.
    """
    if path.suffix.lower() in _PICKLES:
        raise ValidationError(f"{path.name} is a pickle, and loading it would run its code: convert it to safetensors")
    if path.is_dir():
        raise ValidationError(f"{path.name} can't be read: it is a folder, and this takes a safetensors file")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return Weights({name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except OSError as error:
        raise ValidationError(f"{path.name} can't be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError, RuntimeError, AttributeError) as error:
        raise ValidationError(f"{path.name} is no sound safetensors file: {error}") from None


def read_folder(folder: Path, stem: str) -> dict[str, Tensor]:
    """The tensors of one part of a diffusers folder, in one file or in shards.

    Args:
        stem: ``model`` or ``diffusion_pytorch_model``. Of several variants the full one is taken.

    Raises:
        ValidationError: as ``read``; or there is no such file, or only pickles.
    """
    for variant in ("", ".fp32", ".bf16", ".fp16"):
        whole, index = folder / f"{stem}{variant}.safetensors", folder / f"{stem}.safetensors.index{variant}.json"
        if whole.exists():
            return read(whole).tensors
        if index.exists():
            shards = read_json(index).get("weight_map")
            names = sorted({str(name) for name in shards.values()}) if isinstance(shards, Mapping) else []
            if not 0 < len(names) <= _MAX_SHARDS or any(os.path.basename(name) != name for name in names):
                raise ValidationError(f"{index.name} names no files beside it")
            return {key: tensor for name in names for key, tensor in read(folder / name).tensors.items()}
    pickled = any(folder.glob("*.bin"))
    said = "only pickles, whose loading would run code" if pickled else "no weights"
    raise ValidationError(f"{folder.parent.name}/{folder.name} has {said}: it takes {stem}.safetensors")


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file.

    Raises:
        ValidationError: it can't be read, or holds something else.
    """
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ValidationError(f"{path.name} has more than {_MAX_JSON} bytes")
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValidationError(f"{path.parent.name}/{path.name} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValidationError(f"{path.parent.name}/{path.name} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValidationError(f"{path.parent.name}/{path.name} holds no JSON object")
    return found


@contextmanager
def told_as_damage(what: str, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """What a file's names and shapes are read in: it goes on where there is nothing wrong with them.

    Args:
        what: which file it is, and of what, for messages: "x.safetensors is a damaged VAE".

    Raises:
        ValidationError: a tensor is empty; one that its configuration is read from is missing or of no such shape.
    """
    if void := [name for name, tensor in tensors.items() if tensor.numel() == 0]:
        raise ValidationError(f"{what}: {shortened(void)} are empty")
    try:
        yield
    except ValidationError:
        raise
    except (KeyError, AttributeError) as error:
        raise ValidationError(f"{what}: it lacks {error}") from None
    except (IndexError, ValueError, TypeError, StopIteration):
        raise ValidationError(f"{what}: the numbers of its layers, or their shapes, make no sense") from None


def shortened(names: Iterable[str]) -> str:
    """``a, b, c and 94 more``."""
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(" ".join(name[:100].split()) for name in names[:_SHOWN]) + more  # no line breaks of a file's
