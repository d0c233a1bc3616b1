"""What happens at each step besides sampling: progress, previews, cancellation, and an end at NaN."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from torch import Tensor

from vortex_worker.errors import ExecutionError
from vortex_worker.executor.context import JobContext
from vortex_worker.executor.nodes.sampling.preview import preview_of

_EVERY = 200_000_000  # ns between previews: the eye is content, and quick steps don't pay for them


class _Seen(NamedTuple):
    step: int
    sigma: float
    x: Tensor
    denoised: Tensor
    total: Tensor  # of all that was denoised: one number, maybe still being computed


class Watch:
    """A sampler's callback.

    Args:
        queued: steps are queued on a device. Then it looks at the step before, whose result is there by then: nothing
            waits for the one that has just been queued, and the queue holds one step at most.
    """

    def __init__(self, context: JobContext, total: int, *, queued: bool) -> None:
        self._context = context
        self._total = total
        self._queued = queued
        self._last: _Seen | None = None
        self._shown = time.monotonic_ns()

    def __call__(self, step: int, x: Tensor, sigma: float, denoised: Tensor) -> None:
        """
        Raises:
            ExecutionError: the model gave NaN or infinity, or x held some; it names the step.
            Cancelled, DeadlineExceeded: as the context has it.
        """
        total = denoised.sum()
        if self._queued:
            before, self._last = self._last, _Seen(step, sigma, x, denoised, total)
            if before is not None:
                self._check(before)
                denoised = before.denoised
        elif not math.isfinite(total):
            self._check(_Seen(step, sigma, x, denoised, total))
        now = time.monotonic_ns()
        if now - self._shown < _EVERY or (self._queued and before is None):
            self._context.progress(step, self._total)
            return

        def show() -> Tensor:
            self._shown = now
            return preview_of(denoised)

        self._context.progress(step, self._total, preview=show)

    def finish(self) -> None:
        """After the last step.

        Raises:
            As at each step.
        """
        if self._last is not None:
            self._check(self._last)
        self._context.progress(self._total, self._total)

    def _check(self, seen: _Seen) -> None:
        if not math.isfinite(seen.total):  # as it is if a term is not; asking a tensor takes ten times as long
            culprit = "the model gave" if seen.x.isfinite().all() else "the latent holds"
            raise ExecutionError(
                f"{culprit} NaN or infinity at step {seen.step + 1} of {self._total} (sigma {seen.sigma:.4g})",
                {"step": str(seen.step + 1)},
            )
