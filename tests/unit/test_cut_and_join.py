"""Nodes that cut, join, turn and blend: latents, images, masks and prompts."""

from __future__ import annotations

import math

import pytest
import torch
from test_nodes import go, problems
from torch import Tensor

from vortex_worker.executor.nodes.bislerp import bislerp

LATENT = torch.arange(2 * 4 * 12 * 10, dtype=torch.float32).reshape(2, 4, 12, 10)


def samples(op_type: str, **values: object) -> Tensor:
    out: Tensor = go(op_type, **values)["latent"]["samples"]
    return out


def test_latents_are_flipped_and_turned() -> None:
    given = {"samples": LATENT, "batch_index": [4, 5]}
    assert torch.equal(samples("LatentFlip", samples=given, flip_method="x-axis: vertically"), LATENT.flip(2))
    assert torch.equal(samples("LatentFlip", samples=given, flip_method="y-axis: horizontally"), LATENT.flip(3))
    assert torch.equal(samples("LatentRotate", samples=given), LATENT)
    turned = samples("LatentRotate", samples=given, rotation="90 degrees")
    assert turned.shape == (2, 4, 10, 12)
    assert torch.equal(turned[..., 0, :], LATENT[..., :, 0].flip(-1))  # clockwise: the left side is on top
    assert torch.equal(samples("LatentRotate", samples=given, rotation="180 degrees"), LATENT.flip(2, 3))
    assert go("LatentFlip", samples=given)["latent"]["batch_index"] == [4, 5]
    assert len(problems("LatentRotate", samples={"samples": torch.zeros(1, 4, 8)})) == 1


def test_latents_are_cut() -> None:
    given = {"samples": LATENT}
    cut = samples("LatentCrop", samples=given, width=64, height=72, x=8, y=16)
    assert torch.equal(cut, LATENT[:, :, 2:11, 1:9])
    assert torch.equal(samples("LatentCrop", samples=given, x=800, y=800), LATENT[:, :, 4:, 2:])  # 64 pixels are left


def test_latents_are_blended() -> None:
    one, other = {"samples": LATENT}, {"samples": LATENT * 3}
    torch.testing.assert_close(samples("LatentBlend", samples1=one, samples2=other, blend_factor=0.25), LATENT * 2.5)
    flat = {"samples": torch.full((1, 4, 6, 5), 2.0)}
    torch.testing.assert_close(samples("LatentBlend", samples1=one, samples2=flat, blend_factor=0.5), LATENT / 2 + 1)
    assert len(problems("LatentBlend", samples1=one, samples2={"samples": torch.zeros(2, 3, 12, 10)})) == 1


def turned(a: Tensor, b: Tensor, share: float) -> Tensor:
    """A vector that far from ``a`` to ``b``, by geometry: in their plane, at that part of their angle."""
    across = b / b.norm() - a / a.norm() * (a @ b / a.norm() / b.norm())
    angle = share * math.acos(float(a @ b / a.norm() / b.norm()))
    direction = a / a.norm() * math.cos(angle) + across / across.norm() * math.sin(angle)
    return direction * (a.norm() * (1 - share) + b.norm() * share)


def test_bislerp_turns_vectors_of_channels() -> None:
    a, b = torch.randn(2, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    out = bislerp(torch.stack([a, b], 1).reshape(1, 4, 1, 2).float(), 1, 4)[0, :, 0]
    for place, share in enumerate((0.0, 0.25, 0.75, 1.0)):
        torch.testing.assert_close(out[:, place], turned(a, b, share).float(), rtol=1e-5, atol=1e-5)


def test_bislerp_of_what_has_no_angle() -> None:
    parallel = torch.tensor([1.0, 3.0]).expand(1, 4, 1, 2)
    assert bislerp(parallel, 1, 4).isfinite().all()
    opposed = torch.tensor([1.0, -1.0]).expand(1, 4, 1, 2)
    torch.testing.assert_close(bislerp(opposed, 1, 4)[0, 0, 0], torch.tensor([1.0, 0.5, -0.5, -1.0]))
    assert not bislerp(torch.zeros(1, 4, 2, 2), 5, 5).any()
    noise = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(1)).half()
    assert torch.equal(bislerp(noise, 6, 5), noise)
    assert samples("LatentUpscale", samples={"samples": LATENT}, upscale_method="bislerp").shape == (2, 4, 64, 64)


def test_images_of_one_colour() -> None:
    image = go("EmptyImage", width=3, height=2, batch_size=2, color=0xFF8000)["image"]
    assert image.shape == (2, 2, 3, 3)
    assert (image == torch.tensor([1.0, 128 / 255, 0.0])).all()


def test_images_become_a_batch() -> None:
    one, other = torch.rand(2, 4, 6, 3), torch.rand(1, 8, 8, 3)
    batch = go("ImageBatch", image1=one, image2=other)["image"]
    assert batch.shape == (3, 4, 6, 3)
    assert torch.equal(batch[:2], one)
    alpha = go("ImageBatch", image1=torch.rand(1, 4, 6, 1), image2=torch.rand(1, 4, 6, 4))["image"]
    assert alpha.shape == (2, 4, 6, 4)
    assert (alpha[0, ..., 3] == 1).all()
    assert len(problems("ImageBatch", image1=one, image2=torch.rand(0, 4, 6, 3))) == 1


def test_images_are_cut() -> None:
    image = torch.rand(1, 8, 9, 3)
    assert torch.equal(go("ImageCrop", image=image, width=4, height=100, x=2, y=3)["image"], image[:, 3:, 2:6])
    assert go("ImageCrop", image=image, width=4, height=4, x=100, y=100)["image"].shape == (1, 1, 1, 3)


@pytest.mark.parametrize(("tapered", "area"), [(True, 13), (False, 25)])
def test_masks_grow_and_shrink(tapered: bool, area: int) -> None:
    mask = torch.zeros(1, 9, 9)
    mask[0, 4, 4] = 1
    grown = go("GrowMask", mask=mask, expand=2, tapered_corners=tapered)["mask"]
    assert grown.sum() == area
    assert torch.equal(go("GrowMask", mask=grown, expand=-2, tapered_corners=tapered)["mask"], mask)
    assert torch.equal(go("GrowMask", mask=mask[0])["mask"], mask)
    assert len(problems("GrowMask", mask=torch.zeros(1, 0, 4))) == 1


def test_masks_have_a_threshold() -> None:
    assert go("ThresholdMask", mask=torch.tensor([[[0.2, 0.5, 0.6]]]))["mask"].tolist() == [[[0, 0, 1]]]


def test_prompts_are_joined_and_averaged() -> None:
    one, other = torch.rand(1, 154, 8), torch.rand(1, 77, 8)
    first = [[one, {"pooled_output": torch.zeros(1, 4), "width": 64}]]
    second = [[other, {"pooled_output": torch.ones(1, 4)}]]
    ((tensor, options),) = go("ConditioningConcat", conditioning_to=first, conditioning_from=second)["conditioning"]
    assert torch.equal(tensor, torch.cat([one, other], 1))
    assert options == first[0][1]
    ((tensor, options),) = go(
        "ConditioningAverage", conditioning_to=first, conditioning_from=second, conditioning_to_strength=0.25
    )["conditioning"]
    torch.testing.assert_close(tensor[:, :77], one[:, :77] * 0.25 + other * 0.75)
    torch.testing.assert_close(tensor[:, 77:], one[:, 77:] * 0.25)
    assert (options["pooled_output"] == 0.75).all()
    assert options["width"] == 64
    narrow = [[torch.rand(1, 77, 6), {}]]
    assert len(problems("ConditioningConcat", conditioning_to=first, conditioning_from=narrow)) == 1
