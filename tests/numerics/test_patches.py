"""Nodes that give a model asked otherwise: noise levels equal diffusers' schedulers', and pictures its pipelines'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counting import Counting
from test_ksampler_advanced import run

from vortex_worker.errors import ValidationError
from vortex_worker.executor.nodes.sampling.model import DiffusionModel, flow_sigmas, stable_diffusion_sigmas
from vortex_worker.executor.nodes.sampling.patches import ModelSamplingDiscrete, ModelSamplingSD3

diffusers = pytest.importorskip("diffusers")


def discrete(model: Any, **params: Any) -> DiffusionModel:
    found: DiffusionModel = run(ModelSamplingDiscrete, {"model": model}, **params)["model"]
    return found


def shifted(model: Any, **params: Any) -> DiffusionModel:
    found: DiffusionModel = run(ModelSamplingSD3, {"model": model}, **params)["model"]
    return found


def test_zero_terminal_levels_equal_diffusers() -> None:
    theirs = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    ).sigmas[:-1].flip(0)  # fmt: skip
    ours = discrete(DiffusionModel(Counting()), zsnr=True).sigmas
    torch.testing.assert_close(
        ours[:-1], theirs[:-1], rtol=2e-3, atol=0
    )  # float32's betas, cumulated, at small signals
    torch.testing.assert_close(ours[:900], theirs[:900], rtol=5e-5, atol=0)
    # An infinite sigma has a stand-in: ComfyUI's is another one than diffusers' 4096.
    assert ours[-1] == pytest.approx((1 / 4.8973451890853435e-08 - 1) ** 0.5)
    plain = stable_diffusion_sigmas().double()
    amplitude = 1 / (plain**2 + 1).sqrt()
    wanted = (amplitude - amplitude[-1]) * amplitude[0] / (amplitude[0] - amplitude[-1])
    torch.testing.assert_close(ours[:-1].double(), (1 / wanted[:-1] ** 2 - 1).sqrt(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0, 12.0])
def test_shifted_times_equal_diffusers(shift: float) -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift).sigmas.flip(0)
    for model in (DiffusionModel(Counting()), DiffusionModel(Counting(), parametrization="flow")):
        ours = shifted(model, shift=shift)
        assert ours.parametrization == "flow"
        torch.testing.assert_close(ours.sigmas, theirs, rtol=2e-6, atol=0)


@pytest.mark.parametrize(("said", "gives"), [("eps", "eps"), ("v_prediction", "v"), ("x0", "x0")])
def test_what_the_network_gives(said: str, gives: str) -> None:
    model = DiffusionModel(Counting(), latent_channels=2)
    other = discrete(model, sampling=said)
    assert (model.parametrization, other.parametrization) == ("eps", gives)
    assert other.network is model.network
    assert torch.equal(other.sigmas, model.sigmas)
    x, cond = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.ones(1, 4, 5)
    wanted = DiffusionModel(model.network, parametrization=gives).denoise(x, 2.0, cond)
    assert torch.equal(other.denoise(x, 2.0, cond), wanted)


def test_a_consistency_model_equals_diffusers() -> None:
    """Its 50 times, and what it keeps of x; any sigma between two levels is the nearer one's."""
    scheduler = diffusers.LCMScheduler()
    scheduler.set_timesteps(50)
    network = Counting()
    model = discrete(DiffusionModel(network), sampling="lcm")
    assert [model.time_of(sigma) for sigma in model.sigmas.flip(0).tolist()] == scheduler.timesteps.tolist()
    assert model.time_of(float(model.t_to_sigma(torch.tensor(3.4)))) == 79
    x, cond = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.ones(1, 4, 5)
    for place, t in ((0, 19), (7, 159), (49, 999)):
        sigma = float(model.sigmas[place])
        keep, take = scheduler.get_scalings_for_boundary_condition_discrete(t)
        scaled = x / (sigma**2 + 1) ** 0.5
        said = network(scaled, torch.tensor([float(t)]), cond)
        wanted = take * (x - sigma * said) + keep * x
        torch.testing.assert_close(model.denoise(x, sigma, cond), wanted, rtol=1e-5, atol=1e-5)


def test_the_last_one_holds_whatever_came_before() -> None:
    """As in ComfyUI, where each begins with what the model was trained on."""
    model = DiffusionModel(Counting())
    once = discrete(model, sampling="v_prediction", zsnr=True)
    again = discrete(discrete(shifted(once), zsnr=True), sampling="v_prediction", zsnr=True)
    assert torch.equal(once.sigmas, again.sigmas)
    assert torch.equal(discrete(again).sigmas, model.sigmas)
    assert torch.equal(shifted(again, shift=2.0).sigmas, flow_sigmas(2.0))


def test_refusals() -> None:
    with pytest.raises(ValidationError, match="'model' has no table of noise levels: it takes one of Stable Diffusion"):
        discrete(DiffusionModel(Counting(), parametrization="flow"))
    short = DiffusionModel(Counting(), sigmas=torch.arange(1, 41) / 10)
    with pytest.raises(ValidationError, match="'model' has 40 noise levels: lcm takes 50 or more"):
        discrete(short, sampling="lcm")
    with pytest.raises(ValidationError, match=r"'shift' is 0: it takes 0.001 to 100"):
        shifted(DiffusionModel(Counting()), shift=0)
    with pytest.raises(ValidationError, match=r"'sampling' is 'lcn'"):
        discrete(DiffusionModel(Counting()), sampling="lcn")
    with pytest.raises(ValidationError, match="'model' is a object: it takes a DiffusionModel"):
        shifted(object())
