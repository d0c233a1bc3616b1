"""ControlNets (Zhang et al. 2023, arXiv 2302.05543): networks that see a picture, and add to what a U-Net passes on.

A conditioning's option ``control`` is a list of what `control` gives, plain data but for the network, so it travels.
They reach the network as extras: a share for each sample, 0 where an entry has none, and the picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vortex_worker.executor.nodes.sampling.conditioning import Conditioning
from vortex_worker.executor.nodes.sampling.model import DiffusionModel, Extras

Control = Mapping[str, Any]


def control(network: Any, hint: Tensor, strength: float, start: float = 0.0, end: float = 1.0) -> Control:
    """One network and its picture.

    Args:
        network: ``(x, t, cond, hint, **extras) → [Tensor [B, …], …]``: what is added.
        hint: [1 or B, 3, height, width], 0 to 1.
        strength: of what it adds. start, end: from where to where on the way from noise, 0, to picture, 1.
    """
    return {"network": network, "hint": hint, "strength": strength, "start": start, "end": end}


def controlled(
    model: DiffusionModel, positive: Conditioning, negative: Conditioning
) -> tuple[DiffusionModel, Conditioning]:
    """``model`` with the ControlNets of its conditionings, if there are any; and the negative with those it shares."""
    sharing = (options.get("control") for _, options in positive if options.get("control_apply_to_uncond"))
    shared = next(filter(None, sharing), None)
    if shared:
        negative = [[tensor, {"control": shared, **options}] for tensor, options in negative]
    found: list[Control] = []
    for _, options in (*positive, *negative):
        for given in options.get("control", ()):
            if not any(_same(given, other) for other in found):
                found.append(given)
    if not found:
        return model, negative
    return model.with_beside(_Controlled(model, found), _extras(found)), negative


def _same(one: Control, other: Control) -> bool:
    """Pictures are compared: what travelled to two conditionings came apart on the way."""
    if any(one[key] != other[key] for key in ("strength", "start", "end")) or one["network"] is not other["network"]:
        return False
    return torch.equal(one["hint"], other["hint"])


def _extras(controls: Sequence[Control]) -> Extras:
    def extras(options: Mapping[str, Any], like: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for place, control in enumerate(controls):
            times = sum(_same(given, control) for given in options.get("control", ()))
            found[f"share{place}"] = torch.tensor([float(control["strength"]) * times])
            found[f"hint{place}"] = control["hint"]
        return found

    return extras


class _Controlled:
    """A U-Net to which the networks add."""

    is_controllable = True

    def __init__(self, model: DiffusionModel, controls: Sequence[Control]) -> None:
        self._network = model.network
        self._controls = controls
        self._times = [(_time(model, control["start"]), _time(model, control["end"])) for control in controls]

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor, **extras: Tensor) -> Tensor:
        pairs = [(extras.pop(f"share{place}"), extras.pop(f"hint{place}")) for place in range(len(self._controls))]
        added: list[Tensor] = []
        for control, times, (share, hint) in zip(self._controls, self._times, pairs, strict=True):
            # Where it holds all the way, nobody waits for the device to tell the time.
            if times != (math.inf, -math.inf) and not times[1] <= float(t[0]) <= times[0]:
                continue
            said = control["network"](x, t, cond, hint, **extras)
            said = [tensor * share.to(tensor).reshape(-1, 1, 1, 1) for tensor in said]
            added = [some + more for some, more in zip(added, said, strict=True)] if added else said
        out: Tensor = self._network(x, t, cond, added=added, **extras)
        return out


def _time(model: DiffusionModel, share: float) -> float:
    """The network's t at that share of the way."""
    if not 0 < share < 1:
        return math.inf if share <= 0 else -math.inf
    return model.time_of(float(model.t_to_sigma(torch.tensor((1 - share) * (len(model.sigmas) - 1)))))
