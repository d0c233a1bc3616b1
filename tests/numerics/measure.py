"""How far our samplers are from k-diffusion's, and how fast their error falls with the step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import exact
import kdiffusion
import torch
from torch import Tensor

from vortex_worker.executor.nodes.sampling.model import DiffusionModel
from vortex_worker.executor.nodes.sampling.samplers import ADD_NOISE, DROP_PENULTIMATE, SAMPLERS
from vortex_worker.executor.nodes.sampling.schedules import sigmas_for

TABLE = DiffusionModel(lambda x, t, cond: x)  # for its sigmas alone


class Step(NamedTuple):
    """What a sampler said of one step."""

    index: int
    x: Tensor
    sigma: float
    denoised: Tensor


class Trace(NamedTuple):
    """One run of a sampler."""

    steps: list[Step]
    end: Tensor
    asked: list[float]  # the sigma of every model call
    drawn: list[tuple[float, float]]  # the sigmas of every draw of noise


def start(dtype: torch.dtype, sigma: float) -> Tensor:
    """Two samples of noise at ``sigma``."""
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype) * sigma


def ours(name: str, sigmas: list[float], dtype: torch.dtype, model: Any = exact.mixture, **options: Any) -> Trace:
    """Run our sampler."""
    steps: list[Step] = []
    asked: list[float] = []
    noise, drawn = _noise(dtype)

    def ask(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return model(x, sigma)

    def callback(index: int, x: Tensor, sigma: float, denoised: Tensor) -> None:
        steps.append(Step(index, x.clone(), sigma, denoised.clone()))

    end = SAMPLERS[name](ask, start(dtype, sigmas[0]), sigmas, noise=noise, callback=callback, **options)
    return Trace(steps, end, asked, drawn)


def theirs(name: str, sigmas: list[float], dtype: torch.dtype, model: Any = exact.mixture, **options: Any) -> Trace:
    """Run k-diffusion's sampler of that name."""
    sampling, _ = kdiffusion.load()
    steps: list[Step] = []
    asked: list[float] = []
    noise, drawn = _noise(dtype)

    def ask(x: Tensor, sigma: Tensor) -> Tensor:
        assert bool((sigma == sigma[0]).all())
        asked.append(float(sigma[0]))
        return model(x, float(sigma[0]))

    def callback(said: dict[str, Any]) -> None:
        steps.append(Step(said["i"], said["x"].clone(), float(said["sigma"]), said["denoised"].clone()))

    if name in ADD_NOISE:
        options["noise_sampler"] = noise
    x, levels = start(dtype, sigmas[0]), torch.tensor(sigmas, dtype=dtype)
    end = getattr(sampling, f"sample_{name}")(ask, x, levels, callback=callback, disable=True, **options)
    return Trace(steps, end, asked, drawn)


def _noise(dtype: torch.dtype) -> tuple[Any, list[tuple[float, float]]]:
    generator, drawn = torch.Generator().manual_seed(2), list[tuple[float, float]]()

    def noise(sigma: Any, following: Any) -> Tensor:
        drawn.append((float(sigma), float(following)))
        return torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64).to(dtype)

    return noise, drawn


def schedules(name: str) -> Iterator[tuple[str, list[float]]]:
    """Schedules to compare a sampler on: usual, short, coarse, and one that stops above 0."""
    drop = name in DROP_PENULTIMATE
    for schedule, steps, denoise in [
        ("normal", 20, 1.0), ("karras", 12, 1.0), ("simple", 7, 1.0), ("exponential", 30, 1.0),
        ("karras", 10, 0.4), ("normal", 1, 1.0), ("karras", 2, 1.0), ("sgm_uniform", 3, 1.0),
    ]:  # fmt: skip
        yield f"{schedule}-{steps}-{denoise}", sigmas_for(TABLE, schedule, steps, denoise, drop_penultimate=drop)
    yield "ends-above-0", sigmas_for(TABLE, "karras", 9)[:-1]


def difference(a: Trace, b: Trace) -> float:
    """The largest difference of x or denoised at any step, and at the end, relative to the largest x there."""
    pairs = [(s.x, t.x, t.x) for s, t in zip(a.steps, b.steps, strict=True)]
    pairs += [(s.denoised, t.denoised, t.x) for s, t in zip(a.steps, b.steps, strict=True)]
    pairs.append((a.end, b.end, b.end))
    return max(float((p.double() - q.double()).abs().max() / scale.abs().max()) for p, q, scale in pairs)


class Errors(NamedTuple):
    """The largest differences over all of ``schedules``."""

    double: float  # ours from k-diffusion's, both in float64: whether the formulae are the same
    single: float  # ours in float32 from k-diffusion's in float64: rounding, and what the run makes of it
    single_theirs: float  # k-diffusion's own, likewise


def errors(name: str) -> Errors:
    """Our sampler against k-diffusion's of the same name."""
    found = []
    for _, sigmas in schedules(name):
        truth = theirs(name, sigmas, torch.float64)
        found.append(
            Errors(
                difference(ours(name, sigmas, torch.float64), truth),
                difference(ours(name, sigmas, torch.float32), truth),
                difference(theirs(name, sigmas, torch.float32), truth),
            )
        )
    return Errors(*map(max, zip(*found, strict=True)))


def even(steps: int) -> list[float]:
    """Sigmas from 10 to 0.05, even in their logarithm."""
    return [10.0 * (0.05 / 10.0) ** (i / steps) for i in range(steps + 1)]


def ramped(steps: int) -> list[float]:
    """The same with its first step in twelve parts, each twice the one before.

    A multistep method begins with Euler's step, whose error would otherwise hide the method's own.
    """
    first, *rest = even(steps)
    parts = [(2**k - 1) / (2**12 - 1) for k in range(12)]
    return [first + (rest[0] - first) * part for part in parts] + rest


def flow_errors(name: str, counts: list[int], **options: Any) -> list[float]:
    """Error against the exact probability flow of Gaussian data, by number of steps."""
    if name in ADD_NOISE:
        options = {"eta": 0.0, **options}
    errors = []
    for count in counts:
        sigmas = ramped(count) if name == "lms" else even(count)
        end = ours(name, sigmas, torch.float64, exact.gaussian, **options).end
        wanted = exact.gaussian_flow(start(torch.float64, sigmas[0]), sigmas[0], sigmas[-1])
        errors.append(float((end - wanted).abs().max()))
    return errors


def variance_errors(name: str, counts: list[int]) -> list[float]:
    """Error of the variance that an ancestral sampler ends with, by number of steps.

    The model is linear, so x is a sum of the start and every noise drawn, each times a number. Let the
    start and the noises be unit vectors and the sampler computes those numbers: no chance is involved.
    """
    errors = []
    for count in counts:
        sigmas, units = even(count), iter(torch.eye(count + 1, dtype=torch.float64))
        x = next(units) * math.sqrt(exact.SPREAD**2 + sigmas[0] ** 2)
        end = SAMPLERS[name](exact.centred, x, sigmas, noise=lambda sigma, following, units=units: next(units))
        errors.append(abs(float(end.square().sum()) - exact.SPREAD**2 - sigmas[-1] ** 2))
    return errors


def order(errors: list[float]) -> float:
    """The exponent with which the error fell when the steps doubled last."""
    return math.log2(errors[-2] / errors[-1])
