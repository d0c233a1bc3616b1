"""UniPC: a predictor and a corrector of one form, at one model call a step.

Zhao et al. (2023, arXiv 2302.04867), algorithms 5 to 8 for estimates of the data, in the variance-exploding view:
time is −log sigma. Order 3, and 4 with the corrector. The last steps are of lower order, and the last uncorrected.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from vortex_worker.executor.nodes.sampling.samplers.exponential import phi
from vortex_worker.executor.nodes.sampling.samplers.signature import Callback, Model, Noise, Sigmas, quiet

_ORDER = 3


def uni_pc(
    model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise | None = None, callback: Callback = quiet
) -> Tensor:
    """With the paper's B1(h) = h."""
    return _unified(model, x, sigmas, callback, bh2=False)


def uni_pc_bh2(
    model: Model, x: Tensor, sigmas: Sigmas, *, noise: Noise | None = None, callback: Callback = quiet
) -> Tensor:
    """With the paper's B2(h) = e^h − 1, for strong guidance."""
    return _unified(model, x, sigmas, callback, bh2=True)


def _unified(model: Model, x: Tensor, sigmas: Sigmas, callback: Callback, *, bh2: bool) -> Tensor:
    known: list[Tensor] = []  # estimates, the latest first
    predicted, order = x, 0
    steps = len(sigmas) - 1
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(predicted, sigma)
        callback(i, predicted, sigma, denoised)
        if i and following > 0:
            x = _move(x, known, denoised, sigmas, i - 1, order, bh2)
        known = [denoised, *known[: _ORDER - 1]]
        if following == 0:
            predicted = denoised
            continue
        order = min(_ORDER, i + 1, steps - i)
        predicted = _move(x, known, None, sigmas, i, order, bh2)
    return predicted


def _move(
    x: Tensor, known: list[Tensor], ahead: Tensor | None, sigmas: Sigmas, i: int, order: int, bh2: bool
) -> Tensor:
    """From step ``i`` to the next by the ``order`` latest estimates, and the one ``ahead`` there if it is known."""
    sigma, following = sigmas[i], sigmas[i + 1]
    z = -math.log(sigma / following)
    places = [math.log(sigma / sigmas[i - k]) / -z for k in range(1, order)]
    others = known[1:order]
    if ahead is not None:
        places.append(1.0)
        others = [*others, ahead]
    out = torch.lerp(known[0], x, following / sigma)
    scale = math.expm1(z) if bh2 else z
    for weight, place, other in zip(_weights(places, z, scale), places, others, strict=True):
        out.add_(other - known[0], alpha=-scale * weight / place)
    return out


def _weights(places: list[float], z: float, scale: float) -> list[float]:
    """Solve equation 5: the moments of the exponential integral, at ``places`` in the step's own unit."""
    if len(places) < 2:  # one half is as good (the paper's appendix), and what everybody takes
        return [0.5] * len(places)
    powers = np.vander(np.array(places), len(places), increasing=True).T
    moments = [math.factorial(n) * z * phi(n + 1, z) / scale for n in range(1, len(places) + 1)]
    weights: list[float] = np.linalg.solve(powers, np.array(moments)).tolist()
    return weights
