"""Stable Diffusion 3's transformer sees a latent in patches of 2 × 2: an odd side goes on at its other end."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")
import small_models

from vortex_worker.executor.diffusion.sd3 import Transformer


@pytest.mark.parametrize(("height", "width"), [(9, 7), (8, 7), (9, 8), (8, 8)])
def test_latents_of_any_size(height: int, width: int) -> None:
    network = Transformer(small_models.sd3().transformer)
    x = torch.randn(2, 16, height, width, generator=torch.Generator().manual_seed(0))
    given = {"cond": torch.ones(2, 4, 256), "pooled": torch.ones(2, 192)}
    rows, columns = ([*range(side), *[0] * (side % 2)] for side in (height, width))
    with torch.inference_mode():
        whole = network(x[..., rows, :][..., columns], torch.full((2,), 500.0), **given)
        out = network(x, torch.full((2,), 500.0), **given)
    torch.testing.assert_close(out, whole[..., :height, :width])
