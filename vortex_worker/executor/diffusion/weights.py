"""safetensors files as tensors that stay in the file: mapped, so that all workers hold them once."""

from __future__ import annotations

import errno
import json
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vortex_worker.device import cpu
from vortex_worker.errors import ValidationError

_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_MAX_JSON = 16 << 20  # bytes: a vocabulary is one or two MB
_MAX_SHARDS = 1000
_MOST_TENSORS = 20_000  # Stable Diffusion XL's checkpoints have 2,515
_SHOWN = 5
#: Of those that safetensors knows, what torch has as well.
_DTYPES = (
    "BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "F4", "I16", "U16", "F16",
    "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64",
)  # fmt: skip
#: What weights may be. The other floats of files aren't numbers by themselves: F8_E8M0 scales others, F4 packs two.
_REAL = {
    torch.float64, torch.float32, torch.bfloat16, torch.float16,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
}  # fmt: skip


class Weights(NamedTuple):
    """Tensors by name, and what the file says of itself."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read(path: Path) -> Weights:
    """The tensors of a file, mapped privately: pages are shared by all who read the same file.

    Raises:
        ValidationError: it can't be read, is no safetensors file, is truncated, or its header lies.
        MemoryError: it is larger than what may be mapped.
    """
    if path.suffix.lower() in _PICKLES:
        raise ValidationError(f"{path.name} is a pickle, and loading it would run its code: convert it to safetensors")
    if path.is_dir():
        raise ValidationError(f"{path.name} can't be read: it is a folder, and this takes a safetensors file")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            if len(names) > _MOST_TENSORS:
                raise ValidationError(f"{path.name} has {len(names)} tensors: at most {_MOST_TENSORS} are read")
            return Weights({name: file.get_tensor(name) for name in names}, file.metadata() or {})
    except OSError as error:
        said = error.strerror or str(error).removesuffix(f": {path}")
        raise ValidationError(f"{path.name} can't be read: {said}") from None
    except (SafetensorError, ValueError, RuntimeError, AttributeError) as error:
        if failed := re.match(r"unable to (?:mmap|open) .*\((\d+)\)$", str(error), re.DOTALL):
            raise _unmapped(path, int(failed[1])) from None
        if foreign := _foreign_dtype(path):
            raise ValidationError(f"{path.name}: {foreign}: it takes {', '.join(_DTYPES)}") from None
        said = str(error).replace(str(path), path.name)
        raise ValidationError(f"{path.name} is no sound safetensors file: {said}") from None


def _unmapped(path: Path, code: int) -> Exception:
    """Why torch could not map a file; it says so with the file's place on this machine."""
    if code == errno.ENOMEM:
        return MemoryError(f"{path.name} has {path.stat().st_size} bytes, more than can be mapped: {cpu.bound()}")
    return ValidationError(f"{path.name} can't be read: {os.strerror(code)}")


def _foreign_dtype(path: Path) -> str:
    """The first tensor of a file whose dtype can't be read, and that dtype; "" if there is none."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size)) if size <= _MAX_JSON else None
    except (OSError, ValueError, RecursionError, struct.error):
        return ""
    for name, told in header.items() if isinstance(header, dict) else ():
        dtype = told.get("dtype", "") if isinstance(told, dict) and name != "__metadata__" else ""
        if dtype != "" and dtype not in _DTYPES:
            return f"{shortened([name])} is of dtype {dtype!r:.50}"
    return ""


def is_real(tensor: Tensor) -> bool:
    """Whether it holds real numbers of a dtype that can be computed with, or widened to one."""
    return tensor.dtype in _REAL


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
