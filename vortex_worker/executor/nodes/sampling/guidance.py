"""Classifier-free guidance (Ho and Salimans 2022): one denoiser of two conditionings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vortex_worker.errors import ValidationError
from vortex_worker.executor.nodes.sampling.model import DiffusionModel


def guided(
    model: DiffusionModel, positive: list[Any], negative: list[Any], scale: float, batch: int, device: torch.device
) -> Callable[[Tensor, float], Tensor]:
    """``(x, sigma) → denoised``, being uncond + (cond − uncond) · scale.

    Both in one batch, so one call of the network a step; at scale 1 the negative isn't run at all.
    Where their shapes differ, two calls.

    Raises:
        ValidationError: a conditioning that does not fit the batch.
    """
    cond = condition(positive, "positive", batch, device)
    if scale == 1.0:
        levels = torch.empty(batch, device=device)

        def plain(x: Tensor, sigma: float) -> Tensor:
            return model.denoise(x, levels.fill_(sigma), cond)

        return plain

    uncond = condition(negative, "negative", batch, device)
    if uncond.shape != cond.shape or uncond.dtype != cond.dtype:
        levels = torch.empty(batch, device=device)

        def apart(x: Tensor, sigma: float) -> Tensor:
            levels.fill_(sigma)
            without = model.denoise(x, levels, uncond)
            return without + (model.denoise(x, levels, cond) - without) * scale

        return apart

    both = torch.cat([cond, uncond])
    levels = torch.empty(2 * batch, device=device)

    def together(x: Tensor, sigma: float) -> Tensor:
        with_, without = model.denoise(torch.cat([x, x]), levels.fill_(sigma), both).chunk(2)
        return without + (with_ - without) * scale

    return together


def condition(conditioning: list[Any], name: str, batch: int, device: torch.device) -> Tensor:
    """The tensor of a conditioning, [batch, …]; a first dimension of 1 serves the whole batch.

    Raises:
        ValidationError: several entries, areas or masks, or another batch.
    """
    if problem := problem_of(conditioning, name, batch):
        raise ValidationError(problem)
    tensor: Tensor = conditioning[0][0].to(device)
    return tensor.expand(batch, *tensor.shape[1:])


def problem_of(conditioning: list[Any], name: str, batch: int) -> str | None:
    """What keeps a conditioning from a batch of that size, or None."""
    if len(conditioning) != 1:
        return f"{name!r} combines {len(conditioning)} conditionings: one is supported"
    tensor, options = conditioning[0]
    if unknown := sorted(set(options) - {"pooled_output"}):
        return f"{name!r} has {', '.join(unknown)}, which are not supported"
    if tensor.dim() < 1 or tensor.shape[0] not in (1, batch):
        return f"{name!r} is a tensor {list(tensor.shape)}: its first dimension must be 1 or the batch, {batch}"
    return None
