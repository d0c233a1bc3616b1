"""A second outside reference: diffusers' schedulers, where they have the same formula or rule."""

from __future__ import annotations

import diffusers_runs
import measure
import pytest
import torch

from vortex_worker.executor.nodes.sampling.model import stable_diffusion_sigmas
from vortex_worker.executor.nodes.sampling.schedules import SCHEDULES

# diffusers calls numpy.array on torch tensors, whose __array__ has no `copy` yet.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in diffusers_runs.SAME]
    # diffusers' EulerAncestralDiscreteScheduler has no Karras sigmas
    + [(name, {"use_karras_sigmas": True}) for name in diffusers_runs.SAME if name != "euler_ancestral"],
)
def test_sampler_equals_diffusers(name: str, options: dict[str, bool]) -> None:
    assert diffusers_runs.difference(name, **options) < 2e-6


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
