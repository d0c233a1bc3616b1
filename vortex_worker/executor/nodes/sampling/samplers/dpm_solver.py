"""DPM-Solver with steps of its own choosing between the first sigma and the last above 0.

Lu et al. (2022, arXiv 2206.00927). Of the schedule only its ends and its length count; x ends at the last sigma above
0, not at 0. Where there is none but the first, the estimate itself is given.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vortex_worker.executor.nodes.sampling.samplers.exponential import phi
from vortex_worker.executor.nodes.sampling.samplers.signature import Callback, Model, Noise, Sigmas, quiet, weighted

_MOST_TRIES = 1_000  # of dpm_adaptive: each try is three model calls
_NEAR = 1e-5  # of the end, in log sigma


def dpm_fast(
    model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise | None = None, callback: Callback = quiet
) -> Tensor:
    """DPM-Solver-fast: as many model calls as the schedule has steps, in steps of order 3 and the rest of 2 and 1."""
    calls = len(sigmas) - 1
    if calls < 1:
        return x
    start, end = _ends(sigmas)
    count = calls // 3 + 1
    orders = [3] * (count - 2) + [2, 1] if calls % 3 == 0 else [3] * (count - 1) + [calls % 3]
    levels = [start * (end / start) ** (i / count) for i in range(count)] + [end]
    for i, order in enumerate(orders):
        denoised = model(x, levels[i])
        callback(i, x, levels[i], denoised)
        if start == end:
            return denoised
        x = _step(model, x, denoised, levels[i], levels[i + 1], order)
    return x


def dpm_adaptive(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise | None = None,
    callback: Callback = quiet,
    relative: float = 0.05,
    absolute: float = 0.0078,
) -> Tensor:
    """DPM-Solver-23 whose steps are as long as its error allows: orders 2 and 3 side by side, three calls a try.

    The callback is told the step of the schedule that it has come to, once a try.

    Args:
        relative, absolute: the error that a step may have, of the values and beside them.

    Raises:
        ArithmeticError: the error is no number, or does not get small enough in a thousand tries.
    """
    if len(sigmas) < 2:
        return x
    sigma, end = _ends(sigmas)
    length, before, place = 0.05, x, 0
    for _ in range(_MOST_TRIES):
        denoised = model(x, sigma)
        while place < len(sigmas) - 2 and sigmas[place + 1] >= sigma:
            place += 1
        callback(place, x, sigma, denoised)
        if sigma == end:
            return denoised
        following = max(end, sigma * math.exp(-length))
        slope = (x - denoised) / sigma
        third = _stage(model, x, slope, sigma, following, 1 / 3)
        low = _second(x, slope, third, sigma, following, 1 / 3)
        high = _third(model, x, slope, third, sigma, following)
        allowed = torch.maximum(low.abs(), before.abs()).mul_(relative).clamp_min_(absolute)
        error = float(torch.linalg.vector_norm((low - high) / allowed)) / math.sqrt(x.numel())
        if not math.isfinite(error):
            raise ArithmeticError(f"dpm_adaptive: the error of a step is {error} at sigma {sigma:.4g}")
        # Söderlind's controller, of which only the integral part is used.
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / 3) - 1)
        length *= factor
        if factor >= 0.81:
            x, before, sigma = high, low, following
            if math.log(sigma / end) <= _NEAR:
                return x
    raise ArithmeticError(f"dpm_adaptive: after {_MOST_TRIES:,} tries it is at sigma {sigma:.4g} of {end:.4g}")


def _ends(sigmas: Sigmas) -> tuple[float, float]:
    return sigmas[0], sigmas[-1] if sigmas[-1] > 0 else sigmas[-2]


def _step(model: Model, x: Tensor, denoised: Tensor, sigma: float, following: float, order: int) -> Tensor:
    """One step of DPM-Solver-1, -2 or -3."""
    if order == 1:
        return torch.lerp(denoised, x, following / sigma)
    slope = (x - denoised) / sigma
    if order == 2:
        return _second(x, slope, _stage(model, x, slope, sigma, following, 1 / 2), sigma, following, 1 / 2)
    return _third(model, x, slope, _stage(model, x, slope, sigma, following, 1 / 3), sigma, following)


def _stage(model: Model, x: Tensor, slope: Tensor, sigma: float, following: float, share: float) -> Tensor:
    """The slope at ``share`` of the way, in log sigma, by Euler's step there."""
    level = sigma * math.pow(following / sigma, share)
    ahead = torch.add(x, slope, alpha=level - sigma)
    return (ahead - model(ahead, level)) / level


def _second(x: Tensor, slope: Tensor, between: Tensor, sigma: float, following: float, share: float) -> Tensor:
    """Equation 4.1 and algorithm 1."""
    moved = following - sigma
    return weighted((1.0, x), (moved * (1 - 1 / (2 * share)), slope), (moved / (2 * share), between))


def _third(model: Model, x: Tensor, slope: Tensor, third: Tensor, sigma: float, following: float) -> Tensor:
    """Algorithm 2: stages at 1/3 and 2/3."""
    step = math.log(sigma / following)
    level = sigma * math.exp(-2 / 3 * step)
    bent = -level * 2 * (phi(1, 2 / 3 * step) - 1)
    ahead = weighted((1.0, x), (level - sigma - bent, slope), (bent, third))
    late = (ahead - model(ahead, level)) / level
    bent = -following * 3 / 2 * (phi(1, step) - 1)
    return weighted((1.0, x), (following - sigma - bent, slope), (bent, late))
