"""Conditionings of several entries, with areas, masks, strengths and times: the averages that ComfyUI takes.

What is expected is written out in NumPy, from the rule: each entry is asked of its part, and a place gets the mean of
what is said of it, by weight.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vortex_worker.errors import ValidationError
from vortex_worker.executor.context import JobContext
from vortex_worker.executor.nodes.sampling.guidance import guided, pair
from vortex_worker.executor.nodes.sampling.model import DiffusionModel
from vortex_worker.executor.registry import Registry
from vortex_worker.executor.runner import run

HEIGHT, WIDTH, SIGMA = 24, 40, 2.5
X = torch.randn(2, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 3
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
REGISTRY = Registry()
REGISTRY.load_builtin()


class Seen:
    """A network that gives data: of each pixel, its conditioning, and the mean of all that it is shown."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor, bias: Tensor | None = None) -> Tensor:
        self.asked.append(tuple(x.shape))
        value = cond[:, 0, 0].reshape(-1, 1, 1, 1)
        more = 0 if bias is None else bias.reshape(-1, 1, 1, 1)
        return torch.tanh(x + value) + x.mean((1, 2, 3), keepdim=True) + more


def said(value: float, x: np.ndarray, sigma: float = SIGMA) -> np.ndarray:
    """What ``Seen`` says, in float64."""
    scaled = x.astype(np.float64) / math.sqrt(sigma**2 + 1)
    return np.asarray(np.tanh(scaled + value) + scaled.mean((1, 2, 3), keepdims=True))


def entry(value: float, **options: Any) -> list[Any]:
    return [torch.full((1, 3, 5), value), options]


def model(seen: Seen | None = None) -> DiffusionModel:
    return DiffusionModel(seen or Seen(), parametrization="x0")


def mean(*asked: tuple[float, np.ndarray, tuple[int, int, int, int]]) -> np.ndarray:
    """Of values, their weights, and the areas (height, width, y, x) that they are asked of."""
    total, weights = np.zeros(X.shape), np.zeros(X.shape)
    for value, weight, (h, w, y, x) in asked:
        place = np.s_[:, :, y : y + h, x : x + w]
        total[place] += said(value, X.numpy()[place]) * weight
        weights[place] += weight
    return np.divide(total, weights, out=np.zeros(X.shape), where=weights > 0)


def ramp(side: int, begin: int, whole: int) -> np.ndarray:
    """Weights along a side of an area: they grow from those of its ends that lie inside the picture."""
    rows = max(1, min(8, side // 4))  # 1: no fading
    place = np.arange(side)
    line = np.ones(side)
    if begin > 0:
        line *= np.minimum(1, (place + 1) / rows)
    if begin + side < whole:
        line *= np.minimum(1, (side - place) / rows)
    return line


def faded(h: int, w: int, y: int, x: int) -> np.ndarray:
    return ramp(h, y, HEIGHT)[:, None] * ramp(w, x, WIDTH)


ALL = (HEIGHT, WIDTH, 0, 0)
ONE = np.ones((HEIGHT, WIDTH))


def close(given: Tensor, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(given.numpy(), wanted, **CLOSE)


def test_several_are_averaged_by_their_strengths() -> None:
    positive = [entry(0.5), entry(-1.0, strength=3.0), entry(2.0, strength=0.0)]
    with_, without = pair(model(), positive, [entry(0.1)], 7.0, X)(X, SIGMA)
    wanted = (said(0.5, X.numpy()) + 3 * said(-1.0, X.numpy())) / 4
    close(without, said(0.1, X.numpy()))
    np.testing.assert_allclose(
        with_.numpy(), said(0.1, X.numpy()) + 7 * (wanted - said(0.1, X.numpy())), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("area", [(12, 16, 6, 10), (10, 40, 14, 0), (24, 9, 0, 31), (3, 3, 5, 5), (24, 40, 0, 0)])
def test_an_area_fades_at_its_inner_edges_and_is_set_against_the_same_area(area: tuple[int, int, int, int]) -> None:
    positive = [entry(0.5), entry(-1.0, area=list(area), strength=2.0)]
    with_, without = pair(model(), positive, [entry(0.1)], 1.0, X)(X, SIGMA)
    fade = 2 * faded(*area)
    close(with_, mean((0.5, ONE, ALL), (-1.0, fade, area)))
    close(without, mean((0.1, ONE, ALL), (0.1, fade, area)))


def test_what_the_smallest_area_around_it_says_is_set_against_an_area() -> None:
    outer, inner = (16, 32, 4, 4), (8, 12, 6, 8)
    negative = [entry(0.1), entry(0.9, area=outer)]
    with_, without = pair(model(), [entry(-1.0, area=inner)], negative, 1.0, X)(X, SIGMA)
    close(without, mean((0.1, ONE, ALL), (0.9, faded(*outer), outer), (0.9, faded(*inner), inner)))
    close(with_, mean((-1.0, faded(*inner), inner)))  # it says nothing of the outer area, nor elsewhere: 0 there


def test_an_area_is_cut_to_the_picture_and_may_be_given_in_shares() -> None:
    def of(area: list[Any]) -> Tensor:
        return guided(model(), [entry(0.5), entry(-1.0, area=area)], [], 1.0, X)(X, SIGMA)

    wanted = mean((0.5, ONE, ALL), (-1.0, faded(12, 10, 12, 30), (12, 10, 12, 30)))
    close(of([400, 500, 12, 30]), wanted)
    close(of(["percentage", 0.5, 0.25, 0.5, 0.75]), wanted)


def resized(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, the centres of pixels between those of the given ones."""

    def along(size: int, count: int) -> np.ndarray:
        at = np.clip((np.arange(count) + 0.5) * size / count - 0.5, 0, size - 1)
        return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(size)))

    return along(mask.shape[0], height) @ mask @ along(mask.shape[1], width).T


def test_a_mask_weighs_each_place() -> None:
    mask = np.random.default_rng(0).random((7, 11))
    options = {"mask": torch.from_numpy(mask).float(), "mask_strength": 1.5, "strength": 0.5}
    out = guided(model(), [entry(0.5), entry(-1.0, **options)], [], 1.0, X)(X, SIGMA)
    close(out, mean((0.5, ONE, ALL), (-1.0, 0.75 * resized(mask, HEIGHT, WIDTH), ALL)))


def test_there_may_be_a_mask_for_each_of_the_batch() -> None:
    masks = np.random.default_rng(1).random((2, HEIGHT, WIDTH))
    out = guided(model(), [entry(0.5), entry(-1.0, mask=torch.from_numpy(masks))], [], 1.0, X)(X, SIGMA)
    close(out, mean((0.5, ONE, ALL), (-1.0, masks[:, None], ALL)))


def test_a_mask_in_an_area_does_not_fade() -> None:
    mask = np.random.default_rng(2).random((HEIGHT, WIDTH))
    area, place = (12, 16, 6, 10), np.s_[6:18, 10:26]
    masked = entry(-1.0, area=area, mask=torch.from_numpy(mask))
    close(
        guided(model(), [entry(0.5), masked], [], 1.0, X)(X, SIGMA),
        mean((0.5, ONE, ALL), (-1.0, mask[place], area)),
    )


@pytest.mark.parametrize(
    ("rows", "columns", "bounds"),
    [((3, 15), (20, 39), (12, 19, 3, 20)), ((22, 24), (38, 40), (2, 2, 22, 38)), ((5, 6), (7, 8), (8, 8, 5, 7))],
)
def test_the_network_may_see_the_rectangle_around_a_mask_alone(
    rows: tuple[int, int], columns: tuple[int, int], bounds: tuple[int, int, int, int]
) -> None:
    mask = np.zeros((HEIGHT, WIDTH))
    mask[slice(*rows), slice(*columns)] = 0.7
    seen, (h, w, y, x) = Seen(), bounds
    options = {"mask": torch.from_numpy(mask), "set_area_to_bounds": True}
    out = guided(model(seen), [entry(0.5), entry(-1.0, **options)], [], 1.0, X)(X, SIGMA)
    assert (2, 4, h, w) in seen.asked
    close(out, mean((0.5, ONE, ALL), (-1.0, mask[y : y + h, x : x + w], bounds)))


def test_an_empty_mask_says_nothing() -> None:
    options = {"mask": torch.zeros(HEIGHT, WIDTH), "set_area_to_bounds": True}
    out = guided(model(), [entry(0.5), entry(-1.0, **options)], [], 1.0, X)(X, SIGMA)
    close(out, said(0.5, X.numpy()))


def test_each_holds_for_its_part_of_the_way() -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)
    levels = np.log(np.sqrt((1 - kept) / kept))
    middle = math.exp(np.interp(0.7 * 999, np.arange(1000), levels))  # three tenths of the way
    positive = [entry(0.5, end_percent=0.3), entry(-1.0, start_percent=0.3), entry(2.0, start_percent=1.0)]
    denoiser = guided(model(), positive, [], 1.0, X)
    for sigma, value in ((1e9, 0.5), (middle * 1.001, 0.5), (middle * 0.999, -1.0), (1e-3, -1.0), (middle * 2, 0.5)):
        np.testing.assert_allclose(denoiser(X, sigma).numpy(), said(value, X.numpy(), sigma), **CLOSE)


def test_a_flows_way_is_its_time() -> None:
    flow = DiffusionModel(lambda x, t, cond: (x - cond[:, :1, :1, None]) / t[0] * 1000, parametrization="flow")
    denoiser = guided(flow, [entry(0.5, end_percent=0.25), entry(-1.0, start_percent=0.25)], [], 1.0, X)
    for time, value in ((1.0, 0.5), (0.751, 0.5), (0.749, -1.0), (0.01, -1.0)):
        torch.testing.assert_close(denoiser(X, time), torch.full_like(X, value), atol=1e-5, rtol=0)


def test_where_nobody_says_anything_there_is_nothing() -> None:
    denoiser = guided(model(), [entry(0.5, start_percent=0.5)], [], 1.0, X)
    assert torch.equal(denoiser(X, 1e9), torch.zeros_like(X))


def test_entries_of_one_shape_go_in_one_batch_until_memory_is_short() -> None:
    seen = Seen()

    def small(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        out = seen(x, t, cond)
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return out

    positive = [entry(0.5), entry(-1.0, strength=2.0), entry(0.3, area=(8, 8, 0, 0))]
    wanted = pair(model(seen), positive, [entry(0.1)], 3.0, X)(X, SIGMA)
    whole, part = (6, 4, HEIGHT, WIDTH), (4, 4, 8, 8)  # the negative has an entry for the area, too
    assert seen.asked == [whole, part]
    seen.asked.clear()
    tight = pair(DiffusionModel(small, parametrization="x0"), positive, [entry(0.1)], 3.0, X)
    for _ in range(2):
        for given, expected in zip(tight(X, SIGMA), wanted, strict=True):
            torch.testing.assert_close(given, expected, **CLOSE)
    assert seen.asked[0] == whole
    assert sorted(seen.asked[1:]) == sorted([(2, 4, HEIGHT, WIDTH)] * 6 + [(2, 4, 8, 8)] * 4)


def test_without_guidance_the_negative_is_not_asked() -> None:
    seen = Seen()
    guided(model(seen), [entry(0.5), entry(-1.0)], [entry(0.1), entry(0.2)], 1.0, X)(X, SIGMA)
    assert seen.asked == [(4, 4, HEIGHT, WIDTH)]


def test_each_entry_has_its_own_extras() -> None:
    def extras(options: Any, like: Tensor) -> dict[str, Tensor]:
        return {"bias": options["pooled_output"]}

    pooled = DiffusionModel(Seen(), parametrization="x0", extras=extras)
    positive = [entry(0.5, pooled_output=torch.tensor([[1.0]])), entry(0.5, pooled_output=torch.tensor([[4.0]]))]
    close(guided(pooled, positive, [], 1.0, X)(X, SIGMA), said(0.5, X.numpy()) + 2.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"area": 2}, "'positive', entry 2 of 2, has a bad area: it takes height, width, y and x"),
        ({"area": [8, 8, 0, "x"]}, "bad area"),
        ({"area": ["percentage", 0.5, 0.5, 0.0, 2.0]}, "bad area"),
        ({"area": [8, 8, HEIGHT, 0]}, "lies outside the latent's 24 × 40"),
        ({"area": [8, 8, -1, 0]}, "lies outside"),
        ({"area": [0, 8, 0, 0]}, "lies outside"),
        ({"area": ["percentage", 0.5, 0.5, 0.0, 1.0]}, "lies outside"),
        ({"mask": torch.zeros(3, 8, 8)[:0]}, "has a bad mask"),
        ({"mask": "m"}, "has a bad mask"),
        ({"strength": math.nan}, "has strength, which must be finite numbers"),
        ({"start_percent": "0.5"}, "has start_percent"),
        ({"concat": 1, "gligen": 2}, "has concat, gligen, which are not supported"),
    ],
)
def test_refuses_what_makes_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        guided(model(), [entry(0.5), entry(0.1, **options)], [entry(0.2)], 2.0, X)


def test_areas_are_for_pictures() -> None:
    flat = torch.zeros(2, 4, 9)
    with pytest.raises(ValidationError, match="an area or a mask, for latents"):
        guided(model(), [entry(0.5, area=(8, 8, 0, 0))], [entry(0.2)], 2.0, flat)


def go(op_type: str, **values: Any) -> Any:
    executor, spec = REGISTRY.get(op_type)
    return run(executor, spec, {}, values, JobContext(), save=lambda out: out, free_memory=lambda: None).saved


def test_nodes_say_it_as_the_sampler_reads_it() -> None:
    one, other = [entry(0.5)], [entry(-1.0)]
    mask = torch.zeros(1, 8 * HEIGHT, 8 * WIDTH)
    mask[:, 64:, 128:] = 1

    def node(name: str, **params: Any) -> Any:
        return go(name, conditioning=other, **params)["conditioning"]

    area = node("ConditioningSetArea", width=128, height=96, x=80, y=48, strength=2.0)
    share = node("ConditioningSetAreaPercentage", width=0.4, height=0.5, x=0.25, y=0.25, strength=2.0)
    timed = go("ConditioningSetTimestepRange", conditioning=area, start=0.5, end=1.0)["conditioning"]
    assert timed[0][1].items() >= {"start_percent": 0.5, "end_percent": 1.0, "strength": 2.0}.items()
    assert node("ConditioningSetAreaStrength", strength=3.0)[0][1] == {"strength": 3.0}
    masked = node("ConditioningSetMask", mask=mask, strength=2.0, set_cond_area="mask bounds")
    assert other[0][1] == {}  # what is given stays as it is

    def asked(conditioning: Any) -> Tensor:
        both = go("ConditioningCombine", conditioning_1=one, conditioning_2=conditioning)["conditioning"]
        return guided(model(), both, one, 1.0, X)(X, SIGMA)

    rectangle, corner = (12, 16, 6, 10), (HEIGHT - 8, WIDTH - 16, 8, 16)
    close(asked(area), mean((0.5, ONE, ALL), (-1.0, 2 * faded(*rectangle), rectangle)))
    close(asked(share), mean((0.5, ONE, ALL), (-1.0, 2 * faded(*rectangle), rectangle)))
    close(asked(masked), mean((0.5, ONE, ALL), (-1.0, 2 * np.ones(corner[:2]), corner)))


def test_an_entry_for_all_of_the_picture_and_the_way_samples_as_a_plain_one() -> None:
    def latent(positive: Any) -> Tensor:
        out: Tensor = go(
            "KSampler", model=model(), positive=positive, negative=[entry(0.1)], steps=4, cfg=3.0,
            latent={"samples": torch.zeros_like(X)}, scheduler="karras",
        )["latent"]["samples"]  # fmt: skip
        return out

    options = {"area": ["percentage", 1.0, 1.0, 0.0, 0.0], "strength": 2.0, "start_percent": 0.0, "end_percent": 1.0}
    torch.testing.assert_close(latent([entry(0.5, **options)]), latent([entry(0.5)]), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValidationError, match="lies outside"):
        latent([entry(0.5, area=[8, 8, 99, 0])])
