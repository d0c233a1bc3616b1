"""Nodes that lay images, latents and masks over others, or cut and feather masks: NumPy says what must come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_nodes import go, problems
from torch import Tensor

RANDOM = np.random.default_rng(0)
BELOW, ABOVE = RANDOM.random((2, 3, 12, 10), np.float32), RANDOM.random((1, 3, 5, 4), np.float32)
MASK = RANDOM.random((5, 4), np.float32)


def image(planes: np.ndarray) -> Tensor:
    return torch.from_numpy(planes).movedim(1, -1)


def close(given: Tensor, wanted: Any) -> None:
    np.testing.assert_allclose(given.numpy(), wanted, rtol=0, atol=1e-6)


def overlaid(x: int, y: int, mask: np.ndarray | None = None) -> np.ndarray:
    """Pixel by pixel."""
    out = BELOW.copy()
    for row in range(ABOVE.shape[2]):
        for column in range(ABOVE.shape[3]):
            if y + row < out.shape[2] and x + column < out.shape[3]:
                seen = 1 if mask is None else mask[row, column]
                place = np.s_[:, :, y + row, x + column]
                out[place] = ABOVE[:, :, row, column] * seen + out[place] * (1 - seen)
    return out


@pytest.mark.parametrize(("x", "y"), [(0, 0), (3, 2), (8, 10), (10, 0), (99, 99)])
@pytest.mark.parametrize("mask", [None, MASK])
def test_one_is_laid_over_another_and_cut_at_its_edges(x: int, y: int, mask: np.ndarray | None) -> None:
    masked = {} if mask is None else {"mask": torch.from_numpy(mask)}
    pixels = go("ImageCompositeMasked", destination=image(BELOW), source=image(ABOVE), x=x, y=y, **masked)["image"]
    close(pixels, overlaid(x, y, mask).transpose(0, 2, 3, 1))
    below, above = {"samples": torch.from_numpy(BELOW), "batch_index": [3, 4]}, {"samples": torch.from_numpy(ABOVE)}
    latent = go("LatentCompositeMasked", destination=below, source=above, x=8 * x + 7, y=8 * y, **masked)["latent"]
    close(latent["samples"], overlaid(x, y, mask))
    assert latent["batch_index"] == [3, 4]


def test_what_is_laid_over_may_be_resized_and_so_is_its_mask() -> None:
    flat, half = torch.full((1, 3, 3, 3), 0.25), torch.full((1, 40, 40), 0.5)
    out = go("ImageCompositeMasked", destination=image(BELOW), source=flat, resize_source=True, mask=half)["image"]
    close(out, (0.125 + BELOW / 2).transpose(0, 2, 3, 1))


def test_each_of_a_batch_gets_its_own() -> None:
    sources = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 2, 2, 3) / 4
    out = go("ImageCompositeMasked", destination=torch.ones(2, 2, 2, 3), source=sources)["image"]
    assert out[:, 0, 0, 0].tolist() == [0, 0.25]
    masks = torch.tensor([0.0, 1.0]).reshape(2, 1, 1).expand(2, 2, 2)
    out = go("ImageCompositeMasked", destination=torch.ones(4, 2, 2, 3), source=sources[:1], mask=masks)["image"]
    assert out[:, 0, 0, 0].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(("below", "above", "wanted"), [(3, 4, [0.5] * 3), (4, 3, [0.5] * 3 + [1]), (4, 1, [0.5] * 3 + [1]), (1, 3, [0.5])])  # fmt: skip  # noqa: E501
def test_channels_are_those_of_the_lower_one(below: int, above: int, wanted: list[float]) -> None:
    source = torch.full((1, 2, 2, above), 0.5)
    out = go("ImageCompositeMasked", destination=torch.zeros(1, 2, 2, below), source=source)["image"]
    assert out[0, 0, 0].tolist() == wanted


def test_what_can_t_be_laid_over_is_refused() -> None:
    one, other = {"samples": torch.zeros(1, 4, 8, 8)}, {"samples": torch.zeros(1, 16, 8, 8)}
    assert problems("LatentCompositeMasked", destination=one, source=other) == [
        "'source' has 16 channels: it can't be laid over the 4 of 'destination'"
    ]
    flat = {"samples": torch.zeros(1, 4, 8)}
    assert len(problems("LatentCompositeMasked", destination=flat, source=flat)) == 2
    empty = torch.zeros(1, 0, 4)
    assert len(problems("LatentCompositeMasked", destination=one, source=one, mask=empty)) == 1


@pytest.mark.parametrize("operation", ["multiply", "add", "subtract", "and", "or", "xor"])
@pytest.mark.parametrize(("x", "y"), [(2, 3), (8, 10), (12, 0)])
def test_masks_are_combined(operation: str, x: int, y: int) -> None:
    below, above = BELOW[:, 0], MASK
    wanted = below.copy()
    place = wanted[:, y : y + 5, x : x + 4]
    part = above[: place.shape[1], : place.shape[2]]
    one, other = place > 0.5, part > 0.5
    place[:] = {
        "multiply": place * part, "add": np.minimum(place + part, 1), "subtract": np.maximum(place - part, 0),
        "and": one & other, "or": one | other, "xor": one ^ other,
    }[operation]  # fmt: skip
    given = {"destination": torch.from_numpy(below), "source": torch.from_numpy(above)}
    close(go("MaskComposite", **given, x=x, y=y, operation=operation)["mask"], wanted)
    close(given["destination"], BELOW[:, 0])  # what is given stays as it is


def test_masks_that_don_t_go_together_are_refused() -> None:
    assert problems("MaskComposite", destination=torch.zeros(2, 4, 4), source=torch.zeros(3, 4, 4)) == [
        "'source' has 3 masks: it takes 1 or 2"
    ]


def test_masks_are_cut() -> None:
    mask = torch.from_numpy(BELOW[:, 0])
    close(go("CropMask", mask=mask, x=3, y=2, width=4, height=5)["mask"], BELOW[:, 0, 2:7, 3:7])
    close(go("CropMask", mask=mask[0], x=8, y=10)["mask"], BELOW[:1, 0, 10:, 8:])
    assert problems("CropMask", mask=mask, x=10, y=12) == [
        "'x' is 10: 'mask' has 10 columns", "'y' is 12: 'mask' has 12 rows"
    ]  # fmt: skip


def test_masks_fade_to_each_side() -> None:
    sides = {"left": 4, "top": 0, "right": 2, "bottom": 50}
    out = go("FeatherMask", mask=torch.full((1, 5, 8), 0.5), **sides)["mask"]
    across = np.array([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.5])
    down = np.array([1, 0.8, 0.6, 0.4, 0.2])  # all of it, which is less than 50
    close(out, 0.5 * np.outer(down, across)[None])
