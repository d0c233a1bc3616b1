"""Classifier-free guidance (Ho and Salimans 2022): one denoiser of two conditionings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vortex_worker.errors import ValidationError
from vortex_worker.executor.nodes.sampling.model import DiffusionModel

Conditioning = Sequence[Any]  # of [tensor, dict], as ComfyUI's


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
    cond = condition(positive, "positive", like)
    if scale == 1.0:
        levels = torch.empty(batch, device=like.device)

        def plain(x: Tensor, sigma: float) -> Tensor:
            return model.denoise(x, levels.fill_(sigma), cond)

        return plain

    uncond = condition(negative, "negative", like)
    if uncond.shape != cond.shape or uncond.dtype != cond.dtype:
        levels = torch.empty(batch, device=like.device)

        def apart(x: Tensor, sigma: float) -> Tensor:
            levels.fill_(sigma)
            return torch.lerp(model.denoise(x, levels, uncond), model.denoise(x, levels, cond), scale)

        return apart

    both = torch.cat([cond, uncond])
    levels = torch.empty(2 * batch, device=like.device)

    def together(x: Tensor, sigma: float) -> Tensor:
        with_, without = model.denoise(torch.cat([x, x]), levels.fill_(sigma), both).chunk(2)
        return torch.lerp(without, with_, scale)

    return together


def condition(conditioning: Conditioning, name: str, like: Tensor) -> Tensor:
    """The tensor of a conditioning, [batch, …]; a first dimension of 1 serves the whole batch.

    Raises:
        ValidationError: several entries, areas or masks, or another batch.
    """
    if problem := problem_of(conditioning, name, len(like)):
        raise ValidationError(problem, problems=[problem])
    tensor: Tensor = conditioning[0][0].to(like.device)
    return tensor.expand(len(like), *tensor.shape[1:])


def problem_of(conditioning: Conditioning, name: str, batch: int) -> str | None:
    """What keeps a conditioning from a batch of that size, or None."""
    if len(conditioning) != 1:
        return f"{name!r} combines {len(conditioning)} conditionings: it takes one"
    tensor, options = conditioning[0]
    if unknown := sorted(str(key) for key in set(options) - {"pooled_output"}):
        return f"{name!r} has {', '.join(unknown)}, which are not supported"
    if tensor.dim() < 1 or tensor.shape[0] not in (1, batch):
        return f"{name!r} is a tensor {list(tensor.shape)}: its first dimension must be 1 or {batch}"
    return None
