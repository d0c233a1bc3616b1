"""Samplers against k-diffusion's of the same name, step by step, and against problems with exact answers."""

from __future__ import annotations

import math
import re
from pathlib import Path

import diffusers_runs
import exact
import kdiffusion
import measure
import pytest
import torch
from measure import KDIFFUSION, NAMES, TOLD

from vortex_worker.executor.nodes.sampling.samplers import ADD_NOISE, BROWNIAN, CFG_PP, DROP_PENULTIMATE, SAMPLERS
from vortex_worker.executor.nodes.sampling.samplers.adams import training_time
from vortex_worker.executor.nodes.sampling.samplers.exponential import integrate, phi
from vortex_worker.executor.nodes.sampling.samplers.multistep import integrals

NOISY = [name for name in NAMES if name in ADD_NOISE]
CASES = [pytest.param(name, s, id=f"{name}-{label}") for name in KDIFFUSION for label, s in measure.compared(name)]
TELLINGS = [pytest.param(name, s, id=f"{name}-{label}") for name in TOLD for label, s in measure.schedules(name)]

#: The order of each without its noise. Not of lcm, which has no flow to follow, nor of dpm_adaptive, whose steps are
#: as many as its tolerance wants.
ORDERS = dict.fromkeys(NAMES, 2.0) | {
    "euler": 1, "euler_cfg_pp": 1, "euler_ancestral": 1, "euler_ancestral_cfg_pp": 1, "heunpp2": 1, "lms": 4,
    "dpm_fast": 3, "ddpm": 1, "ipndm_v": 4, "deis": 3, "gradient_estimation": 1, "gradient_estimation_cfg_pp": 1,
    "seeds_3": 3, "sa_solver": 4, "sa_solver_pece": 4, "ddim": 1, "uni_pc": 4, "uni_pc_bh2": 4,
}  # fmt: skip
del ORDERS["lcm"], ORDERS["dpm_adaptive"]


@pytest.mark.parametrize(("name", "sigmas"), CASES)
def test_equals_k_diffusion_in_float64(name: str, sigmas: list[float]) -> None:
    ours, theirs = measure.ours(name, sigmas, torch.float64), measure.theirs(name, sigmas, torch.float64)
    adaptive = name == "dpm_adaptive"  # its levels come of its error, and that of x
    assert ours.asked == pytest.approx(theirs.asked, rel=1e-9 if adaptive else 1e-12)
    assert ours.drawn == [pytest.approx(pair, rel=1e-14) for pair in theirs.drawn]
    assert measure.difference(ours, theirs) < 1e-11
    if adaptive:  # k-diffusion's tells of a try when it is over, ours before
        return
    assert [s.index for s in ours.steps] == [s.index for s in theirs.steps]
    assert [s.sigma for s in ours.steps] == pytest.approx([s.sigma for s in theirs.steps], rel=1e-14)
    if name != "dpm_fast":  # its steps are its own
        assert [s.sigma for s in ours.steps] == sigmas[:-1]


@pytest.mark.parametrize(("name", "sigmas"), CASES)
def test_float32_keeps_within_rounding(name: str, sigmas: list[float]) -> None:
    truth = measure.theirs(name, sigmas, torch.float64)
    # A last digit decides whether dpm_adaptive takes a step; what it gives is then as good, by its own tolerance.
    bound = 0.05 if name == "dpm_adaptive" else 5e-5
    assert measure.difference(measure.ours(name, sigmas, torch.float32), truth) < bound


@pytest.mark.parametrize(("name", "sigmas"), TELLINGS)
def test_equals_its_formula_told_again(name: str, sigmas: list[float]) -> None:
    assert measure.retelling(name, sigmas) < 1e-12


@pytest.mark.parametrize("name", [name for name in NAMES if name not in KDIFFUSION])
def test_float32_keeps_near_float64(name: str) -> None:
    assert measure.rounding(name) < 5e-5


@pytest.mark.parametrize("eta", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("name", sorted(set(NOISY) & set(KDIFFUSION)))
def test_eta_equals_k_diffusion(name: str, eta: float) -> None:
    sigmas = measure.even(9)
    ours = measure.ours(name, sigmas, torch.float64, eta=eta)
    assert measure.difference(ours, measure.theirs(name, sigmas, torch.float64, eta=eta)) < 1e-12


@pytest.mark.parametrize("order", [1, 2, 3])
def test_lms_of_lower_order_equals_k_diffusion(order: int) -> None:
    sigmas = measure.even(9)
    ours = measure.ours("lms", sigmas, torch.float64, order=order)
    assert measure.difference(ours, measure.theirs("lms", sigmas, torch.float64, order=order)) < 1e-12


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_converges_at_its_order_to_the_exact_flow(name: str, order: int) -> None:
    # dpm_fast's last step is of an order that the number of steps decides.
    errors = measure.flow_errors(name, [125, 251] if name == "dpm_fast" else [128, 256])
    assert measure.order(errors) == pytest.approx(order, abs=0.45 if order > 3 else 0.15)
    assert errors[-1] < 0.02


@pytest.mark.parametrize("name", [name for name in NOISY if name != "lcm"])
def test_variance_converges_to_the_data_s(name: str) -> None:
    errors = measure.variance_errors(name, [64, 128])
    assert measure.order(errors) == pytest.approx(min(ORDERS[name], 2), abs=0.2)
    assert errors[-1] < 0.02


def test_dpm_adaptive_errs_as_much_as_it_may() -> None:
    start = measure.start(torch.float64, 10.0)
    wanted = exact.gaussian_flow(start, 10.0, 0.05)
    ends = [
        measure.ours("dpm_adaptive", [10.0, 0.05], torch.float64, exact.gaussian, relative=r, absolute=r / 10)
        for r in (0.05, 0.0005, 0.00005)
    ]
    errors = [float((trace.end - wanted).abs().max()) for trace in ends]
    assert errors[0] < 0.2
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 3
    assert len(ends[0].asked) < len(ends[1].asked) < len(ends[2].asked)


def test_dpm_adaptive_ends_whatever_the_model_gives() -> None:
    x = torch.ones(1, 1, 2, 2)
    with pytest.raises(ArithmeticError, match="the error of a step is nan at sigma 10"):
        SAMPLERS["dpm_adaptive"](lambda x, sigma: x * math.nan, x, [10.0, 0.1])
    wild = torch.Generator().manual_seed(0)
    with pytest.raises(ArithmeticError, match="1,000 tries"):
        SAMPLERS["dpm_adaptive"](lambda x, sigma: torch.randn(x.shape, generator=wild) * 1e6, x, [10.0, 0.1])


def test_every_sampler_has_a_reference() -> None:
    sampling, _ = kdiffusion.load()
    assert all(hasattr(sampling, f"sample_{known_as}") for known_as, _ in KDIFFUSION.values())
    assert set(NAMES) == {*KDIFFUSION, *TOLD, *diffusers_runs.SAME}
    for group in (ADD_NOISE, DROP_PENULTIMATE, CFG_PP, BROWNIAN):
        assert set(SAMPLERS) >= group
    assert all(SAMPLERS[name] is SAMPLERS[name.removesuffix("_gpu")] for name in SAMPLERS)


def test_the_page_s_table_has_every_sampler() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text(encoding="utf-8")
    table = page.partition("<!-- measured: begin -->")[2].partition("<!-- measured: end -->")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == NAMES


def test_deis_s_clock_is_the_diffusion_s_time() -> None:
    """Of Karras et al. (2022), table 1: from 0.002 at a thousandth to 80 at 1, betas linear between."""
    assert [training_time(sigma) for sigma in (0.002, 80.0)] == pytest.approx([1e-3, 1], rel=1e-6)
    levels = torch.logspace(-2, 2, 30, dtype=torch.float64)
    times = torch.tensor([training_time(sigma) for sigma in levels.tolist()], dtype=torch.float64)
    known = torch.stack([times, times**2 / 2], 1)
    logs = (levels**2 + 1).log()
    betas = torch.linalg.lstsq(known, logs[:, None]).solution
    torch.testing.assert_close((known @ betas)[:, 0], logs, rtol=1e-9, atol=1e-12)


def test_seeds_without_noise_are_dpm_solver_s_single_steps() -> None:
    sigmas = measure.even(9)
    ours = measure.ours("seeds_2", sigmas, torch.float64, eta=0.0)
    assert measure.difference(ours, measure.theirs("dpmpp_2s_ancestral", sigmas, torch.float64, eta=0.0)) < 1e-12


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
    assert SAMPLERS[name](measure.posed(name, exact.mixture), x, sigmas, noise=lambda sigma, following: x) is x


@pytest.mark.parametrize("name", NAMES)
def test_leaves_its_input_alone(name: str) -> None:
    x = measure.start(torch.float32, 10.0)
    before = x.clone()
    noise, model = torch.ones_like(x), measure.posed(name, exact.mixture)
    SAMPLERS[name](model, x, measure.even(4), noise=lambda sigma, following: noise)
    assert bool((noise == 1).all())
    assert torch.equal(x, before)


def test_lagrange_integrals_are_exact_for_cubics() -> None:
    nodes, start, end = [3.0, 3.5, 5.0, 5.25], 3.0, 2.25
    weights = integrals(nodes, start, end)
    for power in range(4):
        wanted = (end ** (power + 1) - start ** (power + 1)) / (power + 1)
        assert sum(w * n**power for w, n in zip(weights, nodes, strict=True)) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("order", "z"), [(n, z) for n in (1, 2, 3) for z in (-30.0, -3.0, -1e-3, -1e-9, 0.0, 1e-5, 2.0)]
)
def test_phi_is_the_exponential_s_integral(order: int, z: float) -> None:
    def at(u: float) -> float:
        return math.exp((1 - u) * z) * u ** (order - 1) / math.factorial(order - 1)

    assert phi(order, z) == pytest.approx(integrate(at, 0.0, 0.5) + integrate(at, 0.5, 1.0), rel=1e-12)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "lcm"])
def test_draws_the_data_s_distribution(name: str) -> None:
    """Not lcm's, whose estimates are not samples.

    10,000 scalars of a two-peaked distribution: mean, variance, share of each peak.
    """
    generator = torch.Generator().manual_seed(5)
    sigmas = [10.0 * (0.01 / 10.0) ** (i / 40) for i in range(41)]
    x = torch.randn(10_000, generator=generator) * math.sqrt(10.0**2 + 1 + 0.3**2)
    end = SAMPLERS[name](
        measure.posed(name, exact.mixture),
        x,
        sigmas,
        noise=lambda sigma, following: torch.randn(x.shape, generator=generator),
    )
    assert float(end.mean()) == pytest.approx(0, abs=0.05)
    assert float((end > 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(end.abs().mean()) == pytest.approx(1.0, abs=0.05)
    assert float((end.abs() - 1).std()) == pytest.approx(0.3, abs=0.03)
