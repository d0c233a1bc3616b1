"""A class-conditional U-Net for 28×28 digits, about a million parameters.

Predicts the noise (epsilon) of Ho et al., "Denoising Diffusion Probabilistic Models" (2020), on
Stable Diffusion's table of 1000 noise levels. Class 10 is "no class", for classifier-free guidance
(Ho and Salimans, 2022).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10
NULL = 10  # the class that stands for none
SIZE = 28  # pixels


def timestep_features(t: Tensor, dim: int) -> Tensor:
    """Sines and cosines of ``t`` [B] at ``dim / 2`` frequencies → [B, dim]."""
    frequencies = torch.exp(torch.arange(dim // 2, device=t.device) * (-math.log(10_000) / (dim // 2)))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Block(nn.Module):
    """A residual block whose second norm is scaled and shifted by time and class."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * outputs)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """Self-attention over the 7×7 positions of the deepest level."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(3, 4).unbind(1)
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(attended.transpose(2, 3).reshape(b, c, h, w))


class DigitsUNet(nn.Module):
    """``(x [B, 1, 28, 28], t [B], cond [B, 1])`` → noise [B, 1, 28, 28].

    ``x`` is already scaled by ``1 / sqrt(sigma² + 1)``; ``t`` is 0 to 999, fractions allowed;
    ``cond`` holds class numbers, 10 for none.
    """

    def __init__(self, width: int = 32, embedding: int = 128) -> None:
        super().__init__()
        a, b, c = width, 2 * width, 3 * width
        self.width = width
        self.classes = nn.Embedding(CLASSES + 1, embedding)
        self.time = nn.Sequential(nn.Linear(2 * width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.enter = nn.Conv2d(1, a, 3, padding=1)
        self.down1 = Block(a, a, embedding)
        self.down2 = Block(a, b, embedding)
        self.down3 = Block(b, c, embedding)
        self.middle1 = Block(c, c, embedding)
        self.attention = Attention(c)
        self.middle2 = Block(c, c, embedding)
        self.up3 = Block(2 * c, b, embedding)
        self.up2 = Block(2 * b, a, embedding)
        self.up1 = Block(2 * a, a, embedding)
        self.norm = nn.GroupNorm(8, a)
        self.leave = nn.Conv2d(a, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        embedding = F.silu(self.time(timestep_features(t, 2 * self.width)) + self.classes(cond.reshape(-1).long()))
        h1 = self.down1(self.enter(x), embedding)  # 28
        h2 = self.down2(F.avg_pool2d(h1, 2), embedding)  # 14
        h3 = self.down3(F.avg_pool2d(h2, 2), embedding)  # 7
        h = self.middle2(self.attention(self.middle1(h3, embedding)), embedding)
        h = self.up3(torch.cat([h, h3], 1), embedding)
        h = self.up2(torch.cat([F.interpolate(h, scale_factor=2.0), h2], 1), embedding)
        h = self.up1(torch.cat([F.interpolate(h, scale_factor=2.0), h1], 1), embedding)
        return self.leave(F.silu(self.norm(h)))
