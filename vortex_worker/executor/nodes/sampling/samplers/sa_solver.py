"""SA-Solver: a stochastic Adams method, predictor and corrector.

Xue et al. (2023, arXiv 2309.05019), algorithm 1 for estimates of the data, in the variance-exploding view: time is
−log sigma. ``tau`` says at which levels the equation has noise and how much; 0 is the probability flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from vortex_worker.executor.nodes.sampling.samplers.exponential import integrate, lagrange
from vortex_worker.executor.nodes.sampling.samplers.signature import Callback, Model, Noise, Sigmas, quiet, weighted


def always(sigma: float) -> float:
    """As much noise as the reverse-time equation of a diffusion has, at every level."""
    return 1.0


def sa_solver(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise,
    callback: Callback = quiet,
    tau: Callable[[float], float] = always,
    predictor: int = 3,
    corrector: int = 4,
) -> Tensor:
    """Predict, evaluate, correct: one model call a step. Order 4 without noise.

    Args:
        predictor, corrector: how many estimates each uses.
    """
    return _adams(model, x, sigmas, noise, callback, tau, predictor, corrector, evaluate_again=False)


def sa_solver_pece(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise,
    callback: Callback = quiet,
    tau: Callable[[float], float] = always,
) -> Tensor:
    """Predict, evaluate, correct, evaluate: two model calls a step. Order 4 without noise."""
    return _adams(model, x, sigmas, noise, callback, tau, 3, 4, evaluate_again=True)


def _adams(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    noise: Noise,
    callback: Callback,
    tau: Callable[[float], float],
    predictor: int,
    corrector: int,
    *,
    evaluate_again: bool,
) -> Tensor:
    known: list[Tensor] = []  # estimates, the latest first
    predicted, strength, added = x, 0.0, None
    # Towards 0 the steps in log sigma get long: the last estimates are used alone.
    left = len(sigmas) - 2 if sigmas and sigmas[-1] == 0 else len(sigmas) + corrector
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(predicted, sigma)
        callback(i, predicted, sigma, denoised)
        known = [denoised, *known[: max(predictor, corrector) - 1]]
        used = min(corrector, len(known), left - i + 1) if i and (following > 0 or evaluate_again) else 0
        if used:
            before = sigmas[i - 1]
            weights = shares(sigmas[i + 1 - used : i + 1][::-1], before, sigma, strength)
            x = weighted((_kept(before, sigma, strength), x), *zip(weights, known, strict=False))
            if added is not None:
                x.add_(added)
            if evaluate_again:
                denoised = known[0] = model(x, sigma)
        else:
            x = predicted
        if following == 0:
            predicted = denoised
            continue
        strength = tau(following)
        used = min(predictor, len(known), max(left - i, 1))
        weights = shares(sigmas[i + 1 - used : i + 1][::-1], sigma, following, strength)
        predicted = weighted((_kept(sigma, following, strength), x), *zip(weights, known, strict=False))
        added = None
        if strength:
            spread = math.sqrt(1 - (following / sigma) ** (2 * strength**2))
            added = noise(sigma, following) * (following * spread)
            predicted.add_(added)
    return predicted


def _kept(sigma: float, following: float, strength: float) -> float:
    """What is left of x when nothing is estimated."""
    return math.pow(following / sigma, 1 + strength**2)


def shares(levels: Sequence[float], sigma: float, following: float, strength: float) -> list[float]:
    """Equations 15 and 18: what the estimate at each level counts for, along a polynomial through all."""
    rate, end = 1 + strength**2, -math.log(following)
    times = [-math.log(level) for level in levels]

    def share(which: int) -> float:
        def at(time: float) -> float:
            return rate * math.exp(rate * (time - end)) * lagrange(times, which, time)

        return integrate(at, -math.log(sigma), end)

    return [share(which) for which in range(len(times))]
