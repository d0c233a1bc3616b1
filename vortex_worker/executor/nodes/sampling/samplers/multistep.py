"""Multistep samplers: higher order from the estimates of earlier steps, at one model call a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from vortex_worker.executor.nodes.sampling.samplers.signature import Callback, Model, Noise, Sigmas, quiet


def dpmpp_2m(
    model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise | None = None, callback: Callback = quiet
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095). Order 2."""
    previous: Tensor | None = None
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        if previous is None or following == 0:
            estimate = denoised
        else:
            # The estimate half way to `following`, along a line through the last two, in log sigma.
            half = math.log(sigma / following) / (2 * math.log(sigmas[i - 1] / sigma))
            estimate = torch.lerp(previous, denoised, 1 + half)
        x = torch.lerp(estimate, x, following / sigma)
        previous = denoised
    return x


def lms(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise | None = None,
    callback: Callback = quiet,
    order: int = 4,
) -> Tensor:
    """Adams and Bashforth's linear multistep for uneven steps. Order ``order``, after a start of lower order."""
    slopes: list[Tensor] = []  # the latest first
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        slopes = [(x - denoised) / sigma, *slopes[: order - 1]]
        nodes = sigmas[i + 1 - len(slopes) : i + 1][::-1]
        for slope, weight in zip(slopes, integrals(nodes, sigma, following), strict=True):
            x = torch.add(x, slope, alpha=weight)
    return x


def integrals(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """The integral, from ``start`` to ``end``, of each Lagrange polynomial through ``nodes``."""
    found = []
    for j, own in enumerate(nodes):
        polynomial = [1.0]  # coefficients by rising power of (sigma - start)
        for other in (*nodes[:j], *nodes[j + 1 :]):
            root, scale = other - start, 1 / (own - other)
            shifted, kept = [0.0, *polynomial], [*polynomial, 0.0]
            polynomial = [(a - root * b) * scale for a, b in zip(shifted, kept, strict=True)]
        found.append(sum(c * (end - start) ** (k + 1) / (k + 1) for k, c in enumerate(polynomial)))
    return found
