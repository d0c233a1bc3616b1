"""One run of a sampler: from a latent and a seed to a latent, by the rules of docs/sampling.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vortex_worker.executor.context import JobContext
from vortex_worker.executor.nodes.sampling import noise
from vortex_worker.executor.nodes.sampling.brownian import BrownianNoise
from vortex_worker.executor.nodes.sampling.conditioning import Conditioning
from vortex_worker.executor.nodes.sampling.control import controlled
from vortex_worker.executor.nodes.sampling.guidance import guided, masked, pair
from vortex_worker.executor.nodes.sampling.model import DiffusionModel
from vortex_worker.executor.nodes.sampling.samplers import BROWNIAN, CFG_PP, EXPLODING, FLOW_RULE, SAMPLERS
from vortex_worker.executor.nodes.sampling.samplers.ancestral import flow_levels
from vortex_worker.executor.nodes.sampling.views import exploding, exploding_sigmas
from vortex_worker.executor.nodes.sampling.watch import Watch


def sample(
    context: JobContext,
    model: DiffusionModel,
    positive: Conditioning,
    negative: Conditioning,
    latent: dict[str, Any],
    *,
    sampler: str,
    sigmas: Sequence[float],
    cfg: float,
    seed: int,
    add_noise: bool = True,
) -> dict[str, Any]:
    """The latent after the steps of ``sigmas``; noise that is left is that of the last of them.

    Args:
        add_noise: to the latent at the start; else it holds noise of the first sigma already.

    Raises:
        ExecutionError: NaN or infinity, with the step.
        OutOfArena: no room for the result: before the first step.
        ValidationError, Cancelled, DeadlineExceeded.
    """
    samples: Tensor = latent["samples"]
    if model.latent_channels not in (None, samples.shape[1]):  # empty: of whatever channels the model has
        samples = samples.new_zeros(len(samples), model.latent_channels, *samples.shape[2:])
    if not sigmas:
        return {**latent, "samples": samples}
    # Before the work: a lease that is full should fail the job now.
    out = context.empty(samples.shape, samples.dtype)

    def draw(seed: int, places: list[int] | None = None) -> Tensor:
        drawn = noise.initial(samples, seed, places) if add_noise else torch.zeros(samples.shape)
        return drawn.to(context.device)

    drawn = draw(seed, latent.get("batch_index"))
    original = model.scaled(samples.to(drawn.device, drawn.dtype))
    start, level = model.noise_scale(sigmas[0])
    x = drawn * level + original * start

    model, negative = controlled(model, positive, negative)
    denoiser: Callable[[Tensor, float], Any] = (pair if sampler in CFG_PP else guided)(
        model, positive, negative, cfg, x
    )
    mask = latent.get("noise_mask")
    if mask is not None:
        around = draw((seed + 1) % (1 << 64)) if sampler == "ddim" else drawn  # ComfyUI's rule
        denoiser = masked(model, denoiser, _resized(mask.to(x.device, x.dtype), x), original, around)

    watch = Watch(context, len(sigmas) - 1, queued=x.device.type != "cpu")
    run = _run_flow if model.parametrization == "flow" else _run
    x = run(model, sampler, denoiser, x, sigmas, watch, seed)
    watch.finish()
    out.copy_(model.unscaled(x))
    return {**latent, "samples": out}


def _run(
    model: DiffusionModel,
    sampler: str,
    denoiser: Callable[[Tensor, float], Any],
    x: Tensor,
    sigmas: Sequence[float],
    watch: Watch,
    seed: int,
) -> Tensor:
    source = _source(sampler, x, sigmas, seed)
    options = {"tau": _middle(*_middle_levels(model))} if sampler.startswith("sa_solver") else {}
    return SAMPLERS[sampler](denoiser, x, sigmas, noise=source, callback=watch, **options)


def _run_flow(
    model: DiffusionModel,
    sampler: str,
    denoiser: Callable[[Tensor, float], Any],
    x: Tensor,
    times: Sequence[float],
    watch: Watch,
    seed: int,
) -> Tensor:
    """Of a flow model. The result is divided by the data's share in it, as a start with noise multiplies by it."""
    if sampler not in EXPLODING:
        x = SAMPLERS[sampler](denoiser, x, times, noise=None, callback=watch)
        return x / (1 - times[-1])

    if times[0] >= 1:  # all noise: the other view has no sigma for it, so it begins a ten-thousandth later
        levels = len(model.sigmas)
        first = float(model.t_to_sigma(torch.tensor(levels - 1 - levels * 1e-4)))
        times = [first, *(time for time in times if time < first)]
    source = _source(sampler, x, times, seed)

    def noise_at(sigma: float, following: float) -> Tensor:
        return source(sigma / (1 + sigma), following / (1 + following))

    def watch_at(step: int, x: Tensor, sigma: float, denoised: Tensor) -> None:
        watch(step, x, sigma / (1 + sigma), denoised)

    options: dict[str, Any] = {"rule": flow_levels} if sampler in FLOW_RULE else {}
    if sampler.startswith("sa_solver"):
        options["tau"] = _middle(*exploding_sigmas(_middle_levels(model)))
    return SAMPLERS[sampler](
        exploding(denoiser),
        x / (1 - times[0]),
        exploding_sigmas(times),
        noise=noise_at,
        callback=watch_at,
        **options,
    )


def _source(sampler: str, x: Tensor, sigmas: Sequence[float], seed: int) -> Callable[[float, float], Tensor]:
    if sampler not in BROWNIAN:
        return noise.NoiseSource(x, seed)
    lowest = sigmas[-1] if sigmas[-1] > 0 else sigmas[-2]
    device = x.device if sampler.endswith("_gpu") else torch.device("cpu")
    return BrownianNoise(x, seed, lowest, sigmas[0], device=device)


def _middle_levels(model: DiffusionModel) -> list[float]:
    """The levels at 1/5 and 4/5 of the way, in the table."""
    last = len(model.sigmas) - 1
    levels: list[float] = model.t_to_sigma(torch.tensor([0.8 * last, 0.2 * last])).tolist()
    return levels


def _middle(high: float, low: float) -> Callable[[float], float]:
    """SA-Solver's noise, by level: as much as a diffusion's in the middle of the way, none at its ends."""

    def tau(sigma: float) -> float:
        return 1.0 if low <= sigma <= high else 0.0

    return tau


def _resized(mask: Tensor, like: Tensor) -> Tensor:
    """A mask of any size as [B or 1, 1, height, width] of the latent."""
    mask = mask.reshape(-1, 1, *mask.shape[-2:])
    return interpolate(mask, like.shape[-2:], mode="bilinear").clamp(0, 1)
