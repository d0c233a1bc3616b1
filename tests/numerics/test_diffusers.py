"""A second outside reference: diffusers' schedulers, where they have the same formula or rule."""

from __future__ import annotations

import math

import diffusers_runs
import measure
import pytest
import torch

from vortex_worker.executor.nodes.sampling.model import stable_diffusion_sigmas
from vortex_worker.executor.nodes.sampling.samplers.sa_solver import shares
from vortex_worker.executor.nodes.sampling.schedules import SCHEDULES

# diffusers calls numpy.array on torch tensors, whose __array__ has no `copy` yet.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in diffusers_runs.SAME]
    + [(name, {"use_karras_sigmas": True}) for name in diffusers_runs.KARRAS],
)
def test_sampler_equals_diffusers(name: str, options: dict[str, bool]) -> None:
    # Those that diffusers computes in the other view, with logarithms in float32, lose a digit there.
    plain = name in ("euler", "euler_ancestral", "heun", "lms", "dpmpp_2m")
    assert diffusers_runs.difference(name, **options) < (2e-6 if plain else 1e-5)


@pytest.mark.parametrize("strength", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_sa_solver_s_weights_equal_diffusers(order: int, strength: float) -> None:
    """Its class takes other ones at order 2 by a heuristic of the paper's; these are the equation's."""
    made = diffusers_runs.scheduler("SASolverScheduler", 10)
    levels = [1.1, 1.9, 3.2, 5.0][:order]  # the latest first
    sigma, following = levels[0], 0.7
    lambdas = [-math.log(level) for level in levels]
    tau = torch.tensor(strength, dtype=torch.float64)
    ends = (torch.tensor(-math.log(level), dtype=torch.float64) for level in (sigma, following))
    theirs = made.get_coefficients_fn(order, *ends, [torch.tensor(x, dtype=torch.float64) for x in lambdas], tau)
    rate = 1 + strength**2
    ours = shares(levels, sigma, following, strength)
    assert ours == pytest.approx([float(c) * rate * following**rate for c in theirs], rel=1e-9)


def test_table_equals_diffusers() -> None:
    kept = diffusers_runs.scheduler("EulerDiscreteScheduler", 10).alphas_cumprod
    torch.testing.assert_close(1 / (stable_diffusion_sigmas() ** 2 + 1), kept, rtol=2e-6, atol=0)


@pytest.mark.parametrize(
    ("schedule", "steps", "class_name", "options"),
    # Steps for which every timestep is whole: between them diffusers interpolates otherwise.
    [
        ("normal", 10, "EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
        ("normal", 28, "EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
        ("normal", 112, "EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
        ("sgm_uniform", 9, "DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}),
        ("sgm_uniform", 27, "DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}),
        ("simple", 20, "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("simple", 8, "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("ddim_uniform", 20, "EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
        ("ddim_uniform", 50, "EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
        ("karras", 17, "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("exponential", 17, "EulerDiscreteScheduler", {"use_exponential_sigmas": True}),
    ],
)
def test_schedule_equals_diffusers(schedule: str, steps: int, class_name: str, options: dict[str, object]) -> None:
    theirs = diffusers_runs.sigmas_of(diffusers_runs.scheduler(class_name, steps, **options))
    ours = SCHEDULES[schedule](measure.TABLE, steps).tolist()
    assert ours == pytest.approx(theirs, rel=2e-5)
