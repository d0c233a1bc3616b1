"""What a node may ask while it runs: progress, cancellation, output memory, device."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vortex_worker.errors import Cancelled, DeadlineExceeded

if TYPE_CHECKING:
    import torch


class JobContext:
    """One job's context, as ``self.context`` of the node that runs it."""

    def __init__(
        self,
        job_id: int = 0,
        deadline: int = 0,
        *,
        device: torch.device | None = None,
        report: Callable[..., None] = lambda *progress: None,
        cancelled: Callable[[], bool] = lambda: False,
        allocate: Callable[[Sequence[int], Any], Any] | None = None,
    ) -> None:
        self.job_id = job_id
        self._deadline = deadline  # CLOCK_MONOTONIC ns; 0: none
        self._device = device
        self._report = report
        self._cancelled = cancelled
        self._allocate = allocate

    @property
    def device(self) -> torch.device:
        """Where to compute."""
        if self._device is None:
            import torch

            return torch.device("cpu")
        return self._device

    def progress(
        self,
        step: int,
        total: int,
        message: str = "",
        preview: torch.Tensor | Callable[[], torch.Tensor] | None = None,
    ) -> None:
        """Say that ``step`` of ``total`` are done; then ``check``. Cheap enough for every step.

        Args:
            preview: what there is so far, or a function that makes it. It is looked at only when a report is
                really sent, 20 times a second at most, and left out when shared memory is short.

        Raises:
            TypeError: step or total is no whole number, or message no string.
            ValueError: not 0 ≤ step ≤ total.
            Cancelled, DeadlineExceeded: as ``check``.
        """
        step, total = operator.index(step), operator.index(total)
        if not isinstance(message, str):
            raise TypeError(f"progress takes a string as its message, not a {type(message).__name__}")
        if not 0 <= step <= total < 1 << 32:
            raise ValueError(f"progress is step {step} of {total}: it takes 0 ≤ step ≤ total")
        if preview is None:
            self._report(step, total, message)
        else:
            self._report(step, total, message, preview)
        self.check()

    def check(self) -> None:
        """Raise Cancelled or DeadlineExceeded when the job should end. Let it through."""
        if self._deadline and time.monotonic_ns() >= self._deadline:
            raise DeadlineExceeded("the job's deadline passed while it ran")
        if self._cancelled():
            raise Cancelled("cancelled while it ran")

    @property
    def cancelled(self) -> bool:
        """Whether the job was cancelled, for a node that would rather tidy up than be raised through."""
        return self._cancelled()

    def empty(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        """An uninitialised tensor in shared memory: returned as an output, it is not copied.

        It is the CPU's whatever ``device`` is, and float32 unless ``dtype`` says otherwise.

        Raises:
            OutOfArena: the worker's lease is full.
        """
        import torch

        shape, dtype = tuple(shape), dtype or torch.float32
        if self._allocate is None:  # a node that is tried out without a worker
            return torch.empty(shape, dtype=dtype, device="cpu")
        tensor: torch.Tensor = self._allocate(shape, dtype)
        return tensor
