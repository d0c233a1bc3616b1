"""Samplers against k-diffusion's of the same name, step by step, and against problems with exact answers."""

from __future__ import annotations

import math

import exact
import kdiffusion
import measure
import pytest
import torch

from vortex_worker.executor.nodes.sampling.samplers import ADD_NOISE, DROP_PENULTIMATE, SAMPLERS
from vortex_worker.executor.nodes.sampling.samplers.multistep import integrals

NAMES = sorted(SAMPLERS)
CASES = [pytest.param(name, s, id=f"{name}-{label}") for name in NAMES for label, s in measure.schedules(name)]


@pytest.mark.parametrize(("name", "sigmas"), CASES)
def test_equals_k_diffusion_in_float64(name: str, sigmas: list[float]) -> None:
    ours, theirs = measure.ours(name, sigmas, torch.float64), measure.theirs(name, sigmas, torch.float64)
    assert [s.index for s in ours.steps] == [s.index for s in theirs.steps] == list(range(len(sigmas) - 1))
    assert [s.sigma for s in ours.steps] == [s.sigma for s in theirs.steps] == sigmas[:-1]
    assert ours.asked == pytest.approx(theirs.asked, rel=1e-14)
    assert ours.drawn == theirs.drawn
    assert measure.difference(ours, theirs) < 1e-12


@pytest.mark.parametrize(("name", "sigmas"), CASES)
def test_float32_keeps_within_rounding(name: str, sigmas: list[float]) -> None:
    truth = measure.theirs(name, sigmas, torch.float64)
    assert measure.difference(measure.ours(name, sigmas, torch.float32), truth) < 5e-5


@pytest.mark.parametrize("eta", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("name", sorted(ADD_NOISE))
def test_eta_equals_k_diffusion(name: str, eta: float) -> None:
    sigmas = measure.even(9)
    ours = measure.ours(name, sigmas, torch.float64, eta=eta)
    assert measure.difference(ours, measure.theirs(name, sigmas, torch.float64, eta=eta)) < 1e-12


@pytest.mark.parametrize("order", [1, 2, 3])
def test_lms_of_lower_order_equals_k_diffusion(order: int) -> None:
    sigmas = measure.even(9)
    ours = measure.ours("lms", sigmas, torch.float64, order=order)
    assert measure.difference(ours, measure.theirs("lms", sigmas, torch.float64, order=order)) < 1e-12


@pytest.mark.parametrize(
    ("name", "order"),
    [("euler", 1), ("euler_ancestral", 1), ("heun", 2), ("dpm_2", 2), ("dpm_2_ancestral", 2),
     ("dpmpp_2s_ancestral", 2), ("dpmpp_2m", 2), ("lms", 4)],
)  # fmt: skip
def test_converges_at_its_order_to_the_exact_flow(name: str, order: int) -> None:
    errors = measure.flow_errors(name, [64, 128, 256])
    assert measure.order(errors) == pytest.approx(order, abs=0.15)
    assert errors[-1] < 0.02


@pytest.mark.parametrize(("name", "order"), [("euler_ancestral", 1), ("dpm_2_ancestral", 2), ("dpmpp_2s_ancestral", 2)])
def test_ancestral_variance_converges_to_the_data_s(name: str, order: int) -> None:
    errors = measure.variance_errors(name, [64, 128, 256])
    assert measure.order(errors) == pytest.approx(order, abs=0.15)


def test_every_sampler_has_a_reference_and_an_order() -> None:
    sampling, _ = kdiffusion.load()
    assert all(hasattr(sampling, f"sample_{name}") for name in SAMPLERS)
    assert set(SAMPLERS) >= ADD_NOISE
    assert set(SAMPLERS) >= DROP_PENULTIMATE


@pytest.mark.parametrize("name", NAMES)
def test_one_step_to_zero_gives_the_estimate(name: str) -> None:
    x = measure.start(torch.float64, 5.0)
    trace = measure.ours(name, [5.0, 0.0], torch.float64)
    torch.testing.assert_close(trace.end, exact.mixture(x, 5.0))
    assert trace.asked == [5.0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sigmas", [[], [3.0]])
def test_no_step_gives_x_back(name: str, sigmas: list[float]) -> None:
    x = torch.ones(1, 1, 2, 2)
    assert SAMPLERS[name](exact.mixture, x, sigmas, noise=lambda sigma, following: x) is x


@pytest.mark.parametrize("name", NAMES)
def test_leaves_its_input_alone(name: str) -> None:
    x = measure.start(torch.float32, 10.0)
    before = x.clone()
    SAMPLERS[name](exact.mixture, x, measure.even(4), noise=lambda sigma, following: torch.ones_like(x))
    assert torch.equal(x, before)


def test_lagrange_integrals_are_exact_for_cubics() -> None:
    nodes, start, end = [3.0, 3.5, 5.0, 5.25], 3.0, 2.25
    weights = integrals(nodes, start, end)
    for power in range(4):
        wanted = (end ** (power + 1) - start ** (power + 1)) / (power + 1)
        assert sum(w * n**power for w, n in zip(weights, nodes, strict=True)) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_draws_the_data_s_distribution(name: str) -> None:
    """10,000 scalars of a two-peaked distribution: mean, variance, share of each peak."""
    generator = torch.Generator().manual_seed(5)
    sigmas = [10.0 * (0.01 / 10.0) ** (i / 40) for i in range(41)]
    x = torch.randn(10_000, generator=generator) * math.sqrt(10.0**2 + 1 + 0.3**2)
    end = SAMPLERS[name](
        exact.mixture, x, sigmas, noise=lambda sigma, following: torch.randn(x.shape, generator=generator)
    )
    assert float(end.mean()) == pytest.approx(0, abs=0.05)
    assert float((end > 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(end.abs().mean()) == pytest.approx(1.0, abs=0.05)
    assert float((end.abs() - 1).std()) == pytest.approx(0.3, abs=0.03)
