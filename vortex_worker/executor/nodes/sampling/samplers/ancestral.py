"""Ancestral samplers: a deterministic step to below the next level, then fresh noise up to it.

``eta`` scales that noise: 1 is DDPM's posterior, 0 the deterministic sampler.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from vortex_worker.executor.nodes.sampling.samplers.signature import Callback, Model, Noise, Sigmas, quiet


def levels(sigma: float, following: float, eta: float = 1.0) -> tuple[float, float]:
    """``(down, up)``: step to ``down``, then add noise of ``up``, to be at ``following``.

    Song et al. (2021, arXiv 2010.02502), equation 16 in the variance-exploding view.
    """
    up = min(following, eta * following * math.sqrt(max(1 - (following / sigma) ** 2, 0.0)))
    return math.sqrt(following**2 - up**2), up


def euler_ancestral(
    model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise, callback: Callback = quiet, eta: float = 1.0
) -> Tensor:
    """Euler's step and noise: DDPM (Ho et al. 2020), with DDIM's eta (Song et al. 2021)."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        down, up = levels(sigma, following, eta)
        x = torch.lerp(denoised, x, down / sigma)
        if following > 0:
            x = x + noise(sigma, following) * up
    return x


def dpm_2_ancestral(
    model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise, callback: Callback = quiet, eta: float = 1.0
) -> Tensor:
    """DPM-Solver-2's step (Lu et al. 2022) and noise. Two model calls a step."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        down, up = levels(sigma, following, eta)
        if down == 0:
            x = denoised
            continue
        middle = math.sqrt(sigma * down)
        half = torch.lerp(denoised, x, middle / sigma)
        x = x + (half - model(half, middle)) * ((down - sigma) / middle)
        x = x + noise(sigma, following) * up
    return x


def dpmpp_2s_ancestral(
    model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise, callback: Callback = quiet, eta: float = 1.0
) -> Tensor:
    """DPM-Solver++(2S)'s step (Lu et al. 2022, arXiv 2211.01095) and noise. Two model calls a step."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        down, up = levels(sigma, following, eta)
        if down == 0:
            x = denoised
        else:
            middle = math.sqrt(sigma * down)
            x = torch.lerp(model(torch.lerp(denoised, x, middle / sigma), middle), x, down / sigma)
        if following > 0:
            x = x + noise(sigma, following) * up
    return x
