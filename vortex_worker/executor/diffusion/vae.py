"""Autoencoders: pixels to latents and back. Latents are the VAE's own here; models scale them (`DiffusionModel`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vortex_worker.errors import ExecutionError

Report = Callable[[int, int], None]


class VAE:
    """diffusers' ``AutoencoderKL`` as image nodes use it."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        config: Any = module.config
        self.latent_channels = int(config.latent_channels)
        self.factor: int = 2 ** (len(config.block_out_channels) - 1)  # pixels to a latent's side

    def decode(self, samples: Tensor, report: Report) -> Tensor:
        """[B, C, h, w] → images [B, H, W, 3], 0 to 1; one at a time, which bounds the memory."""
        images = []
        for number, sample in enumerate(samples):
            images.append(_finite(self._decode(sample[None]), number, len(samples)))
            report(number + 1, len(samples))
        return _images(torch.cat(images))

    def encode(self, images: Tensor, report: Report) -> Tensor:
        """Images [B, H, W, C] → the mean latents [B, c, h, w]. Edges that fill no whole latent are cut off."""
        latents = []
        for number, image in enumerate(self.cropped(images)):
            latents.append(_finite(self._encode(image[None, ..., :3]), number, len(images)))
            report(number + 1, len(images))
        return torch.cat(latents)

    def cropped(self, images: Tensor) -> Tensor:
        """The middle of [B, H, W, …], both sides multiples of ``factor``."""
        for axis in (1, 2):
            kept = images.shape[axis] // self.factor * self.factor
            images = images.narrow(axis, (images.shape[axis] % self.factor) // 2, kept)
        return images

    def decode_tiled(self, samples: Tensor, size: int, overlap: int, report: Report) -> Tensor:
        """As ``decode``, in tiles of ``size`` latents that fade into each other over ``overlap``."""
        return _images(_tiled(samples, size, overlap, self._decode, self.factor, report))

    def encode_tiled(self, images: Tensor, size: int, overlap: int, report: Report) -> Tensor:
        """As ``encode``, in tiles of ``size`` pixels, a multiple of ``factor`` as ``overlap`` is."""
        planes = self.cropped(images)[..., :3].movedim(-1, 1)
        return _tiled(planes, size, overlap, lambda tile: self._encode(tile.movedim(1, -1)), 1 / self.factor, report)

    def _decode(self, samples: Tensor) -> Tensor:
        weight = next(self.module.parameters())
        pixels: Tensor = self.module.decode(samples.to(weight.device, weight.dtype)).sample
        return pixels.float().cpu()

    def _encode(self, images: Tensor) -> Tensor:
        weight = next(self.module.parameters())
        pixels = images.to(weight.device, weight.dtype).movedim(-1, 1) * 2 - 1
        if pixels.shape[1] == 1:
            pixels = pixels.expand(-1, 3, -1, -1)
        latents: Tensor = self.module.encode(pixels).latent_dist.mode()
        return latents.float().cpu()


def _finite(planes: Tensor, number: int, count: int) -> Tensor:
    """``planes``, if they are. A picture of NaN would be saved as a black one.

    Raises:
        ExecutionError: they aren't.
    """
    if not planes.isfinite().all():
        raise ExecutionError(f"the VAE gave NaN or infinity for picture {number + 1} of {count}")
    return planes


def _images(pixels: Tensor) -> Tensor:
    return (pixels / 2 + 0.5).clamp(0, 1).movedim(1, -1)


def _tiled(
    planes: Tensor, size: int, overlap: int, work: Callable[[Tensor], Tensor], factor: float, report: Report
) -> Tensor:
    """``work`` on tiles of [B, C, h, w], which makes each side ``factor`` times as long; overlaps are faded."""
    height, width = planes.shape[-2:]
    size = max(size, 2 * overlap, 1)
    rows, columns = _starts(height, size, overlap), _starts(width, size, overlap)
    total, whole = len(rows) * len(columns) * len(planes), []
    done = 0
    for number, plane in enumerate(planes):
        out = mass = None
        for top in rows:
            for left in columns:
                tile = work(plane[None, :, top : top + size, left : left + size])
                if out is None or mass is None:
                    out = torch.zeros(1, tile.shape[1], round(height * factor), round(width * factor))
                    mass = torch.zeros(1, 1, *out.shape[-2:])
                y, x = round(top * factor), round(left * factor)
                h, w = tile.shape[-2:]
                fade = round(overlap * factor)
                mask = _ramp(h, fade, top > 0, top + size < height)[:, None]
                mask = mask * _ramp(w, fade, left > 0, left + size < width)
                out[..., y : y + h, x : x + w] += tile * mask
                mass[..., y : y + h, x : x + w] += mask
                done += 1
                report(done, total)
        assert out is not None
        assert mass is not None
        whole.append(_finite(out / mass, number, len(planes)))
    return torch.cat(whole)


def _starts(length: int, size: int, overlap: int) -> list[int]:
    """Where tiles begin; the last ends where the picture does."""
    last = max(0, length - size)
    return [*range(0, last, max(1, size - overlap)), last]


def _ramp(length: int, fade: int, first: bool, last: bool) -> Tensor:
    """Weights along a tile: rising and falling over ``fade`` where it has a neighbour."""
    weights = torch.ones(length)
    if fade:
        edge = (torch.arange(fade) + 1) / (fade + 1)
        if first:
            weights[:fade] = edge
        if last:
            weights[-fade:] = torch.minimum(weights[-fade:], edge.flip(0))
    return weights
