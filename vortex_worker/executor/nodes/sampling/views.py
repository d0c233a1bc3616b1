"""A flow model as samplers of diffusions see it.

A flow's x is (1 − t) · data + t · noise. Divided by 1 − t it is data + sigma · noise with sigma = t / (1 − t): what
every sampler that adds noise has its formulae for. Its probability flow is the same curve in both views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

Estimate = TypeVar("Estimate")  # a tensor, or the pair that CFG++ wants


def exploding_sigmas(times: Sequence[float]) -> list[float]:
    """The sigmas at a flow's times, each below 1."""
    return [time / (1 - time) for time in times]


def exploding(denoiser: Callable[[Tensor, float], Estimate]) -> Callable[[Tensor, float], Estimate]:
    """A flow's ``(x, time) → estimate`` as ``(x / (1 − time), sigma) → estimate``."""

    def seen(x: Tensor, sigma: float) -> Estimate:
        share = 1 / (1 + sigma)
        return denoiser(x * share, sigma * share)

    return seen
