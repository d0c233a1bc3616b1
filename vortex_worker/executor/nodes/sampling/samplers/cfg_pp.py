"""CFG++ samplers: guided estimates, renoised with the noise that the model sees without the prompt.

Chung et al. (2024), "CFG++: Manifold-constrained Classifier Free Guidance" (arXiv 2406.08070), algorithm 1.
Their model gives the pair (guided, unguided). Where both are the same, each is its plain namesake.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from vortex_worker.executor.nodes.sampling.samplers.ancestral import levels
from vortex_worker.executor.nodes.sampling.samplers.signature import (
    Callback,
    Noise,
    PairModel,
    Sigmas,
    quiet,
    weighted,
)


def euler_cfg_pp(
    model: PairModel, x: Tensor, sigmas: Sigmas, *, noise: Noise | None = None, callback: Callback = quiet
) -> Tensor:
    """Euler's step. Order 1."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised, unguided = model(x, sigma)
        callback(i, x, sigma, denoised)
        x = torch.add(denoised, x - unguided, alpha=following / sigma)
    return x


def euler_ancestral_cfg_pp(
    model: PairModel, x: Tensor, sigmas: Sigmas, *, noise: Noise, callback: Callback = quiet, eta: float = 1.0
) -> Tensor:
    """Euler's step, and noise."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised, unguided = model(x, sigma)
        callback(i, x, sigma, denoised)
        down, up = levels(sigma, following, eta)
        x = torch.add(denoised, x - unguided, alpha=down / sigma)
        if following > 0:
            x = x + noise(sigma, following) * up
    return x


def dpmpp_2s_ancestral_cfg_pp(
    model: PairModel, x: Tensor, sigmas: Sigmas, *, noise: Noise, callback: Callback = quiet, eta: float = 1.0
) -> Tensor:
    """DPM-Solver++(2S)'s step (Lu et al. 2022, arXiv 2211.01095), and noise. Two model calls a step."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised, unguided = model(x, sigma)
        callback(i, x, sigma, denoised)
        down, up = levels(sigma, following, eta)
        if down == 0:
            x = denoised
        else:
            middle = math.sqrt(sigma * down)
            moved = x + (denoised - unguided)
            between, _ = model(torch.lerp(denoised, moved, middle / sigma), middle)
            x = torch.lerp(between, moved, down / sigma)
        if following > 0:
            x = x + noise(sigma, following) * up
    return x


def dpmpp_2m_cfg_pp(
    model: PairModel, x: Tensor, sigmas: Sigmas, *, noise: Noise | None = None, callback: Callback = quiet
) -> Tensor:
    """DPM-Solver++(2M)'s step (Lu et al. 2022, arXiv 2211.01095), from the last unguided estimate to the guided."""
    previous: Tensor | None = None
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised, unguided = model(x, sigma)
        callback(i, x, sigma, denoised)
        kept = following / sigma
        ahead = weighted((kept, x), (1.0, denoised), (-kept, unguided))
        if previous is not None and following > 0:
            half = math.log(sigma / following) / (2 * math.log(sigmas[i - 1] / sigma))
            ahead.add_(denoised - previous, alpha=(1 - kept) * half)
        x = ahead
        previous = unguided
    return x
