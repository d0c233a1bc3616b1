"""Resizing by turning: between two pixels a vector of channels turns evenly, and its length changes evenly.

ComfyUI's ``bislerp`` for latents, of Shoemake's slerp (1985, "Animating rotation with quaternion curves"): a plain mean
of two noisy latents would be shorter than either.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_PARALLEL = 1e-5  # of a cosine from 1 or −1: no angle to divide by


def bislerp(planes: Tensor, height: int, width: int) -> Tensor:
    """[batch, channels, height, width] → the new size, across and then down, computed in float32."""
    across = _along_the_last(planes.float(), width)
    return _along_the_last(across.movedim(-2, -1), height).movedim(-1, -2).to(planes.dtype)


def _along_the_last(planes: Tensor, size: int) -> Tensor:
    old = planes.shape[-1]
    place = interpolate(torch.arange(old, dtype=torch.float32)[None, None], size, mode="linear")[0, 0]
    first = place.long()
    return _turned(planes[..., first], planes[..., (first + 1).clamp_max(old - 1)], place.frac())


def _turned(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """``share`` of the way from the vectors ``a`` to ``b``, along dimension 1."""
    lengths = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    one, other = (torch.where(n > 0, v / n, 0) for v, n in zip((a, b), lengths, strict=True))
    cosine = (one * other).sum(1, keepdim=True)
    angle = cosine.clamp(-1, 1).acos()
    turned = (one * ((1 - share) * angle).sin() + other * (share * angle).sin()) / angle.sin()
    turned = turned * torch.lerp(*lengths, share)
    turned = torch.where(cosine > 1 - _PARALLEL, a, turned)
    return torch.where(cosine < _PARALLEL - 1, torch.lerp(a, b, share), turned)
