"""Noise schedules: sigmas from the highest to 0, by ComfyUI's names and rules.

Each function of ``SCHEDULES`` takes a model and a number of steps, at least 1, and gives float32 sigmas
on the CPU: ``steps + 1`` of them but where said otherwise. A table with fewer levels than steps gives
some twice; ``sigmas_for``, which samplers are fed from, drops the repeats.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vortex_worker.executor.nodes.sampling.model import DiffusionModel

MAX_STEPS = 1_000_000  # of a whole schedule, whose last steps are run: a denoise near 0 asks for any number


def normal(model: DiffusionModel, steps: int) -> Tensor:
    """Even in the model's timesteps, from the last to the first, then 0."""
    return _with_zero(model.t_to_sigma(torch.linspace(len(model.sigmas) - 1, 0, steps)))


def sgm_uniform(model: DiffusionModel, steps: int) -> Tensor:
    """As ``normal`` of one step more, without the first timestep (Stability AI's generative-models)."""
    return _with_zero(model.t_to_sigma(torch.linspace(len(model.sigmas) - 1, 0, steps + 1)[:-1]))


def simple(model: DiffusionModel, steps: int) -> Tensor:
    """Every n-th of the model's sigmas, from the highest, then 0."""
    stride = len(model.sigmas) / steps
    back = (torch.arange(steps, dtype=torch.float64) * stride).long()
    return _with_zero(model.sigmas[len(model.sigmas) - 1 - back])


def ddim_uniform(model: DiffusionModel, steps: int) -> Tensor:
    """Every n-th timestep from 1, as DDIM's (Song et al. 2021). May give one sigma more, or far fewer."""
    stride = max(len(model.sigmas) // steps, 1)
    return _with_zero(model.sigmas[1::stride].flip(0))


def karras(model: DiffusionModel, steps: int, rho: float = 7.0) -> Tensor:
    """Even in sigma's ``rho``-th root: Karras et al. (2022), equation 5."""
    low, high = model.sigma_min ** (1 / rho), model.sigma_max ** (1 / rho)
    return _with_zero((high + torch.linspace(0, 1, steps) * (low - high)) ** rho)


def exponential(model: DiffusionModel, steps: int) -> Tensor:
    """Even in sigma's logarithm."""
    return _with_zero(torch.linspace(math.log(model.sigma_max), math.log(model.sigma_min), steps).exp())


def beta(model: DiffusionModel, steps: int, shape: float = 0.6) -> Tensor:
    """Timesteps at even quantiles of a Beta distribution, dense at both ends: Lee et al. (2024).

    Timesteps are whole numbers; one that comes twice counts once, so there may be fewer sigmas.
    """
    last = len(model.sigmas) - 1
    quantiles = 1 - torch.arange(steps, dtype=torch.float64) / steps
    # A quantile's timestep is the count of midpoints between timesteps that lie below it.
    midpoints = _beta_cumulative((torch.arange(last, dtype=torch.float64) + 0.5) / last, shape)
    return _with_zero(model.sigmas[torch.unique_consecutive(torch.searchsorted(midpoints, quantiles))])


def _beta_cumulative(x: Tensor, shape: float) -> Tensor:
    """Cumulative distribution of Beta(shape, shape) at ``x``: the incomplete beta function's power series."""
    near = torch.minimum(x, 1 - x)  # symmetric, and up to 1/2 each term is at most half the one before
    term, total = torch.ones_like(x), torch.full_like(x, 1 / shape)
    for n in range(1, 60):
        term = term * near * ((n - shape) / n)
        total = total + term / (shape + n)
    whole = math.exp(2 * math.lgamma(shape) - math.lgamma(2 * shape))
    area = near**shape * total / whole
    return torch.where(x <= 0.5, area, 1 - area)


def kl_optimal(model: DiffusionModel, steps: int) -> Tensor:
    """Even in sigma's arc tangent: Sabour et al. (2024), "Align Your Steps", theorem 3.1."""
    high, low = math.atan(model.sigma_max), math.atan(model.sigma_min)
    return _with_zero(torch.linspace(high, low, steps, dtype=torch.float64).tan())


def linear_quadratic(model: DiffusionModel, steps: int, threshold: float = 0.025) -> Tensor:
    """Half of the steps in even ones from the highest sigma down by ``threshold`` of it, the rest quadratic to 0.

    Polyak et al. (2024, arXiv 2410.13720), "Movie Gen", section 3.4.2, in Mochi's form: both halves meet at one slope.
    """
    if steps == 1:
        return _with_zero(torch.tensor([model.sigma_max]))
    even = steps // 2
    bent = steps - even
    slope = threshold / even
    step = torch.arange(steps, dtype=torch.float64)
    past = (step - even).clamp_min(0)
    down = step * slope + past**2 * ((1 - threshold - bent * slope) / bent**2)
    return _with_zero((1 - down) * model.sigma_max)


SCHEDULES: dict[str, Callable[[DiffusionModel, int], Tensor]] = {
    "normal": normal,
    "karras": karras,
    "exponential": exponential,
    "sgm_uniform": sgm_uniform,
    "simple": simple,
    "ddim_uniform": ddim_uniform,
    "beta": beta,
    "linear_quadratic": linear_quadratic,
    "kl_optimal": kl_optimal,
}


def sigmas_for(
    model: DiffusionModel,
    schedule: str,
    steps: int,
    denoise: float = 1.0,
    *,
    drop_penultimate: bool = False,
    first_step: int = 0,
    last_step: int | None = None,
    leftover: bool = False,
) -> list[float]:
    """The sigmas, strictly descending, of a run of ``steps`` steps that does ``denoise`` (0 to 1) of the way.

    Above 0.9999 all of it; at 0 nothing, an empty list; else the last ``steps + 1`` sigmas of a
    schedule of ``int(steps / denoise)`` steps.

    Args:
        drop_penultimate: a schedule of one step more, without its last sigma but one.
        first_step, last_step: only the steps from one to before the other; none left is an empty list.
        leftover: end at the sigma of ``last_step``; else its step goes to 0.

    Raises:
        ValueError: the whole schedule would have more than a million steps.
    """
    if denoise <= 0:
        return []
    whole = steps if denoise > 0.9999 else int(min(steps / denoise, 1e18))
    if whole > MAX_STEPS:
        raise ValueError(
            f"'denoise' is {denoise:g}: {steps} steps of {whole:,}, and a schedule has at most {MAX_STEPS:,}"
        )
    sigmas: list[float] = SCHEDULES[schedule](model, whole + drop_penultimate).tolist()
    if drop_penultimate and len(sigmas) > 2:
        del sigmas[-2]
    sigmas = sigmas[-(steps + 1) :] if denoise <= 0.9999 else sigmas
    if last_step is not None and last_step < len(sigmas) - 1:
        del sigmas[last_step + 1 :]
        if not leftover:
            sigmas[-1] = 0.0
    if first_step >= len(sigmas) - 1:
        return []
    sigmas = sigmas[first_step:]
    # A step between equal levels moves nothing, and multistep samplers would divide by its length.
    return [sigma for i, sigma in enumerate(sigmas) if i == 0 or sigma < sigmas[i - 1]]


def _with_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas.float(), torch.zeros(1)])
