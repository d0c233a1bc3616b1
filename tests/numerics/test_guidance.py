"""Guidance: cond and uncond in one batch give what two separate runs give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counting import Counting, conditioning

from vortex_worker.errors import ValidationError
from vortex_worker.executor.nodes.sampling.guidance import guided
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

    sigma = torch.full((3,), 2.5)
    with_ = model.denoise(X, sigma, positive[0][0]).double()
    without = model.denoise(X, sigma, negative_[0][0].expand(3, -1, -1)).double()
    torch.testing.assert_close(out.double(), without + (with_ - without) * scale, rtol=1e-5, atol=1e-5 * (1 + scale))


def test_scale_1_asks_for_the_positive_alone() -> None:
    network = Counting()
    model = DiffusionModel(network)
    positive = conditioning(1.0)
    out = guided(model, positive, [], 1.0, X)(X, 2.5)
    assert len(network.asked) == 1
    assert torch.equal(out, model.denoise(X, torch.full((3,), 2.5), positive[0][0].expand(3, -1, -1)))


def test_other_shapes_take_two_calls() -> None:
    network = Counting()
    model = DiffusionModel(network)
    positive, negative = conditioning(1.0, 2.0, 3.0, width=6), conditioning(0.3)
    out = guided(model, positive, negative, 7.5, X)(X, 2.5)
    assert [len(x) for x, _, _ in network.asked] == [3, 3]
    sigma = torch.full((3,), 2.5)
    with_ = model.denoise(X, sigma, positive[0][0]).double()
    without = model.denoise(X, sigma, negative[0][0].expand(3, -1, -1)).double()
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
        (conditioning(1.0) * 2, "'positive' combines 2 conditionings: it takes one"),
        ([[torch.zeros(1, 4, 5), {"mask": 1, "area": 2, "pooled_output": 3}]], "'positive' has area, mask"),
    ],
)
def test_refuses_what_it_can_t_serve(bad: list[Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        guided(DiffusionModel(Counting()), bad, conditioning(0.0), 2.0, X)
