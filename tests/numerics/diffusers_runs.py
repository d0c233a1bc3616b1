"""Runs of diffusers' schedulers, on their own sigmas, with an exact denoiser in the network's place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import exact
import measure
import pytest
import torch
from torch import Tensor

from vortex_worker.executor.nodes.sampling.samplers import SAMPLERS

STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
MULTISTEP = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "euler_at_final": True}

#: Our sampler → diffusers' class of the same formula, and the options that make it so.
SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", MULTISTEP),
}


def scheduler(name: str, steps: int, **options: Any) -> Any:
    """The scheduler, its timesteps set. Skips the test where diffusers isn't installed."""
    diffusers = pytest.importorskip("diffusers")
    made = getattr(diffusers, name)(**STABLE_DIFFUSION, **options)
    made.set_timesteps(steps)
    return made


def run(made: Any, x: Tensor, denoiser: Callable[[Tensor, float], Tensor], generator: torch.Generator) -> Tensor:
    """From ``x``, noise at the first sigma, to data."""
    # The multistep solver works in the variance-preserving view, the others in ours.
    preserving = "Multistep" in type(made).__name__
    if preserving:
        x = x / math.sqrt(1 + float(made.sigmas[0]) ** 2)
    options = {"generator": generator} if "Ancestral" in type(made).__name__ else {}
    for i, t in enumerate(made.timesteps):
        sigma = float(made.sigmas[i])
        wide = x * math.sqrt(1 + sigma**2) if preserving else x
        noise = (wide - denoiser(wide, sigma)) / sigma
        made.scale_model_input(x, t)  # some count their calls
        x = made.step(noise, t, x, **options).prev_sample
    return x


def sigmas_of(made: Any) -> list[float]:
    """The scheduler's sigmas, each once: Heun's lists those between the first and the last twice."""
    sigmas = [float(sigma) for sigma in made.sigmas]
    return [sigma for i, sigma in enumerate(sigmas) if i == 0 or sigma != sigmas[i - 1]]


def difference(name: str, **options: Any) -> float:
    """The largest difference between our sampler's end and diffusers', relative to the largest value there."""
    class_name, same = SAME[name]
    made = scheduler(class_name, 10, **same, **options)
    sigmas = sigmas_of(made)
    x = measure.start(torch.float32, sigmas[0])
    reference = run(made, x, exact.mixture, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    end = SAMPLERS[name](
        exact.mixture, x, sigmas, noise=lambda sigma, following: torch.randn(x.shape, generator=generator)
    )
    return float((end - reference).abs().max() / reference.abs().max())
