"""DPM-Solver++ of the reverse-time stochastic equation: exact in x and in the noise, approximate in the estimate.

Lu et al. (2022, arXiv 2211.01095), and its multistep forms by K. Crowson (k-diffusion). ``eta`` scales the noise:
1 is the reverse-time equation, 0 its probability flow. Noise wants to be increments of one Brownian path.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from vortex_worker.executor.nodes.sampling.samplers.ancestral import levels
from vortex_worker.executor.nodes.sampling.samplers.exponential import phi
from vortex_worker.executor.nodes.sampling.samplers.signature import Callback, Model, Noise, Sigmas, quiet, weighted


def dpmpp_sde(
    model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise, callback: Callback = quiet, eta: float = 1.0
) -> Tensor:
    """DPM-Solver++(2S) with noise at the midpoint too. Two model calls a step."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        if following == 0:
            x = denoised
            continue
        middle = math.sqrt(sigma * following)
        down, up = levels(sigma, middle, eta)
        half = torch.lerp(denoised, x, down / sigma).add_(noise(sigma, middle), alpha=up)
        between = model(half, middle)
        down, up = levels(sigma, following, eta)
        x = torch.lerp(between, x, down / sigma).add_(noise(sigma, following), alpha=up)
    return x


def dpmpp_2m_sde(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise,
    callback: Callback = quiet,
    eta: float = 1.0,
    heun: bool = False,
) -> Tensor:
    """DPM-Solver++(2M) with noise.

    Args:
        heun: weigh the estimate's slope as the exponential integral has it, not as its midpoint.
    """
    previous: Tensor | None = None
    last = 0.0  # the length of the step before, in log sigma
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        if following == 0:
            x = denoised
            continue
        step = math.log(sigma / following)
        z = -step * (1 + eta)
        x = weighted((following / sigma * math.exp(-eta * step), x), (-math.expm1(z), denoised))
        if previous is not None:
            share = -z * phi(2, z) if heun else -math.expm1(z) / 2
            x.add_(denoised - previous, alpha=share * step / last)
        if eta:
            x.add_(noise(sigma, following), alpha=following * math.sqrt(-math.expm1(-2 * eta * step)))
        previous, last = denoised, step
    return x


def dpmpp_2m_sde_heun(
    model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise, callback: Callback = quiet, eta: float = 1.0
) -> Tensor:
    """DPM-Solver++(2M) with noise, and the slope's weight that of the exponential integral."""
    return dpmpp_2m_sde(model, x, sigmas, noise=noise, callback=callback, eta=eta, heun=True)


def dpmpp_3m_sde(
    model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise, callback: Callback = quiet, eta: float = 1.0
) -> Tensor:
    """DPM-Solver++(3M) with noise: a parabola through the last three estimates."""
    known: list[Tensor] = []  # earlier estimates, the latest first
    steps: list[float] = []  # the lengths of the steps from each to the next, in log sigma
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        if following == 0:
            x = denoised
            continue
        step = math.log(sigma / following)
        z = -step * (1 + eta)
        x = weighted((math.exp(z), x), (-math.expm1(z), denoised))
        ratios = [length / step for length in steps]
        if known:
            slope, share = (denoised - known[0]) / ratios[0], -z * phi(2, z)
            x.add_(slope, alpha=share)
            if len(known) > 1:
                bend = (slope - (known[0] - known[1]) / ratios[1]) / (ratios[0] + ratios[1])
                x.add_(bend, alpha=share * ratios[0] - z * phi(3, z))
        if eta:
            x.add_(noise(sigma, following), alpha=following * math.sqrt(-math.expm1(-2 * eta * step)))
        known, steps = [denoised, *known[:1]], [step, *steps[:1]]
    return x
