"""Schedules against k-diffusion's functions, published numbers and rules told again in other words."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import kdiffusion
import numpy as np
import pytest
import torch
from measure import TABLE

from vortex_worker.executor.nodes.sampling.model import DiffusionModel
from vortex_worker.executor.nodes.sampling.schedules import MAX_STEPS, SCHEDULES, sigmas_for

STEPS = [1, 2, 3, 5, 20, 100, 999, 1000]
SIGMAS = TABLE.sigmas.tolist()


def test_normal_begins_and_ends_as_published() -> None:
    sigmas = SCHEDULES["normal"](TABLE, 20).tolist()
    assert len(sigmas) == 21
    assert [round(s, 4) for s in sigmas[:4]] == [14.6146, 10.7468, 8.0815, 6.2049]
    assert [round(s, 4) for s in sigmas[-3:]] == [0.2322, 0.0292, 0]


@pytest.mark.parametrize("steps", STEPS)
def test_normal_equals_k_diffusion(steps: int) -> None:
    _, external = kdiffusion.load()
    schedule = external.DiscreteSchedule(TABLE.sigmas, quantize=False)
    torch.testing.assert_close(SCHEDULES["normal"](TABLE, steps), schedule.get_sigmas(steps), rtol=2e-6, atol=0)


@pytest.mark.parametrize("steps", STEPS)
def test_karras_and_exponential_equal_k_diffusion(steps: int) -> None:
    sampling, _ = kdiffusion.load()
    ends = (TABLE.sigma_min, TABLE.sigma_max)
    assert torch.equal(SCHEDULES["karras"](TABLE, steps), sampling.get_sigmas_karras(steps, *ends))
    assert torch.equal(SCHEDULES["exponential"](TABLE, steps), sampling.get_sigmas_exponential(steps, *ends))


@pytest.mark.parametrize("steps", [*STEPS, 7, 333, 2000])
def test_simple_takes_every_nth(steps: int) -> None:
    wanted = [SIGMAS[-(1 + int(i * (len(SIGMAS) / steps)))] for i in range(steps)]
    assert SCHEDULES["simple"](TABLE, steps).tolist() == [*wanted, 0]


@pytest.mark.parametrize("steps", [*STEPS, 7, 333, 2000])
def test_ddim_uniform_takes_every_nth_from_1(steps: int) -> None:
    wanted = [SIGMAS[i] for i in range(1, 1000, max(1000 // steps, 1))]
    assert SCHEDULES["ddim_uniform"](TABLE, steps).tolist() == [*reversed(wanted), 0]


@pytest.mark.parametrize("steps", STEPS)
def test_sgm_uniform_is_normal_without_the_first_timestep(steps: int) -> None:
    wanted = [*SCHEDULES["normal"](TABLE, steps + 1).tolist()[:-2], 0]
    assert SCHEDULES["sgm_uniform"](TABLE, steps).tolist() == wanted


@pytest.mark.parametrize("steps", [*range(1, 60), 100, 250, 999, 2000])
def test_beta_takes_scipy_s_quantiles(steps: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    quantiles = stats.beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6)
    timesteps = list(dict.fromkeys(np.rint(quantiles * 999).astype(int).tolist()))
    assert SCHEDULES["beta"](TABLE, steps).tolist() == [*(SIGMAS[t] for t in timesteps), 0]


@pytest.mark.parametrize("steps", [2, 5, 20, 1000])
def test_kl_optimal_is_even_in_the_arc_tangent(steps: int) -> None:
    sigmas = SCHEDULES["kl_optimal"](TABLE, steps).double()
    assert sigmas[0] == TABLE.sigma_max
    assert float(sigmas[-2]) == pytest.approx(TABLE.sigma_min, rel=1e-6)
    gaps = sigmas[:-1].atan().diff()
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20, 33, 1000, 5000])
def test_linear_quadratic_is_mochi_s(steps: int) -> None:
    """Its polynomial, in the power of the step that its source has it in."""
    wanted = [1.0]
    if steps > 1:
        linear, threshold = steps // 2, 0.025
        ramp = [i * threshold / linear for i in range(linear)]
        gap, bent = linear - threshold * steps, steps - linear
        a = gap / (linear * bent**2)
        b = threshold / linear - 2 * gap / bent**2
        wanted = [1 - x for x in ramp + [a * i**2 + b * i + a * linear**2 for i in range(linear, steps)]]
    found = SCHEDULES["linear_quadratic"](TABLE, steps).tolist()
    assert found == pytest.approx([*(x * TABLE.sigma_max for x in wanted), 0], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 1000, 1500])
@pytest.mark.parametrize("denoise", [1.0, 0.99995, 0.9999, 0.6, 0.3, 0.0101])
def test_sigmas_for_descends_to_zero(schedule: str, steps: int, denoise: float) -> None:
    sigmas = sigmas_for(TABLE, schedule, steps, denoise)
    assert sigmas[-1] == 0
    assert all(a > b for a, b in pairwise(sigmas))
    assert len(sigmas) >= 2
    assert sigmas[0] <= TABLE.sigma_max * (1 + 1e-6)
    if schedule not in ("ddim_uniform", "beta") and steps / denoise <= len(SIGMAS):
        assert len(sigmas) == steps + 1


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize(("steps", "denoise", "whole"), [(20, 0.5, 40), (20, 0.6, 33), (3, 0.07, 42), (1, 0.3, 3)])
def test_denoise_takes_the_end_of_a_longer_schedule(schedule: str, steps: int, denoise: float, whole: int) -> None:
    longer = SCHEDULES[schedule](TABLE, whole).tolist()
    assert sigmas_for(TABLE, schedule, steps, denoise) == longer[-(steps + 1) :]


@pytest.mark.parametrize("schedule", ["normal", "karras", "simple"])
@pytest.mark.parametrize(("denoise", "whole"), [(1.0, 20), (0.5, 40), (0.3, 66)])
def test_drop_penultimate_of_one_step_more(schedule: str, denoise: float, whole: int) -> None:
    longer = SCHEDULES[schedule](TABLE, whole + 1).tolist()
    del longer[-2]
    assert sigmas_for(TABLE, schedule, 20, denoise, drop_penultimate=True) == longer[-21:]


def test_part_of_the_steps() -> None:
    whole = sigmas_for(TABLE, "karras", 10)

    def part(first: int, last: int, *, leftover: bool = False) -> list[float]:
        return sigmas_for(TABLE, "karras", 10, first_step=first, last_step=last, leftover=leftover)

    assert part(0, 10) == part(0, 10_000) == part(0, 10, leftover=True) == whole
    assert part(0, 4, leftover=True) == whole[:5]
    assert part(0, 4) == [*whole[:4], 0]
    assert part(4, 10_000) == whole[4:]
    assert part(3, 7, leftover=True) == whole[3:8]
    assert part(3, 4) == [whole[3], 0]
    assert part(4, 4) == part(7, 4) == part(10, 10) == part(0, 0) == []
    dropped = sigmas_for(TABLE, "karras", 10, drop_penultimate=True)
    assert sigmas_for(TABLE, "karras", 10, drop_penultimate=True, first_step=6) == dropped[6:]


def test_edges_of_denoise() -> None:
    assert sigmas_for(TABLE, "normal", 20, 0.0) == []
    full = SCHEDULES["karras"](TABLE, 10_000).tolist()
    assert sigmas_for(TABLE, "karras", 10_000, 0.99991) == full
    assert sigmas_for(TABLE, "karras", 10_000, 0.9999) == SCHEDULES["karras"](TABLE, 10_001).tolist()[-10_001:]
    assert sigmas_for(TABLE, "normal", 1, 1.0) == [pytest.approx(14.6146, abs=1e-4), 0]
    tiny = sigmas_for(TABLE, "normal", 1, 1 / MAX_STEPS)
    assert tiny == [pytest.approx(TABLE.sigma_min, rel=1e-5), 0]
    for denoise in (0.5 / MAX_STEPS, 1e-300):
        with pytest.raises(ValueError, match="'denoise' is"):
            sigmas_for(TABLE, "normal", 1, denoise)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize(
    "model",
    [
        DiffusionModel(lambda x, t, c: x, parametrization="flow"),
        DiffusionModel(lambda x, t, c: x, sigmas=torch.tensor([0.1, 0.5, 2.0])),
        DiffusionModel(lambda x, t, c: x, sigmas=torch.logspace(-2, 3, 50)),
    ],
    ids=["flow", "three", "fifty"],
)
def test_other_tables(schedule: str, model: DiffusionModel) -> None:
    for steps in (1, 2, 7, 60):
        sigmas = sigmas_for(model, schedule, steps)
        assert all(a > b for a, b in pairwise(sigmas))
        assert sigmas[-1] == 0
        assert sigmas[0] <= model.sigma_max * (1 + 1e-6)


def test_flow_s_normal_is_linear() -> None:
    """As ComfyUI's ModelSamplingDiscreteFlow without shift: even from 1 to 0.001."""
    model = DiffusionModel(lambda x, t, c: x, parametrization="flow")
    wanted: Any = np.linspace(1, 0.001, 13)
    assert SCHEDULES["normal"](model, 13).tolist()[:-1] == pytest.approx(wanted, rel=1e-5)


def test_all_are_float32_on_the_cpu() -> None:
    for schedule in SCHEDULES.values():
        sigmas = schedule(TABLE, 9)
        assert (sigmas.dtype, sigmas.device.type, sigmas.dim()) == (torch.float32, "cpu", 1)
        assert not math.isnan(float(sigmas.sum()))
