"""Classifier-free guidance (Ho and Salimans 2022): one denoiser of two conditionings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vortex_worker.errors import ValidationError
from vortex_worker.executor.nodes.sampling.model import DiffusionModel

Conditioning = Sequence[Any]  # of [tensor, dict], as ComfyUI's
#: What SDXL was trained to be told of a picture, in its order.
SIZES = ("height", "width", "crop_h", "crop_w", "target_height", "target_width")
_OPTIONS = {"pooled_output", *SIZES}


def guided(
    model: DiffusionModel, positive: Conditioning, negative: Conditioning, scale: float, like: Tensor
) -> Callable[[Tensor, float], Tensor]:
    """``(x, sigma) → denoised``, being uncond + (cond − uncond) · scale, for x like ``like``.

    Both in one batch, so one call of the network a step; at scale 1 the negative isn't run at all.
    Where their shapes or dtypes differ, two calls.

    Raises:
        ValidationError: a conditioning that does not fit the batch.
    """
    batch = len(like)
    cond, extras = condition(model, positive, "positive", like)
    if scale == 1.0:
        levels = torch.empty(batch, device=like.device)

        def plain(x: Tensor, sigma: float) -> Tensor:
            return model.denoise(x, levels.fill_(sigma), cond, **extras)

        return plain

    uncond, unextras = condition(model, negative, "negative", like)
    if not _alike({"": cond, **extras}, {"": uncond, **unextras}):
        levels = torch.empty(batch, device=like.device)

        def apart(x: Tensor, sigma: float) -> Tensor:
            levels.fill_(sigma)
            without = model.denoise(x, levels, uncond, **unextras)
            return torch.lerp(without, model.denoise(x, levels, cond, **extras), scale)

        return apart

    both = torch.cat([cond, uncond])
    both_extras = {name: torch.cat([tensor, unextras[name]]) for name, tensor in extras.items()}
    levels = torch.empty(2 * batch, device=like.device)

    def together(x: Tensor, sigma: float) -> Tensor:
        with_, without = model.denoise(torch.cat([x, x]), levels.fill_(sigma), both, **both_extras).chunk(2)
        return torch.lerp(without, with_, scale)

    return together


def masked(
    model: DiffusionModel,
    denoiser: Callable[[Tensor, float], Tensor],
    mask: Tensor,
    original: Tensor,
    noise: Tensor,
) -> Callable[[Tensor, float], Tensor]:
    """``denoiser`` that draws only where ``mask`` is 1; elsewhere it sees, and gives, the original.

    Args:
        mask: [B or 1, 1, …], 0 to 1. original: the latent as the network sees it. noise: what x began with.
    """

    def inside(x: Tensor, sigma: float) -> Tensor:
        start, level = model.noised(sigma)
        x = torch.lerp(original * start + noise * level, x, mask)
        return torch.lerp(original, denoiser(x, sigma), mask)

    return inside


def _alike(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(
        tensor.shape == others[name].shape and tensor.dtype == others[name].dtype for name, tensor in some.items()
    )


def condition(
    model: DiffusionModel, conditioning: Conditioning, name: str, like: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The tensor of a conditioning, [batch, …], and the model's extras; a first dimension of 1 serves the whole batch.

    Raises:
        ValidationError: several entries, areas or masks, or another batch.
    """
    if problem := problem_of(model, conditioning, name, len(like)):
        raise ValidationError(problem, problems=[problem])
    tensor, options = conditioning[0]
    extras = model.extras(options, like) if model.extras else {}

    def fitted(tensor: Tensor) -> Tensor:
        tensor = tensor.to(like.device)
        return tensor.expand(len(like), *tensor.shape[1:])

    return fitted(tensor), {key: fitted(value) for key, value in extras.items()}


def problem_of(model: DiffusionModel, conditioning: Conditioning, name: str, batch: int) -> str | None:
    """What keeps a conditioning from a model and a batch of that size, or None."""
    if len(conditioning) != 1:
        return f"{name!r} combines {len(conditioning)} conditionings: it takes one"
    tensor, options = conditioning[0]
    if unknown := sorted(str(key) for key in set(options) - _OPTIONS):
        return f"{name!r} has {', '.join(unknown)}, which are not supported"
    if tensor.dim() < 1 or tensor.shape[0] not in (1, batch):
        return f"{name!r} is a tensor {list(tensor.shape)}: its first dimension must be 1 or {batch}"
    if model.cond_width not in (None, tensor.shape[-1]):
        return f"{name!r} is of width {tensor.shape[-1]}: this model takes {model.cond_width}, of its own text encoder"
    if model.extras is None:
        return None
    pooled = options.get("pooled_output")
    if not isinstance(pooled, Tensor) or pooled.dim() != 2 or pooled.shape[0] not in (1, batch):
        return f"{name!r} has no pooled_output [1 or {batch}, width], which this model takes"
    if bad := sorted(key for key in options if key in SIZES and not isinstance(options[key], int)):
        return f"{name!r} has {', '.join(bad)}, which must be whole numbers"
    return None
