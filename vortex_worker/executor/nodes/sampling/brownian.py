"""Noise for samplers of stochastic equations: increments of one Brownian path over sigma.

The path is a function of the seed alone: twice the steps see the same path at twice the resolution, so a picture
changes little. It is a virtual tree (Gaines and Lyons 1997): each interval is halved at its middle, and the middle's
value drawn from a seed that belongs to that place.

Seeds and halving are those of torchsde's ``BrownianTree`` (Li et al. 2020, arXiv 2001.01328), which ComfyUI and
k-diffusion draw from, so the same seed gives their noise to float32's rounding. torchsde itself is not used: it
imports scipy's compiled modules, which a locked worker can't load.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_DIGITS = 6  # times are rounded so: at most 2^24 halvings of Stable Diffusion's range, and never an endless one
_POOL = 24  # words of numpy's entropy pool
_KEPT = 64  # increments kept: what the next step asks for shares most of this one's path through the tree


class BrownianNoise:
    """``(sigma, following) → noise``: standard normal, of the shape of ``like``, float32 and on ``like``'s device.

    Args:
        lowest, highest: the ends of the path; what is asked for beyond counts from there.
        device: where it is drawn, which changes the noise. The CPU's is the same on every machine.
    """

    def __init__(
        self, like: Tensor, seed: int, lowest: float, highest: float, *, device: torch.device | None = None
    ) -> None:
        self._shape, self._onto = like.shape, like.device
        self._device = device or torch.device("cpu")
        self._seed = seed
        self._low, self._high = round(_single(lowest), _DIGITS), round(_single(highest), _DIGITS)
        top = int(np.random.SeedSequence(seed, pool_size=_POOL).generate_state(1)[0])
        self._whole = self._randn(top) * math.sqrt(self._high - self._low)
        self._cache: dict[tuple[int, int], Tensor] = {}

    def __call__(self, sigma: float, following: float) -> Tensor:
        low, high = (min(max(round(_single(t), _DIGITS), self._low), self._high) for t in (following, sigma))
        if low >= high:  # nearer than times are told apart
            return torch.zeros(self._shape, device=self._onto)
        moved = self._between(low, high, (self._low, self._high), self._whole, 0, 0)
        return moved.mul(-1 / math.sqrt(high - low)).to(self._onto)

    def _between(
        self, low: float, high: float, node: tuple[float, float], moved: Tensor, key: int, depth: int
    ) -> Tensor:
        """The path's increment from ``low`` to ``high``, in the node that moves by ``moved``."""
        start, end = node
        while (low, high) != (start, end):
            middle = round((start + end) / 2, _DIGITS)
            left = self._left(start, middle, end, moved, key, depth)
            depth += 1
            if low < middle < high:
                right = self._between(middle, high, (middle, end), moved - left, 2 * key + 1, depth)
                return self._between(low, middle, (start, middle), left, 2 * key, depth) + right
            if high <= middle:
                end, moved, key = middle, left, 2 * key
            else:
                start, moved, key = middle, moved - left, 2 * key + 1
        return moved

    def _left(self, start: float, middle: float, end: float, moved: Tensor, key: int, depth: int) -> Tensor:
        """The increment of a node's left half: of the node's own, what its length is due, and a bridge's noise."""
        known = self._cache.pop((key, depth), None)
        if known is None:
            words = np.random.SeedSequence(self._seed, spawn_key=(key, depth), pool_size=_POOL).generate_state(1)
            share = (middle - start) / (end - start)
            known = self._randn(int(words[0])).mul_(math.sqrt(share * (end - middle)))
            known.add_(moved, alpha=share)
        self._cache[(key, depth)] = known  # at the end of the order: the oldest go first
        if len(self._cache) > _KEPT:
            del self._cache[next(iter(self._cache))]
        return known

    def _randn(self, seed: int) -> Tensor:
        generator = torch.Generator(self._device).manual_seed(seed)
        return torch.randn(self._shape, generator=generator, device=self._device)


def _single(value: float) -> float:
    """As float32 has it: times that torchsde is asked for come from float32 sigmas."""
    return float(np.float32(value))
