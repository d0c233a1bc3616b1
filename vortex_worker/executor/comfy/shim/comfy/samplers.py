"""Stands in for ``comfy.samplers``: the names that nodes offer. Sampling itself is the node ``KSampler``'s."""

from __future__ import annotations

from vortex_worker.executor.nodes.sampling.samplers import SAMPLERS
from vortex_worker.executor.nodes.sampling.schedules import SCHEDULES

SAMPLER_NAMES = list(SAMPLERS)
SCHEDULER_NAMES = list(SCHEDULES)


class KSampler:
    """Only its lists."""

    SAMPLERS = SAMPLER_NAMES
    SCHEDULERS = SCHEDULER_NAMES
