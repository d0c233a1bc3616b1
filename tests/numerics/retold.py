"""Samplers told again in other words, for those that no package has: as their sources write them, step by step.

Each takes ``model(x, sigma) → (guided, unguided)`` and gives x after every step. Where the sampler works in the
variance-exploding view, its telling works in the preserving one, or by numerical integration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from scipy.integrate import quad
from torch import Tensor

Pair = Callable[[Tensor, float], tuple[Tensor, Tensor]]
Noise = Callable[[float, float], Tensor]


def kept(sigma: float) -> float:
    """DDPM's alpha-bar, by our sigma."""
    return 1 / (1 + sigma**2)


def cfg_pp(model: Pair, x: Tensor, sigmas: list[float], noise: Noise, eta: float) -> Iterator[Tensor]:
    """Chung et al. (2024), algorithm 1, with DDIM's eta (Song et al. 2021, equations 12 and 16)."""
    for sigma, following in pairwise(sigmas):
        now, then = kept(sigma), kept(following)
        z = x * math.sqrt(now)
        guided, unguided = model(x, sigma)
        seen = (z - math.sqrt(now) * unguided) / math.sqrt(1 - now)
        spread = eta * math.sqrt((1 - then) / (1 - now) * (1 - now / then))
        z = math.sqrt(then) * guided + math.sqrt(max(1 - then - spread**2, 0)) * seen
        if following:
            z = z + spread * noise(sigma, following)
        x = z / math.sqrt(then)
        yield x


def below(sigma: float, following: float, eta: float) -> tuple[float, float]:
    """Down and up of an ancestral step."""
    up = eta * math.sqrt(following**2 * (sigma**2 - following**2)) / sigma
    return math.sqrt(following**2 - up**2), up


def dpmpp_2s_ancestral_cfg_pp(model: Pair, x: Tensor, sigmas: list[float], noise: Noise) -> Iterator[Tensor]:
    """DPM-Solver++(2S) of x + guided − unguided."""
    for sigma, following in pairwise(sigmas):
        guided, unguided = model(x, sigma)
        down, up = below(sigma, following, 1.0)
        if down == 0:
            x = guided
        else:
            h = math.log(sigma) - math.log(down)
            moved = x + guided - unguided
            middle = math.exp(math.log(sigma) - h / 2)
            second = model(math.exp(-h / 2) * moved - math.expm1(-h / 2) * guided, middle)[0]
            x = math.exp(-h) * moved - math.expm1(-h) * second + up * noise(sigma, following)
        yield x


def dpmpp_2m_cfg_pp(model: Pair, x: Tensor, sigmas: list[float], noise: Noise) -> Iterator[Tensor]:
    """DPM-Solver++(2M), where what is subtracted is unguided."""
    last: Any = None
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        guided, unguided = model(x, sigma)
        h = math.log(sigma / following) if following else math.inf
        x = guided + math.exp(-h) * (x - unguided)
        if last is not None and following:
            r = math.log(sigmas[i - 1] / sigma) / h
            x = x - math.expm1(-h) / (2 * r) * (guided - last)
        last = unguided
        yield x


def res_multistep(model: Pair, x: Tensor, sigmas: list[float], noise: Noise, eta: float) -> Iterator[Tensor]:
    """Two estimates, weighted so that an estimate linear in log sigma is integrated exactly (their equation 20)."""
    last: Any = None
    reached = 0.0
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        guided, unguided = model(x, sigma)
        down, up = below(sigma, following, eta)
        moved = x + guided - unguided
        if down == 0 or last is None:
            x = guided + (x - unguided) * down / sigma
        else:
            h = math.log(sigma / down)
            apart = math.log(reached / sigmas[i - 1])  # from the earlier estimate to where its step went: below 0
            late = quad(lambda u, h=h: math.exp(u - h) * u, 0, h)[0] / apart
            x = math.exp(-h) * moved + (1 - math.exp(-h) - late) * unguided + late * last
        if following and eta:
            x = x + up * noise(sigma, following)
        last, reached = unguided, down
        yield x


def gradient_estimation(model: Pair, x: Tensor, sigmas: list[float], noise: Noise) -> Iterator[Tensor]:
    """Permenter and Yuan's algorithm 2, gamma 2: the noise twice, less the noise before."""
    before: Any = None
    for sigma, following in pairwise(sigmas):
        guided, unguided = model(x, sigma)
        seen = (x - unguided) / sigma
        x = guided + following * seen
        if before is not None and following:
            x = x + (seen - before) * (following - sigma)
        before = seen
        yield x


def heunpp2(model: Pair, x: Tensor, sigmas: list[float], noise: Noise) -> Iterator[Tensor]:
    """Slopes at one, two or three levels, as many as are left, of weights in proportion to sigma."""

    def slope(x: Tensor, sigma: float) -> Tensor:
        return (x - model(x, sigma)[0]) / sigma

    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        slopes, levels, ahead = [slope(x, sigma)], [sigma], x
        for further in sigmas[i + 1 : min(i + 3, len(sigmas) - 1)]:
            ahead = ahead + slopes[-1] * (further - levels[-1])
            slopes.append(slope(ahead, further))
            levels.append(further)
        weights = [level / (len(levels) * sigmas[0]) for level in levels[1:]]
        weights = [1 - sum(weights), *weights]
        x = x + sum(w * s for w, s in zip(weights, slopes, strict=True)) * (following - sigma)
        yield x


TOLD: dict[str, tuple[Callable[..., Iterator[Tensor]], dict[str, float]]] = {
    "euler_cfg_pp": (cfg_pp, {"eta": 0.0}),
    "euler_ancestral_cfg_pp": (cfg_pp, {"eta": 1.0}),
    "dpmpp_2s_ancestral_cfg_pp": (dpmpp_2s_ancestral_cfg_pp, {}),
    "dpmpp_2m_cfg_pp": (dpmpp_2m_cfg_pp, {}),
    "res_multistep": (res_multistep, {"eta": 0.0}),
    "res_multistep_ancestral": (res_multistep, {"eta": 1.0}),
    "res_multistep_cfg_pp": (res_multistep, {"eta": 0.0}),
    "res_multistep_ancestral_cfg_pp": (res_multistep, {"eta": 1.0}),
    "gradient_estimation": (gradient_estimation, {}),
    "gradient_estimation_cfg_pp": (gradient_estimation, {}),
    "heunpp2": (heunpp2, {}),
}
