"""Denoising problems with known answers, pixel by pixel, in whatever dtype x has."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MEAN, SPREAD = 0.7, 0.5


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """The exact denoiser of data N(MEAN, SPREAD²): the posterior mean."""
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def gaussian_flow(x: Tensor, sigma: float, following: float) -> Tensor:
    """Where the probability flow of that data takes ``x`` from ``sigma`` to ``following``."""
    return MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + following**2) / (SPREAD**2 + sigma**2))


def centred(x: Tensor, sigma: float) -> Tensor:
    """The exact denoiser of data N(0, SPREAD²): linear in x."""
    return x * (SPREAD**2 / (SPREAD**2 + sigma**2))


def mixture(x: Tensor, sigma: float) -> Tensor:
    """The exact denoiser of an even mixture of N(−1, 0.3²) and N(1, 0.3²): not linear in x."""
    variance = 0.3**2 + sigma**2
    return (0.3**2 * x + sigma**2 * torch.tanh(x / variance)) / variance
