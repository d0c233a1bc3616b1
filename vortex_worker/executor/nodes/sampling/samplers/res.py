"""RES: the refined exponential solver's multistep form, plain, with noise, and with CFG++'s renoising.

Zhang et al. (2023), "Improved Order Analysis and Design of Exponential Integrator for Diffusion Models Sampling"
(arXiv 2308.02157), and ComfyUI's way of adding noise to it. CFG++: see ``cfg_pp``.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from vortex_worker.executor.nodes.sampling.samplers.ancestral import levels
from vortex_worker.executor.nodes.sampling.samplers.exponential import phi
from vortex_worker.executor.nodes.sampling.samplers.signature import (
    Callback,
    Model,
    Noise,
    PairModel,
    Sigmas,
    quiet,
    weighted,
)


def res_multistep(
    model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise | None = None, callback: Callback = quiet
) -> Tensor:
    """Order 2, one model call a step."""
    return _multistep(_twice(model), x, sigmas, noise, callback, 0.0)


def res_multistep_ancestral(
    model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise, callback: Callback = quiet, eta: float = 1.0
) -> Tensor:
    """The same to below the next level, and noise."""
    return _multistep(_twice(model), x, sigmas, noise, callback, eta)


def res_multistep_cfg_pp(
    model: PairModel, x: Tensor, sigmas: Sigmas, *, noise: Noise | None = None, callback: Callback = quiet
) -> Tensor:
    """With CFG++."""
    return _multistep(model, x, sigmas, noise, callback, 0.0)


def res_multistep_ancestral_cfg_pp(
    model: PairModel, x: Tensor, sigmas: Sigmas, *, noise: Noise, callback: Callback = quiet, eta: float = 1.0
) -> Tensor:
    """With CFG++ and noise."""
    return _multistep(model, x, sigmas, noise, callback, eta)


def _twice(model: Model) -> PairModel:
    def pair(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        denoised = model(x, sigma)
        return denoised, denoised

    return pair


def _multistep(
    model: PairModel, x: Tensor, sigmas: Sigmas, noise: Noise | None, callback: Callback, eta: float
) -> Tensor:
    previous: Tensor | None = None
    reached = 0.0  # where the last step went before its noise
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised, unguided = model(x, sigma)
        callback(i, x, sigma, denoised)
        down, up = levels(sigma, following, eta)
        moved = x if denoised is unguided else x + (denoised - unguided)
        if down == 0:
            x = denoised
        elif previous is None:
            x = torch.lerp(denoised, moved, down / sigma)
        else:
            step = math.log(sigma / down)
            late = step**2 * phi(2, -step) / math.log(reached / sigmas[i - 1])
            x = weighted((down / sigma, moved), (1 - down / sigma - late, unguided), (late, previous))
        if noise and up and following > 0:
            x = x + noise(sigma, following) * up
        previous, reached = unguided, down
    return x
