"""One picture laid over another, pixels or latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def laid_over(below: Tensor, above: Tensor, x: int, y: int, mask: Tensor | None, *, resized: bool) -> Tensor:
    """``below`` with ``above`` on it, at column ``x`` and row ``y``; what is beyond its edges is cut off.

    Args:
        below, above: [batch, channels, height, width], of as many channels; above is repeated or cut to below's batch.
        mask: [batch, …, height, width], how much of ``above`` is seen, 0 to 1; resized to it. None: all of it.
        resized: make ``above`` as large as ``below`` first.
    """
    from torch.nn.functional import interpolate

    out = below.clone()
    above = above.to(below.dtype)
    if resized:
        above = interpolate(above, below.shape[-2:], mode="bilinear")
    height, width = above.shape[-2:]
    place = out[..., y : y + height, x : x + width]
    seen = (..., slice(place.shape[-2]), slice(place.shape[-1]))
    above = _repeated(above, len(below))[seen]
    if mask is None:
        place.copy_(above)
        return out
    mask = interpolate(mask.to(below.dtype).reshape(-1, 1, *mask.shape[-2:]), (height, width), mode="bilinear")
    place.copy_(place.lerp(above, _repeated(mask, len(below))[seen]))
    return out


def overlay_problems(below: Tensor, above: Tensor, mask: Tensor | None) -> list[str]:
    """What keeps ``source`` from being laid over ``destination``."""
    shapes = {"destination": below.shape, "source": above.shape}
    problems = [
        f"{name!r} is a tensor {list(shape)}: it takes four dimensions, none of them 0"
        for name, shape in shapes.items()
        if len(shape) != 4 or 0 in shape
    ]
    if mask is not None and (mask.dim() < 2 or 0 in mask.shape):
        problems.append(f"'mask' is a tensor {list(mask.shape)}: it takes [batch, height, width], none of them 0")
    return problems


def _repeated(planes: Tensor, batch: int) -> Tensor:
    times = -(-batch // len(planes))
    return planes.repeat(times, 1, 1, 1)[:batch]
