"""What every sampler takes.

``model(x, sigma) → denoised``: the estimate of the data in ``x`` [B, …], whose noise has standard
deviation ``sigma``. A CFG++ sampler's gives a pair: that estimate under guidance, and without the prompt.
``sigmas``: strictly descending, the last usually 0; Python floats, taken from a schedule once, so that
no step allocates for them or waits for a device.

``noise(sigma, following)``: standard normal noise like x, for the step from ``sigma`` to
``following``. ``callback(step, x, sigma, denoised)``: told once a step, before x moves.

In every formula a step in which the estimate D stays the same is x ← D + (x − D) · following/sigma, a
straight blend, which ``torch.lerp`` does at one read of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

Model = Callable[[Tensor, float], Tensor]
PairModel = Callable[[Tensor, float], tuple[Tensor, Tensor]]
Sigmas = Sequence[float]
Noise = Callable[[float, float], Tensor]
Callback = Callable[[int, Tensor, float, Tensor], None]


def quiet(step: int, x: Tensor, sigma: float, denoised: Tensor) -> None:
    """A callback for those who want none."""


def weighted(first: tuple[float, Tensor], *others: tuple[float, Tensor]) -> Tensor:
    """The sum of each tensor times its number: one new tensor, whatever the number of terms."""
    weight, tensor = first
    total = tensor * weight
    for weight, tensor in others:
        total.add_(tensor, alpha=weight)
    return total
