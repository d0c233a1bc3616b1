"""What a conditioning may hold, and its entries as a model takes them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from vortex_worker.executor.nodes.sampling.model import DiffusionModel

Conditioning = Sequence[Any]  # of [tensor, dict], as ComfyUI's
Area = tuple[int, int, int, int]  # height, width, y, x, in the latent's own units
#: What SDXL was trained to be told of a picture, in its order.
SIZES = ("height", "width", "crop_h", "crop_w", "target_height", "target_width")
_NUMBERS = ("strength", "mask_strength", "start_percent", "end_percent")
#: Where, when and how much an entry counts. One without any holds everywhere, all the time.
REGIONAL = {"area", "mask", "set_area_to_bounds", *_NUMBERS}
#: ControlNets (`control`), and whether the negative has the positive's.
CONTROL = {"control", "control_apply_to_uncond"}
_CONTROL = {"network", "hint", "strength", "start", "end"}
_OPTIONS = {"pooled_output", *SIZES, *REGIONAL, *CONTROL}
_PERCENTAGE = "percentage"  # begins an area in shares of the picture


def is_plain(conditioning: Conditioning) -> bool:
    """Whether it is one entry that holds everywhere, all the time."""
    return len(conditioning) == 1 and REGIONAL.isdisjoint(conditioning[0][1])


def tensors_of(model: DiffusionModel, entry: Sequence[Any], like: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """An entry's tensor, [batch, …], and the model's extras; a first dimension of 1 serves the whole batch."""
    given, options = entry
    extras = model.extras(options, like) if model.extras else {}
    if model.extras_beside:
        extras |= model.extras_beside(options, like)

    def fitted(tensor: Tensor) -> Tensor:
        tensor = tensor.to(like.device)
        return tensor.expand(len(like), *tensor.shape[1:])

    return fitted(given), {key: fitted(value) for key, value in extras.items()}


def area_of(options: Mapping[str, Any], like: Tensor) -> Area | None:
    """An entry's area, cut to the latent's edges; None: all of it. Not above 0 where it lies outside."""
    area = options.get("area")
    if area is None:
        return None
    rows, columns = like.shape[-2:]
    if area[0] == _PERCENTAGE:
        height, width, y, x = (round(share * side) for share, side in zip(area[1:], 2 * (rows, columns), strict=True))
        area = max(1, height), max(1, width), y, x
    height, width, y, x = area
    return min(height, rows - y), min(width, columns - x), y, x


def problem_of(model: DiffusionModel, conditioning: Conditioning, name: str, like: Tensor) -> str | None:
    """What keeps a conditioning from a model and a latent like ``like``, or None."""
    if not conditioning:
        return f"{name!r} has no conditioning in it"
    for place, (tensor, options) in enumerate(conditioning):
        where = "" if len(conditioning) == 1 else f", entry {place + 1} of {len(conditioning)},"
        if found := next(_problems(model, tensor, options, like), None):
            return f"{name!r}{where} {found}"
    return None


def _problems(model: DiffusionModel, tensor: Tensor, options: Mapping[str, Any], like: Tensor) -> Iterator[str]:
    batch = len(like)
    if unknown := sorted(str(key) for key in set(options) - _OPTIONS):
        yield f"has {', '.join(unknown)}, which are not supported"
    if tensor.dim() < 1 or tensor.shape[0] not in (1, batch):
        yield f"is a tensor {list(tensor.shape)}: its first dimension must be 1 or {batch}"
    if tensor.is_complex():
        yield f"is of {tensor.dtype}: it takes real numbers"
    if model.cond_width not in (None, tensor.shape[-1]):
        yield f"is of width {tensor.shape[-1]}: this model takes {model.cond_width}, of its own text encoder"
    if model.extras is not None:
        pooled = options.get("pooled_output")
        if not isinstance(pooled, Tensor) or pooled.dim() != 2 or pooled.shape[0] not in (1, batch):
            yield f"has no pooled_output [1 or {batch}, width], which this model takes"
        elif pooled.shape[1] != (takes := getattr(model.network, "pooled_width", pooled.shape[1])):
            yield f"has a pooled_output of width {pooled.shape[1]}: this model takes {takes}"
        if bad := sorted(key for key in options if key in SIZES and not isinstance(options[key], int)):
            yield f"has {', '.join(bad)}, which must be whole numbers"
    if (controls := options.get("control", [])) != []:
        yield from _control_problems(model, controls, like)
    if bad := [key for key in _NUMBERS if key in options and not _is_number(options[key])]:
        yield f"has {', '.join(bad)}, which must be finite numbers"
    if like.dim() != 4 and not {"area", "mask"}.isdisjoint(options):
        yield f"has an area or a mask, for latents [batch, channels, height, width]: this one is {list(like.shape)}"
    area, mask = options.get("area"), options.get("mask")
    if area is not None:
        if not _is_area(area):
            yield "has a bad area: it takes height, width, y and x"
        elif min(area_of(options, like) or ()) < 0 or 0 in (area_of(options, like) or ())[:2]:
            yield f"has an area that lies outside the latent's {like.shape[-2]} × {like.shape[-1]}"
    if mask is not None and not _is_mask(mask, batch):
        yield f"has a bad mask: it takes a tensor [height, width], or one for each of the batch of {batch}"


def control_problem(controls: Any) -> str | None:
    """What keeps an option ``control`` from being a list of ControlNets, or None."""
    is_list = isinstance(controls, list)
    if is_list and all(isinstance(given, Mapping) and given.keys() == _CONTROL for given in controls):
        return None
    return f"has a bad control: it takes a list of {', '.join(sorted(_CONTROL))}"


def _control_problems(model: DiffusionModel, controls: Any, like: Tensor) -> Iterator[str]:
    if not getattr(model.network, "is_controllable", False):
        yield "has a ControlNet, which are for U-Nets: this model has none"
        return
    if problem := control_problem(controls):
        yield problem
        return
    for given in controls:
        network, hint = given["network"], given["hint"]
        width, has_extras = getattr(network, "width", None), getattr(network, "has_extras", None)
        if width is None or model.cond_width not in (None, width) or has_extras != (model.extras is not None):
            yield f"has a ControlNet of another family, for text of width {width}: this model takes {model.cond_width}"
        blocks, takes = getattr(network, "blocks", None), getattr(model.network, "blocks", None)
        if None not in (blocks, takes) and blocks != takes:
            yield f"has a ControlNet for another U-Net: channels and layers {blocks}, where this model has {takes}"
        if not _is_hint(hint, len(like)):
            many = f"; it has {len(hint)} pictures" if isinstance(hint, Tensor) and hint.dim() == 4 else ""
            batch = "1" if len(like) == 1 else f"1 or {len(like)}"
            yield f"has a ControlNet with a bad picture: it takes [{batch}, 3, height, width]{many}"
        if not all(_is_number(given[key]) for key in ("strength", "start", "end")):
            yield "has a ControlNet whose strength, start or end is no finite number"


def _is_hint(hint: Any, batch: int) -> bool:
    if not isinstance(hint, Tensor) or hint.dim() != 4 or not hint.is_floating_point():
        return False
    return hint.shape[0] in (1, batch) and hint.shape[1] == 3 and 0 not in hint.shape


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_area(area: Any) -> bool:
    if not isinstance(area, list | tuple):
        return False
    if len(area) == 5 and area[0] == _PERCENTAGE:
        return all(_is_number(share) and 0 <= share <= 1 for share in area[1:])
    return len(area) == 4 and all(isinstance(side, int) and not isinstance(side, bool) for side in area)


def _is_mask(mask: Any, batch: int) -> bool:
    if not isinstance(mask, Tensor) or mask.dim() < 2 or 0 in mask.shape:
        return False
    return batch % min(batch, mask.shape[:-2].numel()) == 0
