"""Noise from seeds: drawn on the CPU, so the same whatever device computes.

Seeds are 0 to 2^64 − 1, of which torch's CPU generator, a Mersenne Twister, reads the low 32 bits: seeds
that differ only above them give the same noise, here as in ComfyUI.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def initial(like: Tensor, seed: int, batch_index: Sequence[int] | None = None) -> Tensor:
    """Standard normal noise of the shape of ``like``, float32: one draw for the whole batch.

    With ``batch_index`` each row gets what it would get at that place of a batch drawn row by row:
    one image of a batch can be made again alone.
    """
    generator = torch.Generator().manual_seed(seed)
    if batch_index is None:
        return torch.randn(like.shape, generator=generator)
    places: dict[int, list[int]] = {}
    for row, index in enumerate(batch_index):
        places.setdefault(index, []).append(row)
    out = torch.empty(like.shape)
    for index in range(max(batch_index) + 1):
        drawn = torch.randn(like.shape[1:], generator=generator)
        for row in places.get(index, ()):
            out[row] = drawn
    return out


class NoiseSource:
    """``(sigma, following) → noise``: fresh noise for each step of a sampler that adds it.

    Its generator is its own, seeded one higher: the start of the run was drawn with the seed itself.
    """

    def __init__(self, like: Tensor, seed: int) -> None:
        self._shape, self._device = like.shape, like.device
        self._generator = torch.Generator().manual_seed((seed + 1) % (1 << 64))

    def __call__(self, sigma: float, following: float) -> Tensor:
        return torch.randn(self._shape, generator=self._generator).to(self._device)
