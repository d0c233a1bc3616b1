"""Noise from seeds: the same on every machine, whatever device computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def initial(like: Tensor, seed: int, batch_index: Sequence[int] | None = None) -> Tensor:
    """Standard normal noise of the shape of ``like``, on the CPU: one draw for the whole batch.

    With ``batch_index`` each row gets the noise that it has at that place of a larger batch: rows
    are drawn one by one.

    Args:
        seed: 0 to 2^64 − 1.
    """
    generator = torch.Generator().manual_seed(seed)
    if batch_index is None:
        return torch.randn(like.shape, generator=generator, dtype=torch.float32)
    shape = (1, *like.shape[1:])
    rows = [torch.randn(shape, generator=generator) for _ in range(max(batch_index) + 1)]
    return torch.cat([rows[index] for index in batch_index])


class NoiseSource:
    """Fresh noise for each step of an ancestral sampler, from a seed of its own generator."""

    def __init__(self, like: Tensor, seed: int) -> None:
        self._like = like
        # One on: the start of the run was drawn with the seed itself.
        self._generator = torch.Generator().manual_seed((seed + 1) % (1 << 64))

    def __call__(self) -> Tensor:
        drawn = torch.randn(self._like.shape, generator=self._generator, dtype=torch.float32)
        return drawn.to(self._like.device)
