"""A conditioned network that keeps what it was asked, and conditionings for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Counting:
    """A small network of fixed weights that keeps what it was asked."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(2, 2, 3, 3, generator=generator) * 0.3
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.asked.append((x, t.clone(), cond))
        shift = cond.float().flatten(1).mean(1) + torch.cos(t / 300)
        return torch.tanh(torch.conv2d(x, self.weight, padding=1) + shift.reshape(-1, 1, 1, 1))


def conditioning(*rows: float, width: int = 4) -> list[Any]:
    return [[torch.tensor(rows)[:, None, None].expand(-1, width, 5).clone(), {}]]
