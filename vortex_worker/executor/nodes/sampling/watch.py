"""What happens at each step besides sampling: progress, cancellation, and an end at numbers that are none."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from vortex_worker.errors import ExecutionError
from vortex_worker.executor.context import JobContext


class _Seen(NamedTuple):
    step: int
    sigma: float
    x: Tensor
    finite: Tensor  # a bool, maybe still being computed


class Watch:
    """A sampler's callback.

    On a device it looks at the step before, whose result is there by then: nothing waits for the step that has just
    been queued, and the queue holds one step at most.
    """

    def __init__(self, context: JobContext, total: int) -> None:
        self._context = context
        self._total = total
        self._last: _Seen | None = None

    def __call__(self, step: int, x: Tensor, sigma: float, denoised: Tensor) -> None:
        """
        Raises:
            ExecutionError: the model gave NaN or infinity, or x held some; it names the step.
            Cancelled, DeadlineExceeded: as the context has it.
        """
        seen = _Seen(step, sigma, x, denoised.sum().isfinite())  # a sum is NaN or infinite if a term is
        if self._last is not None:
            self._check(self._last)
        if denoised.device.type == "cpu":
            self._check(seen)
        else:
            self._last = seen
        self._context.progress(step, self._total)

    def finish(self) -> None:
        """After the last step.

        Raises:
            As at each step.
        """
        if self._last is not None:
            self._check(self._last)
        self._context.progress(self._total, self._total)

    def _check(self, seen: _Seen) -> None:
        if not seen.finite:
            culprit = "the model gave" if seen.x.isfinite().all() else "the latent holds"
            raise ExecutionError(
                f"{culprit} NaN or infinity at step {seen.step + 1} of {self._total} (sigma {seen.sigma:.4g})",
                {"step": str(seen.step + 1)},
            )
