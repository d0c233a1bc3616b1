"""What is seen of each step, at once or a step later, as it must be where steps are queued on a device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vortex_worker.errors import Cancelled, ExecutionError
from vortex_worker.executor.context import JobContext
from vortex_worker.executor.nodes.sampling.watch import Watch

GOOD, BAD = torch.ones(1, 3, 2, 2), torch.full((1, 3, 2, 2), float("nan"))


def walk(watch: Watch, *estimates: Tensor, x: Tensor = GOOD) -> int:
    """Tell of a step for each estimate; how many were told when it raised."""
    for step, denoised in enumerate(estimates):
        try:
            watch(step, x, 5.0 - step, denoised)
        except ExecutionError as error:
            raise ExecutionError(f"{error} (told {step + 1})", error.details) from None
    watch.finish()
    return len(estimates)


@pytest.mark.parametrize(("queued", "told"), [(False, 2), (True, 3)])
def test_names_the_step_that_broke(queued: bool, told: int) -> None:
    with pytest.raises(ExecutionError, match=rf"the model gave NaN .* step 2 of 4 \(sigma 4\) \(told {told}\)"):
        walk(Watch(JobContext(), 4, queued=queued), GOOD, BAD, GOOD, GOOD)


@pytest.mark.parametrize("queued", [False, True])
def test_sees_the_last_step_too(queued: bool) -> None:
    with pytest.raises(ExecutionError, match="step 3 of 3"):
        walk(Watch(JobContext(), 3, queued=queued), GOOD, GOOD, BAD)
    assert walk(Watch(JobContext(), 3, queued=queued), GOOD, GOOD, GOOD) == 3


@pytest.mark.parametrize("queued", [False, True])
def test_tells_the_latent_s_from_the_model_s(queued: bool) -> None:
    with pytest.raises(ExecutionError, match="the latent holds NaN or infinity at step 1"):
        walk(Watch(JobContext(), 2, queued=queued), BAD, BAD, x=BAD)


@pytest.mark.parametrize(("queued", "shown"), [(False, [0, 1, 2, 3]), (True, [0, 1, 2])])
def test_shows_what_is_done(queued: bool, shown: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate whose first channel tells its step; a preview is stretched, so its order is what is kept."""
    monkeypatch.setattr("vortex_worker.executor.nodes.sampling.watch._EVERY", 0)
    pictures: list[Any] = []

    def report(step: int, total: int, message: str, preview: Any = None) -> None:
        pictures.extend([] if preview is None else [preview()])

    steps = [torch.zeros(1, 3, 4, 1) for _ in range(4)]
    for n, estimate in enumerate(steps):
        estimate[0, :, n] = 1  # a bright row that moves down
    walk(Watch(JobContext(report=report), 4, queued=queued), *steps)
    assert [int(picture[:, 0, 0].argmax()) for picture in pictures] == shown


@pytest.mark.parametrize("queued", [False, True])
def test_cancels_between_steps(queued: bool) -> None:
    said: list[int] = []

    def report(step: int, total: int, message: str, preview: Any = None) -> None:
        said.append(step)

    context = JobContext(report=report, cancelled=lambda: len(said) >= 2)
    with pytest.raises(Cancelled):
        walk(Watch(context, 4, queued=queued), GOOD, GOOD, GOOD, GOOD)
    assert said == [0, 1]
