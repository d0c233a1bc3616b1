"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): one denoiser of two conditionings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from vortex_worker import device
from vortex_worker.errors import ValidationError
from vortex_worker.executor.nodes.sampling.conditioning import (
    REGIONAL,
    Conditioning,
    is_plain,
    problem_of,
    tensors_of,
)
from vortex_worker.executor.nodes.sampling.model import DiffusionModel, Level
from vortex_worker.executor.nodes.sampling.regions import Averages

Estimate = TypeVar("Estimate", Tensor, tuple[Tensor, Tensor])


def guided(
    model: DiffusionModel, positive: Conditioning, negative: Conditioning, scale: float, like: Tensor
) -> Callable[[Tensor, float], Tensor]:
    """``(x, sigma) → denoised``, being uncond + (cond − uncond) · scale, for x like ``like``.

    At scale 1 the negative isn't run at all. Else as ``pair``, whose first it is.

    Raises:
        ValidationError: a conditioning that does not fit the batch.
    """
    if scale == 1.0:
        _check(model, like, positive=positive)
        if not is_plain(positive) or any(map(REGIONAL.intersection, (options for _, options in negative))):
            if negative:  # its areas count
                _check(model, like, negative=negative)
            averages = Averages(model, (positive, negative), like, count=1)
            return lambda x, sigma: averages(x, sigma)[0]
        cond, extras = tensors_of(model, positive[0], like)
        return lambda x, sigma: model.denoise(x, sigma, cond, **extras)

    _check(model, like, positive=positive, negative=negative)
    if model.rescale or not (is_plain(positive) and is_plain(negative)):
        both = pair(model, positive, negative, scale, like)
        return lambda x, sigma: both(x, sigma)[0]
    ask = _outputs(model, positive, negative, like)

    def blended(x: Tensor, sigma: float) -> Tensor:
        level = model.level(sigma)
        with_, without = ask(x, level)
        return level.estimate(x, torch.lerp(without, with_, scale))

    return blended


def pair(
    model: DiffusionModel, positive: Conditioning, negative: Conditioning, scale: float, like: Tensor
) -> Callable[[Tensor, float], tuple[Tensor, Tensor]]:
    """``(x, sigma) → (guided, unguided)``: what CFG++ samplers ask.

    Both conditionings in one batch, so one call of the network a step. Two calls where their shapes or dtypes
    differ; and from where memory runs out on, as two halves may fit where the whole doesn't. Conditionings of several
    entries, or with areas and such, are ``Averages``.

    Raises:
        ValidationError: a conditioning that does not fit the batch.
    """
    _check(model, like, positive=positive, negative=negative)
    if is_plain(positive) and is_plain(negative):
        ask = _outputs(model, positive, negative, like)

        def answer(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
            level = model.level(sigma)
            with_, without = ask(x, level)
            out = level.estimate(x, torch.lerp(without, with_, scale))
            if model.rescale:
                out = _rescaled(model, x, sigma, level.estimate(x, with_), out)
            return out, level.estimate(x, without)

        return answer
    averages = Averages(model, (positive, negative), like, count=2)

    def average(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        with_, without = averages(x, sigma)
        out = torch.lerp(without, with_, scale)
        return _rescaled(model, x, sigma, with_, out) if model.rescale else out, without

    return average


def _outputs(
    model: DiffusionModel, positive: Conditioning, negative: Conditioning, like: Tensor
) -> Callable[[Tensor, Level], Sequence[Tensor]]:
    """``(x, level) → (with the positive, with the negative)``: the network's outputs, of plain conditionings."""
    cond, extras = tensors_of(model, positive[0], like)
    uncond, unextras = tensors_of(model, negative[0], like)

    def apart(x: Tensor, level: Level) -> Sequence[Tensor]:
        given = level.scaled(x)
        without = model.ask(given, level, uncond, **unextras)
        return model.ask(given, level, cond, **extras), without

    if not _alike({"": cond, **extras}, {"": uncond, **unextras}):
        return apart
    both = torch.cat([cond, uncond])
    both_extras = {name: torch.cat([tensor, unextras[name]]) for name, tensor in extras.items()}
    fits = True

    def together(x: Tensor, level: Level) -> Sequence[Tensor]:
        nonlocal fits
        if fits:
            try:
                given = level.scaled(x)
                return model.ask(torch.cat([given, given]), level, both, **both_extras).chunk(2)
            except (RuntimeError, MemoryError) as error:
                if not device.is_oom(error):
                    raise
            fits = False  # here the failed call's tensors are gone
            device.empty_cache()
        return apart(x, level)

    return together


def _rescaled(model: DiffusionModel, x: Tensor, sigma: float, cond: Tensor, out: Tensor) -> Tensor:
    """Guided estimates with some of the spread that strong guidance adds taken back.

    Lin et al. (2024, arXiv 2305.08891), equations 14 to 16, on velocities: the guided one is scaled so that its
    standard deviation over a sample is ``model.rescale`` of the way to that of the one with the prompt alone.
    """
    # A velocity is a number times (still − estimate), and the number cancels out.
    still = x if model.parametrization == "flow" else x / (sigma**2 + 1)
    axes = tuple(range(1, x.dim()))
    spread = (still - out).std(axes, keepdim=True).clamp_min_(torch.finfo(x.dtype).tiny)
    ratio = (still - cond).std(axes, keepdim=True) / spread
    return torch.lerp(still, out, 1 + model.rescale * (ratio - 1))


def masked(
    model: DiffusionModel,
    denoiser: Callable[[Tensor, float], Estimate],
    mask: Tensor,
    original: Tensor,
    noise: Tensor,
) -> Callable[[Tensor, float], Estimate]:
    """``denoiser`` that draws only where ``mask`` is 1; elsewhere it sees, and gives, the original.

    Args:
        denoiser: gives a tensor, or CFG++'s pair. mask: [B or 1, 1, …], 0 to 1. original: the latent as the network
            sees it. noise: what x began with.
    """

    def inside(x: Tensor, sigma: float) -> Estimate:
        start, level = model.noised(sigma)
        x = torch.lerp(original * start + noise * level, x, mask)
        estimate = denoiser(x, sigma)
        if isinstance(estimate, Tensor):
            return torch.lerp(original, estimate, mask)
        first, second = estimate
        return torch.lerp(original, first, mask), torch.lerp(original, second, mask)

    return inside


def _alike(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(
        tensor.shape == others[name].shape and tensor.dtype == others[name].dtype for name, tensor in some.items()
    )


def _check(model: DiffusionModel, like: Tensor, **conditionings: Conditioning) -> None:
    problems = [problem for name, given in conditionings.items() if (problem := problem_of(model, given, name, like))]
    if problems:
        raise ValidationError("; ".join(problems), problems=problems)
