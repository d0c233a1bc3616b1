"""KSamplerAdvanced: a run cut in parts gives what the whole gives. And RescaleCFG."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counting import Counting, conditioning
from measure import TABLE
from torch import Tensor

from vortex_worker.errors import ValidationError
from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.context import JobContext
from vortex_worker.executor.nodes.sampling.ksampler import KSampler, KSamplerAdvanced
from vortex_worker.executor.nodes.sampling.model import PARAMETRIZATIONS, DiffusionModel
from vortex_worker.executor.nodes.sampling.patches import RescaleCFG
from vortex_worker.executor.nodes.sampling.schedules import sigmas_for
from vortex_worker.executor.registry import spec_of
from vortex_worker.executor.validation import check_outputs, prepare

#: These keep nothing from step to step, and their noise's seed is told apart below.
MEMORYLESS = ["euler", "heun", "dpm_2", "exp_heun_2_x0", "euler_cfg_pp"]
NEVER = 10_000


def run(node_class: type[AbstractExecutor], inputs: dict[str, Any], **params: Any) -> dict[str, Any]:
    """One job, through validation as the runner does it."""
    node, spec = node_class(), spec_of(node_class, "built-in")
    ready, settings = prepare(spec, inputs, params)
    if problems := node.validate(ready, settings):
        raise ValidationError("; ".join(problems), problems=problems)
    node.context = JobContext()
    with torch.inference_mode():
        return check_outputs(spec, node.execute(ready, settings))


def advanced(latent: Any, model: DiffusionModel | None = None, **params: Any) -> Tensor:
    inputs = {
        "model": model or DiffusionModel(Counting(), latent_channels=2),
        "positive": conditioning(1.0, 2.0, 3.0),
        "negative": conditioning(0.2),
        "latent_image": latent if isinstance(latent, dict) else {"samples": latent},
    }
    settings = {"noise_seed": 7, "steps": 8, "cfg": 3.0, "scheduler": "karras", **params}
    return run(KSamplerAdvanced, inputs, **settings)["latent"]["samples"]


def empty() -> Tensor:
    return torch.zeros(3, 2, 4, 4)


@pytest.mark.parametrize("name", [*MEMORYLESS, "dpmpp_2m", "dpmpp_2m_sde", "euler_ancestral", "uni_pc"])
def test_the_whole_of_it_is_ksampler_s(name: str) -> None:
    inputs = {
        "model": DiffusionModel(Counting(), latent_channels=2),
        "positive": conditioning(1.0, 2.0, 3.0),
        "negative": conditioning(0.2),
        "latent": {"samples": empty()},
    }
    wanted = run(KSampler, inputs, seed=7, steps=8, cfg=3.0, scheduler="karras", sampler_name=name)
    assert torch.equal(advanced(empty(), sampler_name=name), wanted["latent"]["samples"])


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("name", MEMORYLESS)
def test_two_parts_are_the_whole(name: str, parametrization: str) -> None:
    model = DiffusionModel(Counting(), parametrization=parametrization, latent_scale=0.2, latent_shift=0.1)
    whole = advanced(empty(), model, sampler_name=name)
    middle = advanced(empty(), model, sampler_name=name, end_at_step=5, return_with_leftover_noise="enable")
    assert (middle - whole).abs().max() > 0.05
    rest = advanced(middle, model, sampler_name=name, start_at_step=5, add_noise="disable", noise_seed=99)
    torch.testing.assert_close(rest, whole, rtol=1e-3, atol=1e-3)


def test_without_leftover_noise_the_last_step_goes_to_0() -> None:
    network = Counting()
    cut = advanced(empty(), DiffusionModel(network), sampler_name="euler", end_at_step=5)
    assert len(network.asked) == 5
    noisy = advanced(empty(), sampler_name="euler", end_at_step=4, return_with_leftover_noise="enable")
    sigma = sigmas_for(TABLE, "karras", 8)[4]
    last = advanced(noisy, sampler_name="euler", start_at_step=4, end_at_step=5, add_noise="disable")
    torch.testing.assert_close(cut, last, rtol=1e-4, atol=1e-4)
    assert float(noisy.std()) > sigma / 2


def test_starts_from_the_sigma_of_its_first_step() -> None:
    latent = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    seen: list[Tensor] = []
    model = DiffusionModel(lambda x, t, cond: (seen.append(x), x)[1])
    advanced(latent, model, cfg=1.0, start_at_step=6)
    advanced(latent, model, cfg=1.0, start_at_step=6, add_noise="disable")
    assert len(seen) == 4
    sigma = sigmas_for(TABLE, "karras", 8)[6]
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(seen[0], (latent + noise * sigma) / (sigma**2 + 1) ** 0.5)
    torch.testing.assert_close(seen[2], latent / (sigma**2 + 1) ** 0.5)


@pytest.mark.parametrize(("first", "last"), [(8, NEVER), (20, NEVER), (5, 5), (5, 2), (0, 0)])
def test_no_step_gives_the_latent_back(first: int, last: int) -> None:
    latent, network = torch.ones(3, 2, 4, 4), Counting()
    out = advanced({"samples": latent}, DiffusionModel(network), start_at_step=first, end_at_step=last)
    assert out is latent
    assert network.asked == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_seed": 1 << 64}, "'noise_seed'"),
        ({"noise_seed": -1}, "'noise_seed'"),
        ({"start_at_step": 10_001}, "'start_at_step'"),
        ({"end_at_step": -1}, "'end_at_step'"),
        ({"add_noise": "yes"}, "'add_noise' is 'yes': it takes one of enable, disable"),
        ({"return_with_leftover_noise": True}, "'return_with_leftover_noise'"),
        ({"sampler_name": "dpmpp_2m_sd"}, "did you mean 'dpmpp_2m_sde'"),
        ({"scheduler": "linear"}, "'scheduler'"),
        ({"seed": 1}, "no parameter 'seed'"),
    ],
)
def test_refuses_and_says_why(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        advanced(empty(), **change)


def test_rescale_cfg_is_another_model() -> None:
    model = DiffusionModel(Counting(), latent_channels=2)
    out = run(RescaleCFG, {"model": model}, multiplier=0.4)["model"]
    assert (model.rescale, out.rescale) == (0, 0.4)
    assert out.network is model.network
    whole = advanced(empty(), model, cfg=9.0)
    assert not torch.equal(advanced(empty(), out, cfg=9.0), whole)
    assert torch.equal(advanced(empty(), run(RescaleCFG, {"model": model}, multiplier=0.0)["model"], cfg=9.0), whole)
    assert torch.equal(advanced(empty(), out, cfg=1.0), advanced(empty(), model, cfg=1.0))
    with pytest.raises(ValidationError, match="'model' is a object: it takes a DiffusionModel"):
        run(RescaleCFG, {"model": object()})
