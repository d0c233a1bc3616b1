"""Samplers: pure functions from noise at the first sigma to data at the last.

``sampler(model, x, sigmas, *, noise, callback, …)``, see ``signature``. Formulae are those of the
papers cited; the tests hold each to k-diffusion, and to the order of convergence that its paper claims.

One page a family: ``ode`` (one step, deterministic), ``ancestral`` (one step, noise added again),
``multistep`` (from the estimates of earlier steps).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from vortex_worker.executor.nodes.sampling.samplers.ancestral import (
    dpm_2_ancestral,
    dpmpp_2s_ancestral,
    euler_ancestral,
)
from vortex_worker.executor.nodes.sampling.samplers.multistep import dpmpp_2m, lms
from vortex_worker.executor.nodes.sampling.samplers.ode import dpm_2, euler, heun

#: By ComfyUI's names.
SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm_2": dpm_2,
    "dpm_2_ancestral": dpm_2_ancestral,
    "lms": lms,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_2m": dpmpp_2m,
}

#: These take a schedule of one step more without its last sigma but one: their midpoint would lie near 0.
DROP_PENULTIMATE = frozenset({"dpm_2", "dpm_2_ancestral"})

#: These add noise in the variance-exploding view, so not to a flow model.
ADD_NOISE = frozenset({"euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral"})
