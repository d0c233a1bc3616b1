"""Stands in for ``comfy.utils``: progress, resizing, safetensors files, state dicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vortex_worker.executor.comfy import job
from vortex_worker.executor.nodes.image import resize

PROGRESS_BAR_ENABLED = True


class ProgressBar:
    """Reports to whoever watches the job. Previews are passed over."""

    def __init__(self, total: int, node_id: Any = None) -> None:
        self.total = max(0, int(total))
        self.current = 0

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        if total is not None:
            self.total = max(0, int(total))
        self.current = min(max(0, int(value)), self.total)
        job.context().progress(self.current, self.total)

    def update(self, value: int) -> None:
        self.update_absolute(self.current + value)


def set_progress_bar_enabled(enabled: bool) -> None:
    """Nothing: who doesn't want to see progress doesn't look."""


def common_upscale(samples: Tensor, width: int, height: int, upscale_method: str, crop: str) -> Tensor:
    """Resize [batch, channels, height, width].

    ``upscale_method``: nearest-exact, bilinear, area, bicubic or lanczos; bislerp for latents. ``crop``:
    "disabled", or "center" to cut off first what doesn't have the new proportions.
    """
    return resize(samples, {"width": width, "height": height, "upscale_method": upscale_method, "crop": crop})


def lanczos(samples: Tensor, width: int, height: int) -> Tensor:
    return common_upscale(samples, width, height, "lanczos", "disabled")


def repeat_to_batch_size(tensor: Tensor, batch_size: int, dim: int = 0) -> Tensor:
    """Repeated or cut to ``batch_size`` along ``dim``."""
    size = tensor.shape[dim]
    if size >= batch_size:
        return tensor.narrow(dim, 0, batch_size)
    turns = [1] * tensor.dim()
    turns[dim] = math.ceil(batch_size / size)
    return tensor.repeat(turns).narrow(dim, 0, batch_size)


def load_torch_file(
    ckpt: str, safe_load: bool = True, device: Any = None, return_metadata: bool = False
) -> dict[str, Tensor] | tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file. Pickles are refused: loading one runs its code."""
    from vortex_worker.executor.diffusion import weights

    found = weights.read(Path(ckpt))
    tensors = {name: tensor if device is None else tensor.to(device) for name, tensor in found.tensors.items()}
    return (tensors, found.metadata) if return_metadata else tensors


def save_torch_file(sd: Mapping[str, Tensor], ckpt: str, metadata: Mapping[str, str] | None = None) -> None:
    raise PermissionError(f"workers write no files ({ckpt!r}): return the tensors as an output")


def state_dict_prefix_replace(
    state_dict: dict[str, Tensor], replace_prefix: Mapping[str, str], filter_keys: bool = False
) -> dict[str, Tensor]:
    """Tensors by other names: those that begin with a key of ``replace_prefix`` begin with its value."""
    out = {} if filter_keys else state_dict
    for old, new in replace_prefix.items():
        for name in [name for name in state_dict if name.startswith(old)]:
            out[new + name.removeprefix(old)] = state_dict.pop(name)
    return out


def calculate_parameters(sd: Mapping[str, Tensor], prefix: str = "") -> int:
    """How many numbers there are in the tensors whose names begin with ``prefix``."""
    return sum(tensor.nelement() for name, tensor in sd.items() if name.startswith(prefix))


def get_attr(obj: Any, attr: str) -> Any:
    for name in attr.split("."):
        obj = getattr(obj, name)
    return obj


def tiled_scale(
    samples: Tensor,
    function: Callable[[Tensor], Tensor],
    tile_x: int = 64,
    tile_y: int = 64,
    overlap: int = 8,
    upscale_amount: float = 4,
    out_channels: int = 3,
    output_device: Any = "cpu",
    pbar: ProgressBar | None = None,
) -> Tensor:
    """``function`` on tiles of [batch, channels, height, width] that overlap, the seams faded into each other."""
    batch, _, height, width = samples.shape
    size = (round(height * upscale_amount), round(width * upscale_amount))
    out = torch.zeros(batch, out_channels, *size, device=output_device)
    weight = torch.zeros(1, 1, *size, device=output_device)
    fade = max(1, round(overlap * upscale_amount))
    for y in _starts(height, tile_y, overlap):
        for x in _starts(width, tile_x, overlap):
            tile = function(samples[..., y : y + tile_y, x : x + tile_x]).to(out)
            mask = _ramp(tile.shape[-2], fade)[:, None] * _ramp(tile.shape[-1], fade)
            top, left = round(y * upscale_amount), round(x * upscale_amount)
            place = (..., slice(top, top + tile.shape[-2]), slice(left, left + tile.shape[-1]))
            out[place] += tile * mask.to(out)
            weight[place] += mask.to(out)
            if pbar is not None:
                pbar.update(1)
    return out / weight


def get_tiled_scale_steps(width: int, height: int, tile_x: int, tile_y: int, overlap: int) -> int:
    """How many tiles ``tiled_scale`` takes for one picture."""
    return len(_starts(height, tile_y, overlap)) * len(_starts(width, tile_x, overlap))


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    if size <= tile:
        return [0]
    return sorted({min(start, size - tile) for start in range(0, size - overlap, max(1, tile - overlap))})


def _ramp(size: int, fade: int) -> Tensor:
    """From nearly 0 to 1 and back: never 0, for at the picture's edge there is no other tile."""
    rise = (torch.arange(size) + 1) / (fade + 1)
    return torch.minimum(rise, rise.flip(0)).clamp(max=1)
