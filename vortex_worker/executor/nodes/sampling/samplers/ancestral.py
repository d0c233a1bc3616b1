"""Ancestral samplers: a deterministic step to below the next level, then fresh noise up to it.

``eta`` scales that noise: 1 is DDPM's posterior, 0 the deterministic sampler.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from vortex_worker.executor.nodes.sampling.samplers.signature import Callback, Model, Noise, Sigmas, quiet

#: ``(sigma, following, eta) → (down, up)``: step to ``down``, then add noise of ``up``, to be at ``following``.
Rule = Callable[[float, float, float], tuple[float, float]]


def levels(sigma: float, following: float, eta: float = 1.0) -> tuple[float, float]:
    """``(down, up)`` of a diffusion.

    Song et al. (2021, arXiv 2010.02502), equation 16 in the variance-exploding view.
    """
    up = min(following, eta * following * math.sqrt(max(1 - (following / sigma) ** 2, 0.0)))
    return math.sqrt(following**2 - up**2), up


def flow_levels(sigma: float, following: float, eta: float = 1.0) -> tuple[float, float]:
    """``(down, up)`` of a rectified flow, as ComfyUI has it: eta shortens the step in the flow's own time.

    Time is sigma/(1 + sigma) of the variance-exploding view, in which these sigmas are.
    """
    now, then = sigma / (1 + sigma), following / (1 + following)
    time = max(then * (1 + (then / now - 1) * eta), 0.0)
    down = time / (1 - time)
    return down, math.sqrt(max(following**2 - down**2, 0.0))


def euler_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise,
    callback: Callback = quiet,
    eta: float = 1.0,
    rule: Rule = levels,
) -> Tensor:
    """Euler's step and noise: DDPM (Ho et al. 2020), with DDIM's eta (Song et al. 2021)."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        down, up = rule(sigma, following, eta)
        x = torch.lerp(denoised, x, down / sigma)
        if following > 0:
            x = x + noise(sigma, following) * up
    return x


def dpm_2_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise,
    callback: Callback = quiet,
    eta: float = 1.0,
    rule: Rule = levels,
) -> Tensor:
    """DPM-Solver-2's step (Lu et al. 2022) and noise. Two model calls a step."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        down, up = rule(sigma, following, eta)
        if down == 0:
            x = denoised
            continue
        middle = math.sqrt(sigma * down)
        half = torch.lerp(denoised, x, middle / sigma)
        x = x + (half - model(half, middle)) * ((down - sigma) / middle)
        x = x + noise(sigma, following) * up
    return x


def dpmpp_2s_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise,
    callback: Callback = quiet,
    eta: float = 1.0,
    rule: Rule = levels,
) -> Tensor:
    """DPM-Solver++(2S)'s step (Lu et al. 2022, arXiv 2211.01095) and noise. Two model calls a step."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        down, up = rule(sigma, following, eta)
        if down == 0:
            x = denoised
        else:
            middle = math.sqrt(sigma * down)
            x = torch.lerp(model(torch.lerp(denoised, x, middle / sigma), middle), x, down / sigma)
        if following > 0:
            x = x + noise(sigma, following) * up
    return x


def lcm(model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise, callback: Callback = quiet) -> Tensor:
    """The estimate, noised anew at each level: multistep consistency sampling.

    Song et al. (2023, arXiv 2303.01469), algorithm 1; Luo et al. (2023, arXiv 2310.04378). For consistency
    models, whose estimate is a sample already; of others it draws blurred pictures.
    """
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        x = denoised + noise(sigma, following) * following if following > 0 else denoised
    return x
