"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): one denoiser of two conditionings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from vortex_worker import device
from vortex_worker.errors import ValidationError
from vortex_worker.executor.nodes.sampling.model import DiffusionModel

Conditioning = Sequence[Any]  # of [tensor, dict], as ComfyUI's
Estimate = TypeVar("Estimate", Tensor, tuple[Tensor, Tensor])
#: What SDXL was trained to be told of a picture, in its order.
SIZES = ("height", "width", "crop_h", "crop_w", "target_height", "target_width")
_OPTIONS = {"pooled_output", *SIZES}


def guided(
    model: DiffusionModel, positive: Conditioning, negative: Conditioning, scale: float, like: Tensor
) -> Callable[[Tensor, float], Tensor]:
    """``(x, sigma) → denoised``, being uncond + (cond − uncond) · scale, for x like ``like``.

    At scale 1 the negative isn't run at all. Else as ``pair``, whose first it is.

    Raises:
        ValidationError: a conditioning that does not fit the batch.
    """
    if scale == 1.0:
        cond, extras = condition(model, positive, "positive", like)

        def plain(x: Tensor, sigma: float) -> Tensor:
            return model.denoise(x, sigma, cond, **extras)

        return plain

    both = pair(model, positive, negative, scale, like)

    def first(x: Tensor, sigma: float) -> Tensor:
        return both(x, sigma)[0]

    return first


def pair(
    model: DiffusionModel, positive: Conditioning, negative: Conditioning, scale: float, like: Tensor
) -> Callable[[Tensor, float], tuple[Tensor, Tensor]]:
    """``(x, sigma) → (guided, unguided)``: what CFG++ samplers ask.

    Both conditionings in one batch, so one call of the network a step. Two calls where their shapes or dtypes
    differ; and from where memory runs out on, as two halves may fit where the whole doesn't.

    Raises:
        ValidationError: a conditioning that does not fit the batch.
    """
    cond, extras = condition(model, positive, "positive", like)
    uncond, unextras = condition(model, negative, "negative", like)

    def apart(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        without = model.denoise(x, sigma, uncond, **unextras)
        return model.denoise(x, sigma, cond, **extras), without

    ask = apart
    if _alike({"": cond, **extras}, {"": uncond, **unextras}):
        both = torch.cat([cond, uncond])
        both_extras = {name: torch.cat([tensor, unextras[name]]) for name, tensor in extras.items()}

        def together(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
            nonlocal ask
            try:
                with_, without = model.denoise(torch.cat([x, x]), sigma, both, **both_extras).chunk(2)
                return with_, without
            except (RuntimeError, MemoryError) as error:
                if not device.is_oom(error):
                    raise
            ask = apart  # here the failed call's tensors are gone
            device.empty_cache()
            return apart(x, sigma)

        ask = together

    def answer(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        with_, without = ask(x, sigma)
        out = torch.lerp(without, with_, scale)
        return _rescaled(model, x, sigma, with_, out) if model.rescale else out, without

    return answer


def _rescaled(model: DiffusionModel, x: Tensor, sigma: float, cond: Tensor, out: Tensor) -> Tensor:
    """Guided estimates with some of the spread that strong guidance adds taken back.

    Lin et al. (2024, arXiv 2305.08891), equations 14 to 16, on velocities: the guided one is scaled so that its
    standard deviation over a sample is ``model.rescale`` of the way to that of the one with the prompt alone.
    """
    # A velocity is a number times (still − estimate), and the number cancels out.
    still = x if model.parametrization == "flow" else x / (sigma**2 + 1)
    axes = tuple(range(1, x.dim()))
    spread = (still - out).std(axes, keepdim=True).clamp_min_(torch.finfo(x.dtype).tiny)
    ratio = (still - cond).std(axes, keepdim=True) / spread
    return torch.lerp(still, out, 1 + model.rescale * (ratio - 1))


def masked(
    model: DiffusionModel,
    denoiser: Callable[[Tensor, float], Estimate],
    mask: Tensor,
    original: Tensor,
    noise: Tensor,
) -> Callable[[Tensor, float], Estimate]:
    """``denoiser`` that draws only where ``mask`` is 1; elsewhere it sees, and gives, the original.

    Args:
        denoiser: gives a tensor, or CFG++'s pair. mask: [B or 1, 1, …], 0 to 1. original: the latent as the network
            sees it. noise: what x began with.
    """

    def inside(x: Tensor, sigma: float) -> Estimate:
        start, level = model.noised(sigma)
        x = torch.lerp(original * start + noise * level, x, mask)
        estimate = denoiser(x, sigma)
        if isinstance(estimate, Tensor):
            return torch.lerp(original, estimate, mask)
        first, second = estimate
        return torch.lerp(original, first, mask), torch.lerp(original, second, mask)

    return inside


def _alike(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(
        tensor.shape == others[name].shape and tensor.dtype == others[name].dtype for name, tensor in some.items()
    )


def condition(
    model: DiffusionModel, conditioning: Conditioning, name: str, like: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The tensor of a conditioning, [batch, …], and the model's extras; a first dimension of 1 serves the whole batch.

    Raises:
        ValidationError: several entries, areas or masks, or another batch.
    """
    if problem := problem_of(model, conditioning, name, len(like)):
        raise ValidationError(problem, problems=[problem])
    tensor, options = conditioning[0]
    extras = model.extras(options, like) if model.extras else {}

    def fitted(tensor: Tensor) -> Tensor:
        tensor = tensor.to(like.device)
        return tensor.expand(len(like), *tensor.shape[1:])

    return fitted(tensor), {key: fitted(value) for key, value in extras.items()}


def problem_of(model: DiffusionModel, conditioning: Conditioning, name: str, batch: int) -> str | None:
    """What keeps a conditioning from a model and a batch of that size, or None."""
    if len(conditioning) != 1:
        return f"{name!r} combines {len(conditioning)} conditionings: it takes one"
    tensor, options = conditioning[0]
    if unknown := sorted(str(key) for key in set(options) - _OPTIONS):
        return f"{name!r} has {', '.join(unknown)}, which are not supported"
    if tensor.dim() < 1 or tensor.shape[0] not in (1, batch):
        return f"{name!r} is a tensor {list(tensor.shape)}: its first dimension must be 1 or {batch}"
    if model.cond_width not in (None, tensor.shape[-1]):
        return f"{name!r} is of width {tensor.shape[-1]}: this model takes {model.cond_width}, of its own text encoder"
    if model.extras is None:
        return None
    pooled = options.get("pooled_output")
    if not isinstance(pooled, Tensor) or pooled.dim() != 2 or pooled.shape[0] not in (1, batch):
        return f"{name!r} has no pooled_output [1 or {batch}, width], which this model takes"
    if bad := sorted(key for key in options if key in SIZES and not isinstance(options[key], int)):
        return f"{name!r} has {', '.join(bad)}, which must be whole numbers"
    return None
