"""Gradient estimation: Euler's step along the new slope and some of its change.

Permenter and Yuan (2024), "Interpreting and Improving Diffusion Models from an Optimization Perspective"
(arXiv 2306.04848), algorithm 2. Order 1: what it aims at is the data, not the flow. CFG++: see ``cfg_pp``.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from vortex_worker.executor.nodes.sampling.samplers.signature import Callback, Model, Noise, PairModel, Sigmas, quiet


def gradient_estimation(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise | None = None,
    callback: Callback = quiet,
    gamma: float = 2.0,
) -> Tensor:
    """The slope is gamma times the new one and 1 − gamma times the last."""
    last: Tensor | None = None
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        callback(i, x, sigma, denoised)
        slope = (x - denoised) / sigma
        ahead = torch.lerp(denoised, x, following / sigma)
        if last is not None and following > 0:
            ahead.add_(slope - last, alpha=(gamma - 1) * (following - sigma))
        x, last = ahead, slope
    return x


def gradient_estimation_cfg_pp(
    model: PairModel,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise | None = None,
    callback: Callback = quiet,
    gamma: float = 2.0,
) -> Tensor:
    """The same from the guided estimate, along unguided slopes."""
    last: Tensor | None = None
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised, unguided = model(x, sigma)
        callback(i, x, sigma, denoised)
        slope = (x - unguided) / sigma
        ahead = torch.add(denoised, slope, alpha=following)
        if last is not None and following > 0:
            ahead.add_(slope - last, alpha=(gamma - 1) * (following - sigma))
        x, last = ahead, slope
    return x
