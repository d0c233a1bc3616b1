"""Samplers: pure functions from noise at the first sigma to data at the last.

``sampler(model, x, sigmas, *, noise, callback)``: ``model(x, sigma) → denoised`` with sigma a float;
``x`` [B, …]; ``sigmas`` descending floats, the last usually 0; ``noise()`` gives standard normal
noise like x; ``callback(step, x, sigma, denoised)`` is told before each step. Sigmas are Python
floats: steps neither allocate for them nor wait for a device.

Formulae are those of the papers cited, in the notation of k-diffusion, which the tests hold these to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

Model = Callable[[Tensor, float], Tensor]
Noise = Callable[[], Tensor]
Callback = Callable[[int, Tensor, float, Tensor], None]
Sampler = Callable[..., Tensor]


def _quiet(step: int, x: Tensor, sigma: float, denoised: Tensor) -> None:
    pass


def euler(model: Model, x: Tensor, sigmas: Sequence[float], *, noise: Noise, callback: Callback = _quiet) -> Tensor:
    """Euler's method on the probability flow: Karras et al. (2022), algorithm 1 without its second half."""
    for i in range(len(sigmas) - 1):
        sigma, following = sigmas[i], sigmas[i + 1]
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        x = x + (x - denoised) * ((following - sigma) / sigma)
    return x


def euler_ancestral(
    model: Model, x: Tensor, sigmas: Sequence[float], *, noise: Noise, callback: Callback = _quiet, eta: float = 1.0
) -> Tensor:
    """Euler's step to a lower level, and fresh noise up again: DDPM's posterior (Ho et al. 2020; Song et al. 2021)."""
    for i in range(len(sigmas) - 1):
        sigma, following = sigmas[i], sigmas[i + 1]
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        down, up = ancestral_step(sigma, following, eta)
        x = x + (x - denoised) * ((down - sigma) / sigma)
        if following > 0 and up > 0:
            x = x + noise() * up
    return x


def heun(model: Model, x: Tensor, sigmas: Sequence[float], *, noise: Noise, callback: Callback = _quiet) -> Tensor:
    """Heun's second-order method: Karras et al. (2022), algorithm 1 without churn. Two model calls a step."""
    for i in range(len(sigmas) - 1):
        sigma, following = sigmas[i], sigmas[i + 1]
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        slope = (x - denoised) / sigma
        ahead = x + slope * (following - sigma)
        if following == 0:
            x = ahead
            continue
        slope_ahead = (ahead - model(ahead, following)) / following
        x = x + (slope + slope_ahead) * ((following - sigma) / 2)
    return x


def dpm_2(model: Model, x: Tensor, sigmas: Sequence[float], *, noise: Noise, callback: Callback = _quiet) -> Tensor:
    """DPM-Solver-2 (Lu et al. 2022): a midpoint in log sigma. Two model calls a step."""
    for i in range(len(sigmas) - 1):
        sigma, following = sigmas[i], sigmas[i + 1]
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        slope = (x - denoised) / sigma
        if following == 0:
            x = x + slope * (following - sigma)
            continue
        middle = math.sqrt(sigma * following)
        half = x + slope * (middle - sigma)
        x = x + (half - model(half, middle)) * ((following - sigma) / middle)
    return x


def dpmpp_2m(model: Model, x: Tensor, sigmas: Sequence[float], *, noise: Noise, callback: Callback = _quiet) -> Tensor:
    """DPM-Solver++(2M), multistep (Lu et al. 2022, arXiv 2211.01095). One model call a step."""
    previous: Tensor | None = None
    for i in range(len(sigmas) - 1):
        sigma, following = sigmas[i], sigmas[i + 1]
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        if following == 0:
            x = denoised  # the limit of the step below
            continue
        h = math.log(sigma / following)
        if previous is None:
            estimate = denoised
        else:
            ratio = math.log(sigmas[i - 1] / sigma) / h
            estimate = denoised * (1 + 1 / (2 * ratio)) - previous * (1 / (2 * ratio))
        x = x * (following / sigma) - estimate * math.expm1(-h)
        previous = denoised
    return x


def ancestral_step(sigma: float, following: float, eta: float = 1.0) -> tuple[float, float]:
    """``(down, up)``: step to ``down``, then add noise of ``up``, to be at ``following``."""
    if not eta:
        return following, 0.0
    variance = following**2 * (sigma**2 - following**2) / sigma**2
    up = min(following, eta * math.sqrt(max(variance, 0.0)))
    return math.sqrt(following**2 - up**2), up


SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm_2": dpm_2,
    "dpmpp_2m": dpmpp_2m,
}

#: These compute one step more and drop the sigma before the last: their last midpoint would be near 0.
DROP_PENULTIMATE = {"dpm_2"}
