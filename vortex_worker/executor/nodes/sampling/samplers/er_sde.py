"""ER-SDE-Solver: the reverse-time stochastic equation with a noise level of choice.

Its three stages are a Taylor series of the estimate, taken with backward differences as they are: order 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from vortex_worker.executor.nodes.sampling.samplers.exponential import integrate
from vortex_worker.executor.nodes.sampling.samplers.signature import Callback, Model, Noise, Sigmas, quiet, weighted


def noise_scale(sigma: float) -> float:
    """The paper's ER-SDE 5: much noise at high levels, little near the data."""
    return sigma * (math.exp(sigma**0.3) + 10)


def er_sde(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise,
    callback: Callback = quiet,
    scale: Callable[[float], float] = noise_scale,
) -> Tensor:
    """ER-SDE-Solver-3: Cui et al. (2023, arXiv 2309.06169), algorithm 3 in the variance-exploding view.

    Args:
        scale: the noise level by sigma; sigma itself makes it the probability flow, without noise.
    """
    estimate: Tensor | None = None  # of the step before, and its slope in sigma
    slope: Tensor | None = None
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        if following == 0:
            x = denoised
            continue
        kept = scale(following) / scale(sigma)
        x = weighted((kept, x), (1 - kept, denoised))
        if estimate is not None:
            step = following - sigma
            first = _integral(scale, sigma, following, 0)
            slope, before = (denoised - estimate) / (sigma - sigmas[i - 1]), slope
            x.add_(slope, alpha=step + first * scale(following))
            if before is not None:
                bend = (slope - before) / ((sigma - sigmas[i - 2]) / 2)
                second = _integral(scale, sigma, following, 1)
                x.add_(bend, alpha=step**2 / 2 + second * scale(following))
        spread = following**2 - (sigma * kept) ** 2
        if spread > 1e-12 * following**2:
            x.add_(noise(sigma, following), alpha=math.sqrt(spread))
        estimate = denoised
    return x


def _integral(scale: Callable[[float], float], sigma: float, following: float, power: int) -> float:
    """Of (level − sigma)^power / scale(level), from ``following`` to ``sigma``."""

    def at(log: float) -> float:  # along log sigma, in which it is smooth
        level = math.exp(log)
        return level * (level - sigma) ** power / scale(level)

    return integrate(at, math.log(following), math.log(sigma))
