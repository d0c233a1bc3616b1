"""Conditionings of several entries: each is asked of its part of the picture, for its part of the way.

What they say is averaged by their strengths, as ComfyUI does. An entry's options are ComfyUI's:

``area``
    height, width, y and x of the latent, or ``"percentage"`` and the same in shares of it. The network sees this
    rectangle alone. Its inner edges fade over 8 rows, or a quarter of it where that is less.
``mask``
    weights [height, width], resized to the latent, with ``mask_strength`` times as much. ``set_area_to_bounds``:
    the network sees the rectangle where it isn't 0 alone.
``strength``
    the entry's weight.
``start_percent``, ``end_percent``
    from where to where on the way from noise to picture it is asked, 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vortex_worker import device
from vortex_worker.executor.nodes.sampling.conditioning import Area, Conditioning, area_of, tensors_of
from vortex_worker.executor.nodes.sampling.model import DiffusionModel

_FADED = 8  # rows at an area's edge, at most
_LEAST_SIDE = 8  # of the rectangle around a mask
_NOTHING = 1e-37  # so that 0 / 0 is 0, where no entry says anything


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry, its options read. ``weight``: [B or 1, 1, …], of its area; ``first``, ``last``: sigmas."""

    cond: Tensor
    extras: dict[str, Tensor]
    area: Area | None
    weight: Tensor
    first: float
    last: float

    @property
    def where(self) -> tuple[Any, ...]:
        """Its part of a latent, as an index."""
        if self.area is None:
            return (...,)
        height, width, y, x = self.area
        return (..., slice(y, y + height), slice(x, x + width))


@dataclass(frozen=True, slots=True)
class _Batch:
    """Entries that the network is asked in one call: where each lies, whose it is, and its share of the average."""

    cond: Tensor
    extras: dict[str, Tensor]
    members: list[tuple[int, tuple[Any, ...], Tensor]]


class Averages:
    """``(x, sigma) → [estimate, …]``, one of each of the first ``count`` conditionings, for x like ``like``.

    Entries of one shape go in one batch, until memory runs out; from then on one by one. An area of one conditioning
    is set against the same area of the others, as ComfyUI does: they get an entry for it, of what they say there.
    """

    def __init__(
        self, model: DiffusionModel, conditionings: Sequence[Conditioning], like: Tensor, *, count: int
    ) -> None:
        self._model = model
        sides = [[_entry(model, entry, like) for entry in given] for given in conditionings]
        for side in sides:
            for entry in side:
                for other in sides:
                    if other is not side:
                        _set_against(other, entry)
        self._entries = [(number, entry) for number, side in enumerate(sides[:count]) for entry in side]
        self._count = count
        self._like = like
        self._apart = False
        self._asked: list[int] | None = None
        self._batches: list[_Batch] = []

    def __call__(self, x: Tensor, sigma: float) -> list[Tensor]:
        asked = [place for place, (_, entry) in enumerate(self._entries) if entry.last <= sigma <= entry.first]
        if asked != self._asked:
            self._asked, self._batches = asked, self._batched(asked)
        try:
            return self._averages(x, sigma)
        except (RuntimeError, MemoryError) as error:
            if self._apart or not device.is_oom(error):
                raise
        self._apart = True  # here the failed call's tensors are gone
        self._batches = self._batched(asked)
        device.empty_cache()
        return self._averages(x, sigma)

    def _averages(self, x: Tensor, sigma: float) -> list[Tensor]:
        sums = [torch.zeros_like(x) for _ in range(self._count)]
        for batch in self._batches:
            pieces = [x[where] for _, where, _ in batch.members]
            given = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            estimates = self._model.denoise(given, sigma, batch.cond, **batch.extras).chunk(len(pieces))
            for estimate, (side, where, share) in zip(estimates, batch.members, strict=True):
                sums[side][where] += estimate * share
        return sums

    def _batched(self, asked: Sequence[int]) -> list[_Batch]:
        """The calls of the network for these entries."""
        totals = [torch.full_like(self._like, _NOTHING, dtype=torch.float32) for _ in range(self._count)]
        groups: dict[Any, list[tuple[int, _Entry]]] = {}
        for place in asked:
            side, entry = self._entries[place]
            totals[side][entry.where] += entry.weight
            tensors = {"": entry.cond, **entry.extras}
            shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in sorted(tensors.items()))
            key = place if self._apart else (self._like[entry.where].shape, shapes)
            groups.setdefault(key, []).append((side, entry))
        return [
            _Batch(
                torch.cat([entry.cond for _, entry in group]),
                {name: torch.cat([entry.extras[name] for _, entry in group]) for name in group[0][1].extras},
                [(side, entry.where, entry.weight / totals[side][entry.where]) for side, entry in group],
            )
            for group in groups.values()
        ]


def _entry(model: DiffusionModel, given: Sequence[Any], like: Tensor) -> _Entry:
    cond, extras = tensors_of(model, given, like)
    options: Mapping[str, Any] = given[1]
    area, mask = area_of(options, like), options.get("mask")
    strength = float(options.get("strength", 1.0))
    if mask is None:
        weight = torch.full((1, 1, *(area[:2] if area else like.shape[2:])), strength)
        if area:
            _fade(weight, area, like)
    else:
        mask = interpolate(mask.float().reshape(-1, 1, *mask.shape[-2:]), like.shape[-2:], mode="bilinear")[: len(like)]
        if options.get("set_area_to_bounds"):
            area = _bounds(mask)
        weight = mask.repeat(len(like) // len(mask), 1, 1, 1) * (strength * float(options.get("mask_strength", 1.0)))
    first, last = (_sigma(model, float(options.get(f"{end}_percent", at))) for end, at in (("start", 0), ("end", 1)))
    entry = _Entry(cond, extras, area, weight.to(like.device), first, last)
    return entry if mask is None else replace(entry, weight=entry.weight[entry.where])


def _fade(weight: Tensor, area: Area, like: Tensor) -> None:
    """Let an area's weight grow from those of its edges that lie inside the latent."""
    for axis in (0, 1):
        side, begin = area[axis], area[axis + 2]
        rows = min(_FADED, side // 4)
        lines = weight.movedim(2 + axis, 0)
        for row in range(rows):
            if begin > 0:
                lines[row] *= (row + 1) / rows
            if begin + side < like.shape[2 + axis]:
                lines[side - 1 - row] *= (row + 1) / rows


def _bounds(mask: Tensor) -> Area:
    """The rectangle around what isn't 0, [B, 1, height, width], of 8 rows and columns at least where there are."""
    rows, columns = mask.shape[-2:]
    found = mask.abs().amax((0, 1)).nonzero()
    (y, x), (bottom, right) = (found.amin(0).tolist(), found.amax(0).tolist()) if len(found) else ((0, 0), (0, 0))
    height, width = (max(_LEAST_SIDE, end - begin + 1) for begin, end in ((y, bottom), (x, right)))
    return min(height, rows - y), min(width, columns - x), y, x


def _sigma(model: DiffusionModel, share: float) -> float:
    """The noise level at that share of the way from noise, 0, to picture, 1."""
    if share <= 0:
        return math.inf
    if share >= 1:
        return 0.0
    return float(model.t_to_sigma(torch.tensor((1 - share) * (len(model.sigmas) - 1))))


def _set_against(entries: list[_Entry], other: _Entry) -> None:
    """Add to ``entries`` one for the area of another conditioning's, of what the smallest that covers it says."""
    if other.area is None:
        return
    covering = [entry for entry in entries if entry.area is None or _covers(entry.area, other.area)]
    said = min(covering, key=lambda entry: math.prod(entry.area[:2]) if entry.area else math.inf, default=None)
    if said is not None and said.area != other.area:
        entries.append(replace(other, cond=said.cond, extras=said.extras))


def _covers(area: Area, other: Area) -> bool:
    return all(
        area[axis + 2] <= other[axis + 2] and other[axis] + other[axis + 2] <= area[axis] + area[axis + 2]
        for axis in (0, 1)
    )
