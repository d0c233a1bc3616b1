"""One-step samplers of the probability flow: deterministic, each step from the last x alone."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from vortex_worker.executor.nodes.sampling.samplers.signature import Callback, Model, Noise, Sigmas, quiet, weighted


def euler(model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise | None = None, callback: Callback = quiet) -> Tensor:
    """Euler's method: Karras et al. (2022), algorithm 1 without its correction; DDIM (Song et al. 2021). Order 1."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        x = torch.lerp(denoised, x, following / sigma)
    return x


def heun(model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise | None = None, callback: Callback = quiet) -> Tensor:
    """Heun's method: Karras et al. (2022), algorithm 1. Order 2, two model calls a step."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        ahead = torch.lerp(denoised, x, following / sigma)
        if following == 0:
            x = ahead
            continue
        slope = (x - denoised) / sigma
        slope_ahead = (ahead - model(ahead, following)) / following
        x = x + (slope + slope_ahead) * ((following - sigma) / 2)
    return x


def heunpp2(
    model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise | None = None, callback: Callback = quiet
) -> Tensor:
    """Heun++ of two steps ahead, each slope weighted by its sigma. Order 1, three model calls a step.

    It has no paper: the rule is that of its author's sd-webui-samplers-scheduler. A slope at sigma weighs
    sigma over the first sigma, and over their number; the step's own has the rest.
    """
    top = sigmas[0] if sigmas else 0.0
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        ahead = torch.lerp(denoised, x, following / sigma)
        if i == len(sigmas) - 2:
            x = ahead
            continue
        slopes = [(x - denoised) / sigma, (ahead - model(ahead, following)) / following]
        levels = [following]
        if i < len(sigmas) - 3:
            farther = sigmas[i + 2]
            ahead = torch.add(ahead, slopes[1], alpha=farther - following)
            slopes.append((ahead - model(ahead, farther)) / farther)
            levels.append(farther)
        shares = [level / (top * len(slopes)) for level in levels]
        length = following - sigma
        weights = [length * (1 - sum(shares)), *(length * share for share in shares)]
        x = weighted((1.0, x), *zip(weights, slopes, strict=True))
    return x


def dpm_2(model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise | None = None, callback: Callback = quiet) -> Tensor:
    """DPM-Solver-2 (Lu et al. 2022): a midpoint in log sigma. Order 2, two model calls a step."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        if following == 0:
            x = denoised
            continue
        middle = math.sqrt(sigma * following)
        half = torch.lerp(denoised, x, middle / sigma)
        x = x + (half - model(half, middle)) * ((following - sigma) / middle)
    return x
