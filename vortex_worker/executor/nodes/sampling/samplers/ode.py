"""One-step samplers of the probability flow: deterministic, each step from the last x alone."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from vortex_worker.executor.nodes.sampling.samplers.signature import Callback, Model, Noise, Sigmas, quiet


def euler(model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise | None = None, callback: Callback = quiet) -> Tensor:
    """Euler's method: Karras et al. (2022), algorithm 1 without its correction. Order 1."""
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
