"""Runs of diffusers' schedulers, on their own sigmas, with an exact denoiser in the network's place."""

from __future__ import annotations

import inspect
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
UNCLIPPED = {"clip_sample": False}

#: Our sampler → diffusers' class of the same formula, and the options that make it so.
SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", MULTISTEP),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {**MULTISTEP, "algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_heun": (
        "DPMSolverMultistepScheduler",
        {**MULTISTEP, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
    ),
    "ddpm": ("DDPMScheduler", UNCLIPPED),
    "ddim": ("DDIMScheduler", {**UNCLIPPED, "set_alpha_to_one": True}),
    # Its boundary condition mixes x in; scaled away, the estimate is alone.
    "lcm": ("LCMScheduler", {**UNCLIPPED, "timestep_scaling": 1e9, "original_inference_steps": 1000}),
    "ipndm": ("IPNDMScheduler", {"trained_betas": []}),
    "deis": ("DEISMultistepScheduler", {"solver_order": 3, "lower_order_final": False}),
    "sa_solver": ("SASolverScheduler", {"predictor_order": 1, "corrector_order": 1, "tau_func": lambda t: 1.0}),
    # At 0 diffusers' bh1 is infinity times 0: it ends above.
    "uni_pc": (
        "UniPCMultistepScheduler",
        {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
    ),
    "uni_pc_bh2": ("UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh2"}),
}

#: What makes ours diffusers' where it has a choice.
OURS: dict[str, dict[str, Any]] = {"deis": {"clock": math.log}, "sa_solver": {"predictor": 1, "corrector": 1}}

#: Those that offer Karras's sigmas too, and with them no step of no length at the end that would count.
KARRAS = ("euler", "heun", "lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "deis", "uni_pc_bh2")


def scheduler(name: str, steps: int, **options: Any) -> Any:
    """The scheduler, its timesteps set. Skips the test where diffusers isn't installed."""
    diffusers = pytest.importorskip("diffusers")
    if name == "IPNDMScheduler":  # of a schedule that the others have, as it knows it: standard deviations
        sigmas = torch.tensor([*measure.even(steps - 1), 0.0], dtype=torch.float64)
        made = diffusers.IPNDMScheduler(1000, trained_betas=(sigmas / (1 + sigmas**2).sqrt()).tolist())
    else:
        made = getattr(diffusers, name)(**STABLE_DIFFUSION, **options)
    made.set_timesteps(steps)
    return made


def run(made: Any, x: Tensor, denoiser: Callable[[Tensor, float], Tensor], generator: torch.Generator) -> Tensor:
    """From ``x``, noise at the first sigma, to data."""
    # Euler's, Heun's and LMS's work in our view, the others in the variance-preserving one.
    preserving = not any(kind in type(made).__name__ for kind in ("Euler", "Heun", "LMS"))
    sigmas = sigmas_of(made, once=False)
    if preserving:
        x = x / math.sqrt(1 + sigmas[0] ** 2)
    options = {"generator": generator} if "generator" in inspect.signature(made.step).parameters else {}
    for i, t in enumerate(made.timesteps):
        sigma = sigmas[i]
        wide = x * math.sqrt(1 + sigma**2) if preserving else x
        out = (wide - denoiser(wide, sigma)) / sigma
        if "IPNDM" in type(made).__name__:  # it wants a velocity
            out = (out - made.betas[i] * x) / made.alphas[i]
        made.scale_model_input(x, t)  # some count their calls
        x = made.step(out, t, x, **options).prev_sample
    last = sigmas[len(made.timesteps)] if preserving else 0.0
    return x * math.sqrt(1 + last**2)


def sigmas_of(made: Any, *, once: bool = True) -> list[float]:
    """The scheduler's sigmas; each once: Heun's lists those between the first and the last twice."""
    if "IPNDM" in type(made).__name__:
        sigmas = [float(beta / alpha) for beta, alpha in zip(made.betas, made.alphas, strict=True)]
    elif hasattr(made, "sigmas"):
        sigmas = [float(sigma) for sigma in made.sigmas]
    else:
        kept = made.alphas_cumprod[made.timesteps]
        sigmas = [*((1 - kept) / kept).sqrt().tolist(), 0.0]
    return [sigma for i, sigma in enumerate(sigmas) if not once or i == 0 or sigma != sigmas[i - 1]]


def difference(name: str, **options: Any) -> float:
    """The largest difference between our sampler's end and diffusers', relative to the largest value there."""
    class_name, same = SAME[name]
    made = scheduler(class_name, 10, **same, **options)
    sigmas = sigmas_of(made)
    x = measure.start(torch.float32, sigmas[0])
    reference = run(made, x, exact.mixture, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    end = SAMPLERS[name](
        exact.mixture,
        x,
        sigmas,
        noise=lambda sigma, following: torch.randn(x.shape, generator=generator),
        **OURS.get(name, {}),
    )
    return float((end - reference).abs().max() / reference.abs().max())
