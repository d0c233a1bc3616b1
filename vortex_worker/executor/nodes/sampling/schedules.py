"""Noise schedules: sigmas from the highest to 0, by ComfyUI's names and rules.

Each function gives float32 sigmas on the CPU, ``steps + 1`` of them but where said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vortex_worker.executor.nodes.sampling.model import DiffusionModel


def normal(model: DiffusionModel, steps: int) -> Tensor:
    """Even in the model's timesteps, from its first to its last, then 0."""
    return _timesteps(model, torch.linspace(len(model.sigmas) - 1, 0, steps))


def sgm_uniform(model: DiffusionModel, steps: int) -> Tensor:
    """As ``normal``, but one step further: the last timestep is left out (Stability's generative-models)."""
    return _timesteps(model, torch.linspace(len(model.sigmas) - 1, 0, steps + 1)[:-1])


def simple(model: DiffusionModel, steps: int) -> Tensor:
    """Every n-th of the model's sigmas, from the highest, then 0."""
    stride = len(model.sigmas) / steps
    picked = [float(model.sigmas[-(1 + int(i * stride))]) for i in range(steps)]
    return torch.tensor([*picked, 0.0])


def ddim_uniform(model: DiffusionModel, steps: int) -> Tensor:
    """Every n-th timestep from 1, as in DDIM (Song et al. 2021). The length may differ by one."""
    stride = max(len(model.sigmas) // steps, 1)
    picked = [float(s) for s in model.sigmas[1::stride]]
    return torch.tensor([*picked[::-1], 0.0])


def karras(model: DiffusionModel, steps: int, rho: float = 7.0) -> Tensor:
    """Karras et al. (2022), equation 5: even in sigma's ``rho``-th root."""
    low, high = model.sigma_min ** (1 / rho), model.sigma_max ** (1 / rho)
    ramp = torch.linspace(0, 1, steps)
    return _with_zero((high + ramp * (low - high)) ** rho)


def exponential(model: DiffusionModel, steps: int) -> Tensor:
    """Even in sigma's logarithm."""
    return _with_zero(torch.linspace(math.log(model.sigma_max), math.log(model.sigma_min), steps).exp())


SCHEDULES: dict[str, Callable[[DiffusionModel, int], Tensor]] = {
    "normal": normal,
    "karras": karras,
    "simple": simple,
    "sgm_uniform": sgm_uniform,
    "exponential": exponential,
    "ddim_uniform": ddim_uniform,
}


def sigmas_for(model: DiffusionModel, schedule: str, steps: int, denoise: float = 1.0) -> Tensor:
    """The sigmas of a run of ``steps`` steps that does ``denoise`` (0 to 1) of the whole way.

    Above 0.9999, all of it; at 0 nothing, an empty tensor; else the last ``steps + 1`` sigmas of a
    schedule of ``steps / denoise`` steps.
    """
    if denoise <= 0:
        return torch.empty(0)
    make = SCHEDULES[schedule]
    if denoise > 0.9999:
        return make(model, steps)
    return make(model, int(steps / denoise))[-(steps + 1) :]


def _timesteps(model: DiffusionModel, t: Tensor) -> Tensor:
    return _with_zero(model.t_to_sigma(t))


def _with_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas.float(), torch.zeros(1)])
