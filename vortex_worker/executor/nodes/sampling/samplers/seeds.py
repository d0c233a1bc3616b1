"""SEEDS: exponential one-step solvers of the reverse-time stochastic equation, with its noise at every stage.

Gonzalez et al. (2023, arXiv 2305.14267), for estimates of the data. ``eta`` scales the noise: 0 is the probability
flow, solved by DPM-Solver++'s single steps.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from vortex_worker.executor.nodes.sampling.samplers.exponential import phi
from vortex_worker.executor.nodes.sampling.samplers.signature import Callback, Model, Noise, Sigmas, quiet, weighted


def seeds_2(
    model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise, callback: Callback = quiet, eta: float = 1.0
) -> Tensor:
    """Two stages, the second half way. Order 2 without noise; two model calls a step."""
    return _two_stages(model, x, sigmas, noise, callback, eta, share=1 / 2, exact=False)


def exp_heun_2_x0(
    model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise | None = None, callback: Callback = quiet
) -> Tensor:
    """Heun's method for the exponential integral: two stages, the second at the end. Order 2."""
    return _two_stages(model, x, sigmas, noise, callback, 0.0, share=1.0, exact=True)


def exp_heun_2_x0_sde(
    model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise, callback: Callback = quiet, eta: float = 1.0
) -> Tensor:
    """The same of the stochastic equation."""
    return _two_stages(model, x, sigmas, noise, callback, eta, share=1.0, exact=True)


def _two_stages(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise | None,
    callback: Callback,
    eta: float,
    *,
    share: float,
    exact: bool,
) -> Tensor:
    """``share``: of the way, in log sigma, where the second stage is. ``exact``: weights of phi_2, not of phi_1."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        if following == 0:
            x = denoised
            continue
        step = math.log(sigma / following)
        middle = following if share == 1 else sigma * math.exp(-share * step)
        ahead = weighted((_kept(sigma, middle, eta), x), (-math.expm1(-share * step * (1 + eta)), denoised))
        if noise and eta:
            drawn = noise(sigma, middle)
            ahead.add_(drawn, alpha=_spread(sigma, middle, eta))
        between = model(ahead, middle)
        z = -step * (1 + eta)
        late = -z * phi(2, z) / share if exact else -math.expm1(z) / (2 * share)
        x = weighted((_kept(sigma, following, eta), x), (-math.expm1(z) - late, denoised), (late, between))
        if noise and eta:
            x.add_(drawn, alpha=_spread(sigma, middle, eta) * _kept(middle, following, eta))
            # At the end already there is none to add, but ComfyUI draws it: a seed should give the same picture.
            x.add_(noise(middle, following), alpha=_spread(middle, following, eta))
    return x


def seeds_3(
    model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise, callback: Callback = quiet, eta: float = 1.0
) -> Tensor:
    """Three stages, at 1/3 and 2/3. Order 3 without noise; three model calls a step."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        if following == 0:
            x = denoised
            continue
        step = math.log(sigma / following)
        z = -step * (1 + eta)
        early, late = sigma * math.exp(-step / 3), sigma * math.exp(-step * 2 / 3)

        ahead = weighted((_kept(sigma, early, eta), x), (-math.expm1(z / 3), denoised))
        if eta:
            path = noise(sigma, early) * _spread(sigma, early, eta)
            ahead.add_(path)
        second = model(ahead, early)

        bent = -z * 2 / 3 * phi(2, z * 2 / 3) * 2
        ahead = weighted((_kept(sigma, late, eta), x), (-math.expm1(z * 2 / 3) - bent, denoised), (bent, second))
        if eta:
            path.mul_(_kept(early, late, eta)).add_(noise(early, late), alpha=_spread(early, late, eta))
            ahead.add_(path)
        third = model(ahead, late)

        bent = -z * phi(2, z) * 3 / 2
        x = weighted((_kept(sigma, following, eta), x), (-math.expm1(z) - bent, denoised), (bent, third))
        if eta:
            x.add_(path, alpha=_kept(late, following, eta))
            x.add_(noise(late, following), alpha=_spread(late, following, eta))
    return x


def _kept(sigma: float, following: float, eta: float) -> float:
    """What is left at ``following`` of what x was at ``sigma``, estimates and new noise apart."""
    return math.pow(following / sigma, 1 + eta)


def _spread(sigma: float, following: float, eta: float) -> float:
    """The standard deviation of the noise that a step adds."""
    return following * math.sqrt(max(1 - math.pow(following / sigma, 2 * eta), 0.0))
