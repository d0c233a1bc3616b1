"""Every sampler on a rectified flow whose velocity is known exactly."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from counting import conditioning
from measure import NAMES
from torch import Tensor

from vortex_worker.executor.context import JobContext
from vortex_worker.executor.nodes.sampling.model import DiffusionModel
from vortex_worker.executor.nodes.sampling.sample import sample
from vortex_worker.executor.nodes.sampling.samplers import SAMPLERS
from vortex_worker.executor.nodes.sampling.samplers.ancestral import flow_levels
from vortex_worker.executor.nodes.sampling.schedules import sigmas_for
from vortex_worker.executor.nodes.sampling.views import exploding, exploding_sigmas

MEAN, SPREAD = 0.7, 0.5
SIDE = 64


def estimate(x: Tensor, time: float) -> Tensor:
    """The posterior mean of data N(MEAN, SPREAD²) in (1 − time) · data + time · noise."""
    share = (1 - time) * SPREAD**2 / (((1 - time) * SPREAD) ** 2 + time**2)
    return MEAN + share * (x - (1 - time) * MEAN)


def velocity(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    time = float(t[0]) / 1000
    return (x - estimate(x, time)) / time


MODEL = DiffusionModel(velocity, parametrization="flow")


def run(name: str, sigmas: list[float], seed: int = 5, latent: Tensor | None = None) -> Tensor:
    samples = torch.zeros(1, 1, SIDE, SIDE) if latent is None else latent
    cond = conditioning(1.0)
    out = sample(JobContext(), MODEL, cond, cond, {"samples": samples}, sampler=name, sigmas=sigmas, cfg=1.0, seed=seed)
    tensor: Tensor = out["samples"]
    return tensor


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lcm"])
def test_draws_the_data_s_distribution(name: str) -> None:
    """Not lcm's, whose estimates are not samples."""
    end = run(name, sigmas_for(MODEL, "normal", 160))
    assert float(end.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(end.std()) == pytest.approx(SPREAD, abs=0.03)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lcm"])
def test_goes_part_of_the_way(name: str) -> None:
    """From data with noise half way: what comes out is data again."""
    data = MEAN + SPREAD * torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    end = run(name, sigmas_for(MODEL, "simple", 15, 0.5), latent=data)
    assert float(end.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(end.std()) == pytest.approx(SPREAD, abs=0.04)
    assert float(torch.corrcoef(torch.stack([end.flatten(), data.flatten()]))[0, 1]) > 0.1


def test_both_views_have_one_flow() -> None:
    """Euler's step is the same curve's in either."""
    times = [0.99, 0.7, 0.4, 0.1, 0.0]
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own = SAMPLERS["euler"](estimate, x, times)
    other = SAMPLERS["euler"](exploding(estimate), x / (1 - times[0]), exploding_sigmas(times))
    torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ancestral_steps_are_comfyui_s(eta: float) -> None:
    """Its rule for flows, told in the flow's own time."""
    times = sigmas_for(MODEL, "normal", 9)[1:]
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = [torch.randn(x.shape, generator=torch.Generator().manual_seed(i), dtype=x.dtype) for i in range(20)]
    wanted, noise = x, iter(drawn)
    for time, following in pairwise(times):
        down = following * (1 + (following / time - 1) * eta)
        wanted = wanted * (down / time) + estimate(wanted, time) * (1 - down / time)
        if following > 0:
            share = (1 - following) / (1 - down)
            wanted = wanted * share + next(noise) * math.sqrt(max(following**2 - (down * share) ** 2, 0))
    noise = iter(drawn)
    ours = SAMPLERS["euler_ancestral"](
        exploding(estimate), x / (1 - times[0]), exploding_sigmas(times),
        noise=lambda sigma, following: next(noise), eta=eta, rule=flow_levels,
    )  # fmt: skip
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


def test_more_steps_than_times_below_one() -> None:
    """Ten thousand steps begin nearer to 1 than the other view can tell: those are left out."""
    sigmas = [1.0, 0.99995, 0.99991, 0.5, 0.0]
    assert bool(run("dpmpp_2m_sde", sigmas).isfinite().all())


def test_a_seed_makes_the_same_path_of_any_number_of_steps() -> None:
    few, many = (run("dpmpp_2m_sde", sigmas_for(MODEL, "normal", steps)) for steps in (40, 80))
    other = run("dpmpp_2m_sde", sigmas_for(MODEL, "normal", 40), seed=6)
    assert (few - many).square().mean() < 0.1 * (few - other).square().mean()
