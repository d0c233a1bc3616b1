"""Adams and Bashforth's multistep methods on the slope (x − denoised) / sigma, at one model call a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from vortex_worker.executor.nodes.sampling.samplers.exponential import integrate, lagrange
from vortex_worker.executor.nodes.sampling.samplers.multistep import lms
from vortex_worker.executor.nodes.sampling.samplers.signature import (
    Callback,
    Model,
    Noise,
    Sigmas,
    quiet,
    weighted,
)

#: Weights of the latest slope, the one before, … of methods of order 1 to 4, for steps of one length.
_EVEN = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def ipndm(model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise | None = None, callback: Callback = quiet) -> Tensor:
    """iPNDM: Zhang and Chen (2022, arXiv 2204.13902), appendix; Liu et al. (2022, arXiv 2202.09778).

    Its weights are those for even steps, whatever the steps are. Order 2 where their lengths change.
    """
    slopes: list[Tensor] = []  # the latest first
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        slopes = [(x - denoised) / sigma, *slopes[:3]]
        weights = [w * (following - sigma) for w in _EVEN[len(slopes) - 1]]
        x = weighted((1.0, x), *zip(weights, slopes, strict=True))
    return x


def ipndm_v(
    model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise | None = None, callback: Callback = quiet
) -> Tensor:
    """iPNDM with the weights of the steps that there are (Hairer et al., "Solving ODEs I", III.5). Order 4.

    Those weights are ``lms``'s. ComfyUI's differ from them on uneven steps, and lose order where their lengths change.
    """
    return lms(model, x, sigmas, noise=noise, callback=callback, order=4)


def training_time(sigma: float) -> float:
    """The time at which a diffusion with betas linear from 0.002 to 80 in sigma has that sigma, 0 to 1.

    Song et al. (2021, arXiv 2011.13456), equation 33, with Karras et al. (2022)'s ends.
    """
    low, high, first = math.log1p(0.002**2), math.log1p(80.0**2), 1e-3
    slope = 2 * (low / first - high) / (first - 1)
    start = high - slope / 2
    return (math.sqrt(start**2 + 2 * slope * math.log1p(sigma**2)) - start) / slope


def deis(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise | None = None,
    callback: Callback = quiet,
    order: int = 3,
    clock: Callable[[float], float] = training_time,
) -> Tensor:
    """tAB-DEIS (Zhang and Chen 2022, arXiv 2204.13902): slopes along a polynomial in time. Order 3.

    Args:
        clock: the time at a sigma. The logarithm makes it the paper's variant in log rho.
    """
    slopes: list[Tensor] = []  # the latest first
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        slopes = [(x - denoised) / sigma, *slopes[: order - 1]]
        if following == 0:
            x = denoised
            continue
        times = [clock(level) for level in sigmas[i + 1 - len(slopes) : i + 1][::-1]]
        x = weighted((1.0, x), *zip(_weights(clock, times, sigma, following), slopes, strict=True))
    return x


def _weights(clock: Callable[[float], float], times: list[float], sigma: float, following: float) -> list[float]:
    """The integral over sigma of each Lagrange polynomial in time through ``times``."""

    def weight(which: int) -> float:  # along log sigma, in which everything is smooth
        def at(log: float) -> float:
            return lagrange(times, which, clock(math.exp(log))) * math.exp(log)

        return integrate(at, math.log(sigma), math.log(following))

    return [weight(which) for which in range(len(times))]
