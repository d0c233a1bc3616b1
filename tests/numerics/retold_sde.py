"""Samplers of the stochastic equation told again: every weight and every spread by numerical integration.

With l = −log sigma, x(l) is what is left of x, plus the integral of rate · e^(−rate (end − l)) · estimate(l), plus
noise of spread sigma · √(1 − e^(−2 · strength · h)), where rate = 1 + strength. As in ``retold``, each gives x step by
step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from retold import Noise, Pair
from scipy.integrate import quad
from torch import Tensor

EXACT = {"epsabs": 1e-14, "epsrel": 1e-13}


def moved(x: Tensor, points: list[tuple[float, Tensor]], sigma: float, following: float, strength: float) -> Tensor:
    """Without noise, and the estimate a polynomial through those at ``points``, (sigma, estimate)."""
    start, end, rate = -math.log(sigma), -math.log(following), 1 + strength
    degrees = range(len(points))
    sums = [
        quad(lambda v, n=n: rate * math.exp(rate * (v - end)) * (v - end) ** n, start, end, **EXACT)[0]  # type: ignore[misc]
        for n in degrees
    ]
    powers = np.array([[(-math.log(level) - end) ** n for level, _ in points] for n in degrees])
    weights = np.linalg.solve(powers, np.array(sums)).tolist()
    out: Any = math.exp(-rate * (end - start)) * x
    for weight, (_, estimate) in zip(weights, points, strict=True):
        out = out + weight * estimate
    return out


def spread(sigma: float, following: float, at: float, strength: float) -> float:
    """The standard deviation, at level ``at``, of noise that came in between two levels."""
    rate, end = 2 * strength, -math.log(at)
    found = quad(lambda v: rate * math.exp(rate * (v - end)), -math.log(sigma), -math.log(following), **EXACT)[0]
    return at * math.sqrt(found)


def staged(
    model: Pair, x: Tensor, sigmas: list[float], noise: Noise, places: list[float], *, eta: float, halves: bool = False
) -> Iterator[Tensor]:
    """SEEDS: stages at ``places`` of the way in log sigma, each by a line through the first estimate and the latest.

    Args:
        halves: at the end not by a line, but by the estimate half way as if it were the step's own (phi_1).
    """
    for sigma, following in pairwise(sigmas):
        first = model(x, sigma)[0]
        if following == 0:
            yield first
            return
        levels = [sigma * (following / sigma) ** place for place in places]
        ends = levels if levels[-1] == following else [*levels, following]
        draws, points = list[tuple[float, float, Tensor]](), [(sigma, first)]
        if places[-1] == 1:
            ends = [following, following]
        before = sigma
        for n, level in enumerate(ends):
            if eta:
                draws.append((before, level, noise(before, level)))
            last = n == len(ends) - 1
            used = [(sigma, points[-1][1])] if last and halves else points
            ahead = moved(x, used, sigma, level, eta)
            for start, end, drawn in draws:
                ahead = ahead + spread(start, end, level, eta) * drawn
            if last:
                x = ahead
            else:
                points = [points[0], (level, model(ahead, level)[0])]
            before = level
        yield x


def er_sde(model: Pair, x: Tensor, sigmas: list[float], noise: Noise) -> Iterator[Tensor]:
    """Cui et al. (2023), algorithm 3: Taylor's series of the estimate in sigma, to the second derivative."""

    def scale(level: float) -> float:
        return level * (math.exp(level**0.3) + 10)

    known: list[Tensor] = []
    slopes: list[Tensor] = []
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        known.append(model(x, sigma)[0])
        if following == 0:
            yield known[-1]
            return
        left = scale(following) / scale(sigma)
        x = left * x + (1 - left) * known[-1]
        for n in (1, 2):
            if i < n:
                continue
            if n == 1:
                slopes.append((known[-1] - known[-2]) / (sigma - sigmas[i - 1]))
                derivative = slopes[-1]
            else:
                derivative = (slopes[-1] - slopes[-2]) * 2 / (sigma - sigmas[i - 2])
            # Of the n-th term's own integral, by parts: what it is at the end, and what it was on the way.
            on_the_way = quad(lambda u, n=n: (u - sigma) ** (n - 1) / scale(u), following, sigma, **EXACT)[0]  # type: ignore[misc]  # noqa: B023
            x = x + ((following - sigma) ** n / n + on_the_way * scale(following)) * derivative
        x = x + math.sqrt(following**2 - (left * sigma) ** 2) * noise(sigma, following)
        yield x


def sa_solver(model: Pair, x: Tensor, sigmas: list[float], noise: Noise, *, again: bool) -> Iterator[Tensor]:
    """Xue et al. (2023), algorithm 1: three estimates predict, four correct, and fewer towards 0."""
    known: list[tuple[float, Tensor]] = []
    guess, drawn = x, x
    ends_at_0, count = sigmas[-1] == 0, len(sigmas) - 1
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        known.append((sigma, model(guess, sigma)[0]))
        corrects = i > 0 and (again or following > 0)
        if corrects:
            used = min(4, count - i if ends_at_0 else 4)
            x = moved(x, known[-used:], sigmas[i - 1], sigma, 1.0) + spread(sigmas[i - 1], sigma, sigma, 1.0) * drawn
            if again:
                known[-1] = (sigma, model(x, sigma)[0])
        else:
            x = guess
        if following == 0:
            yield known[-1][1]
            return
        used = min(3, count - 1 - i if ends_at_0 else 3)
        drawn = noise(sigma, following)
        guess = moved(x, known[-used:], sigma, following, 1.0) + spread(sigma, following, following, 1.0) * drawn
        yield guess


TOLD: dict[str, tuple[Callable[..., Iterator[Tensor]], dict[str, Any]]] = {
    "seeds_2": (staged, {"places": [1 / 2], "eta": 1.0, "halves": True}),
    "seeds_3": (staged, {"places": [1 / 3, 2 / 3], "eta": 1.0}),
    "exp_heun_2_x0": (staged, {"places": [1.0], "eta": 0.0}),
    "exp_heun_2_x0_sde": (staged, {"places": [1.0], "eta": 1.0}),
    "er_sde": (er_sde, {}),
    "sa_solver": (sa_solver, {"again": False}),
    "sa_solver_pece": (sa_solver, {"again": True}),
}
