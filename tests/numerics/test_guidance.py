"""Guidance: cond and uncond in one batch give what two separate runs give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counting import Counting, conditioning

from vortex_worker.errors import ValidationError
from vortex_worker.executor.nodes.sampling.guidance import guided, pair
from vortex_worker.executor.nodes.sampling.model import DiffusionModel

X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 5


@pytest.mark.parametrize("parametrization", ["eps", "v"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 7.5, 30.0])
@pytest.mark.parametrize("negative", [(0.3,), (0.3, -0.2, 0.9)], ids=["broadcast", "batch"])
def test_one_batch_equals_two_runs(parametrization: str, scale: float, negative: tuple[float, ...]) -> None:
    network = Counting()
    model = DiffusionModel(network, parametrization=parametrization)
    positive, negative_ = conditioning(1.0, 2.0, 3.0), conditioning(*negative)
    out = guided(model, positive, negative_, scale, X)(X, 2.5)
    assert [len(x) for x, _, _ in network.asked] == [6]

    with_ = model.denoise(X, 2.5, positive[0][0]).double()
    without = model.denoise(X, 2.5, negative_[0][0].expand(3, -1, -1)).double()
    torch.testing.assert_close(out.double(), without + (with_ - without) * scale, rtol=1e-5, atol=1e-5 * (1 + scale))


def test_scale_1_asks_for_the_positive_alone() -> None:
    network = Counting()
    model = DiffusionModel(network)
    positive = conditioning(1.0)
    out = guided(model, positive, [], 1.0, X)(X, 2.5)
    assert len(network.asked) == 1
    assert torch.equal(out, model.denoise(X, 2.5, positive[0][0].expand(3, -1, -1)))


def test_other_shapes_take_two_calls() -> None:
    network = Counting()
    model = DiffusionModel(network)
    positive, negative = conditioning(1.0, 2.0, 3.0, width=6), conditioning(0.3)
    out = guided(model, positive, negative, 7.5, X)(X, 2.5)
    assert [len(x) for x, _, _ in network.asked] == [3, 3]
    with_ = model.denoise(X, 2.5, positive[0][0]).double()
    without = model.denoise(X, 2.5, negative[0][0].expand(3, -1, -1)).double()
    torch.testing.assert_close(out.double(), without + (with_ - without) * 7.5, rtol=1e-5, atol=1e-4)


def test_each_call_has_its_own_sigma() -> None:
    network = Counting()
    denoiser = guided(DiffusionModel(network), conditioning(1.0), conditioning(0.0), 2.0, X)
    denoiser(X, 14.6)
    denoiser(X, 0.03)
    first, second = (t for _, t, _ in network.asked)
    assert first.shape == second.shape == (6,)
    assert float(first.min()) > 998
    assert float(second.max()) < 1


def test_integer_conditioning_stays_whole() -> None:
    network = Counting()
    classes = [[torch.tensor([[1], [2], [3]]), {}]]
    guided(DiffusionModel(network), classes, [[torch.tensor([[10]]), {}]], 2.0, X)(X, 1.0)
    assert network.asked[0][2].flatten().tolist() == [1, 2, 3, 10, 10, 10]
    assert network.asked[0][2].dtype == torch.int64


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (conditioning(1.0, 2.0), r"'positive' is a tensor \[2, 4, 5\]: its first dimension must be 1 or 3"),
        ([[torch.tensor(1.0), {}]], "first dimension"),
        ([], "'positive' has no conditioning in it"),
        ([[torch.zeros(1, 4, 5), {"gligen": 1, "concat": 2, "pooled_output": 3}]], "'positive' has concat, gligen"),
    ],
)
def test_refuses_what_it_can_t_serve(bad: list[Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        guided(DiffusionModel(Counting()), bad, conditioning(0.0), 2.0, X)


def pair_of(model: DiffusionModel, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    return pair(model, conditioning(1.0, 2.0, 3.0), conditioning(0.3), scale, X)(X, 2.5)


def test_a_pair_is_guided_and_unguided() -> None:
    network = Counting()
    model = DiffusionModel(network)
    guided_, unguided = pair_of(model, 7.5)
    assert len(network.asked) == 1
    assert torch.equal(guided_, guided(model, conditioning(1.0, 2.0, 3.0), conditioning(0.3), 7.5, X)(X, 2.5))
    alone = guided(model, conditioning(0.3), [], 1.0, X)(X, 2.5)
    torch.testing.assert_close(unguided, alone, rtol=1e-5, atol=1e-4)
    with_ = guided(model, conditioning(1.0, 2.0, 3.0), [], 1.0, X)(X, 2.5)
    torch.testing.assert_close(pair_of(model, 1.0)[0], with_, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2 GiB",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
    ],
)
def test_short_memory_splits_the_batch_from_then_on(message: str) -> None:
    network = Counting()

    def small(x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        out = network(x, t, cond)
        if len(x) > 3:
            raise torch.OutOfMemoryError(message) if "CUDA" in message else RuntimeError(message)
        return out

    model = DiffusionModel(small)
    denoiser = guided(model, conditioning(1.0, 2.0, 3.0), conditioning(0.3), 7.5, X)
    roomy = guided(DiffusionModel(Counting()), conditioning(1.0, 2.0, 3.0), conditioning(0.3), 7.5, X)
    for _ in range(2):
        torch.testing.assert_close(denoiser(X, 2.5), roomy(X, 2.5), rtol=1e-5, atol=1e-4)
    assert [len(x) for x, _, _ in network.asked] == [6, 3, 3, 3, 3]


def test_other_failures_are_not_tried_again() -> None:
    def broken(x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        pair_of(DiffusionModel(broken), 2.0)


@pytest.mark.parametrize("parametrization", ["eps", "v", "x0", "edm", "flow"])
@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaled_guidance_has_the_spread_of_the_prompt_s(parametrization: str, share: float) -> None:
    """Lin et al. (2024), equations 14 to 16, on the velocity that each model stands for."""
    sigma = 0.4
    model = DiffusionModel(Counting(), parametrization=parametrization)
    plain = pair_of_at(model, sigma)
    alone = guided(model, conditioning(1.0, 2.0, 3.0), [], 1.0, X)(X, sigma)
    out = pair_of_at(model.with_rescale(share), sigma)
    assert model.rescale == 0

    def velocity(denoised: torch.Tensor) -> torch.Tensor:
        if parametrization == "flow":
            return (X - denoised) / sigma
        return (X / (sigma**2 + 1) - denoised) * (sigma**2 + 1) ** 0.5 / sigma

    spread = [velocity(d).std((1, 2, 3)) for d in (out, plain, alone)]
    torch.testing.assert_close(spread[0], share * spread[2] + (1 - share) * spread[1], rtol=1e-4, atol=1e-5)
    directions = [torch.nn.functional.normalize(velocity(d).flatten(1)) for d in (out, plain)]
    torch.testing.assert_close(directions[0], directions[1], rtol=1e-4, atol=1e-5)


def pair_of_at(model: DiffusionModel, sigma: float) -> torch.Tensor:
    return guided(model, conditioning(1.0, 2.0, 3.0), conditioning(0.3), 7.5, X)(X, sigma)
