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
    channels = sample[:3] if len(sample) >= 3 else sample[[0, -1, -1]]
    spread, mean = torch.std_mean(channels)
    grey = (channels - mean).mul_(127.5 / _SPREADS / spread.clamp_min_(1e-6)).add_(127.5).clamp_(0, 255)
    return grey.to(torch.uint8).permute(1, 2, 0).contiguous().cpu()
