"""A latent as a small picture, without a VAE: rough colours, but what is where can be seen."""

from __future__ import annotations

import torch
from torch import Tensor

_SPREADS = 2.5  # standard deviations from the middle grey to black or white


def preview_of(latent: Tensor) -> Tensor:
    """The first sample of [B, C, …] as uint8 [height, width, 3], on the CPU.

    Its first three channels are red, green and blue, one alone is grey. Of more than two dimensions (frames) the
    first of each but the last two.
    """
    sample = latent[0].float()
    if sample.dim() == 2:  # [C, length]
        sample = sample[:, None]
    while sample.dim() > 3:
        sample = sample[:, 0]
    channels = sample[[0, min(1, len(sample) - 1), min(2, len(sample) - 1)]]
    mean, spread = channels.mean(), channels.std().clamp_min(1e-6)
    grey = ((channels - mean) / (2 * _SPREADS * spread) + 0.5).mul_(255).clamp_(0, 255)
    return grey.to(torch.uint8).permute(1, 2, 0).contiguous().cpu()
