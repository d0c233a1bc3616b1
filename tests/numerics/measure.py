"""How far our samplers are from k-diffusion's, and how fast their error falls with the step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import exact
import kdiffusion
import retold
import retold_sde
import torch
from torch import Tensor

from vortex_worker.executor.nodes.sampling.model import DiffusionModel
from vortex_worker.executor.nodes.sampling.samplers import ADD_NOISE, CFG_PP, DROP_PENULTIMATE, SAMPLERS
from vortex_worker.executor.nodes.sampling.schedules import sigmas_for

TABLE = DiffusionModel(lambda x, t, cond: x)  # for its sigmas alone

#: Our sampler → k-diffusion's of the same formula, and the options that make it so. A CFG++ sampler is its namesake
#: where guidance changes nothing; what it does where it does is told again in ``retold``.
KDIFFUSION: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, {})
    for name in (
        "euler", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive",
        "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde",
    )
} | {
    "dpmpp_2m_sde_heun": ("dpmpp_2m_sde", {"solver_type": "heun"}),
    "ddpm": ("euler_ancestral", {}),
    "ddim": ("euler", {}),
    "ipndm_v": ("lms", {}),
    "euler_cfg_pp": ("euler", {}),
    "euler_ancestral_cfg_pp": ("euler_ancestral", {}),
    "dpmpp_2s_ancestral_cfg_pp": ("dpmpp_2s_ancestral", {}),
    "dpmpp_2m_cfg_pp": ("dpmpp_2m", {}),
}  # fmt: skip

#: Our sampler → its formula told again.
TOLD = retold.TOLD | retold_sde.TOLD

#: The distinct ones: ``_gpu`` names the same function as without.
NAMES = [name for name in SAMPLERS if not name.endswith("_gpu")]

#: What makes a sampler that adds noise solve the probability flow.
_NOISELESS: dict[str, dict[str, Any]] = {
    "sa_solver": {"tau": lambda sigma: 0.0},
    "sa_solver_pece": {"tau": lambda sigma: 0.0},
    "er_sde": {"scale": lambda sigma: sigma},
}
#: These begin with short steps, so that their first, of low order, doesn't hide their own.
_RAMPED = {"lms", "ipndm_v", "deis", "uni_pc", "uni_pc_bh2", "er_sde", "dpmpp_3m_sde"}


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


def posed(name: str, model: Any) -> Any:
    """The model as a sampler wants it: CFG++ samplers get each estimate twice."""
    return (lambda x, sigma: (model(x, sigma),) * 2) if name in CFG_PP else model


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

    x = start(dtype, sigmas[0])
    end = SAMPLERS[name](posed(name, ask), x, sigmas, noise=noise, callback=callback, **options)
    return Trace(steps, end, asked, drawn)


def theirs(name: str, sigmas: list[float], dtype: torch.dtype, model: Any = exact.mixture, **options: Any) -> Trace:
    """Run k-diffusion's sampler of that formula."""
    sampling, _ = kdiffusion.load()
    steps: list[Step] = []
    asked: list[float] = []
    noise, drawn = _noise(dtype)
    known_as, same = KDIFFUSION[name]
    options = {**same, **options, "disable": True}

    def ask(x: Tensor, sigma: Tensor) -> Tensor:
        assert bool((sigma == sigma[0]).all())
        asked.append(float(sigma[0]))
        return model(x, float(sigma[0]))

    def callback(said: dict[str, Any]) -> None:
        steps.append(Step(said["i"], said["x"].clone(), float(said["sigma"]), said["denoised"].clone()))

    run, x = getattr(sampling, f"sample_{known_as}"), start(dtype, sigmas[0])
    if name in ("dpm_fast", "dpm_adaptive"):  # these take the ends alone, as numbers
        ends = (sigmas[-1] or sigmas[-2], sigmas[0])
        count = {"n": len(sigmas) - 1} if name == "dpm_fast" else {}
        torch.set_default_dtype(dtype)
        try:
            return Trace(steps, run(ask, x, *ends, callback=callback, **count, **options), asked, drawn)
        finally:
            torch.set_default_dtype(torch.float32)
    if name in ADD_NOISE:
        options["noise_sampler"] = noise
    return Trace(steps, run(ask, x, torch.tensor(sigmas, dtype=dtype), callback=callback, **options), asked, drawn)


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


#: k-diffusion's fail on one step to 0, or give noise back.
_NOT_ONE_STEP = {"dpm_fast", "dpm_adaptive", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"}


def compared(name: str) -> Iterator[tuple[str, list[float]]]:
    """Those of ``schedules`` that k-diffusion's sampler can run."""
    for label, sigmas in schedules(name):
        if len(sigmas) > 2 or name not in _NOT_ONE_STEP:
            yield label, sigmas


def difference(a: Trace, b: Trace) -> float:
    """The largest difference of x or denoised at any step, and at the end, relative to the largest x there.

    Where the steps are not the same ones, as dpm_adaptive's may be for a last digit of its error, at the end alone.
    """
    if len(a.steps) != len(b.steps) or any(s.index != t.index for s, t in zip(a.steps, b.steps, strict=True)):
        return float((a.end.double() - b.end.double()).abs().max() / b.end.abs().max())
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
    """Our sampler against k-diffusion's of the same formula."""
    found = []
    for _, sigmas in compared(name):
        truth = theirs(name, sigmas, torch.float64)
        found.append(
            Errors(
                difference(ours(name, sigmas, torch.float64), truth),
                difference(ours(name, sigmas, torch.float32), truth),
                difference(theirs(name, sigmas, torch.float32), truth),
            )
        )
    return Errors(*map(max, zip(*found, strict=True)))


def guidance(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Guided and unguided estimates that differ: of the mixture, and of one of its sides with more spread."""
    guided = exact.mixture(x, sigma)
    return guided, torch.lerp(guided, exact.gaussian(x, sigma), 0.4)


def retelling(name: str, sigmas: list[float]) -> float:
    """The largest difference of our sampler's x at any step from its formula told again, relative to the largest x."""
    tell, options = TOLD[name]
    model = guidance if name in CFG_PP else lambda x, sigma: (exact.mixture(x, sigma),) * 2
    noise, _ = _noise(torch.float64)
    wanted = list(tell(model, start(torch.float64, sigmas[0]), sigmas, noise, **options))
    seen: list[Tensor] = []
    noise, _ = _noise(torch.float64)
    end = SAMPLERS[name](
        model if name in CFG_PP else exact.mixture,
        start(torch.float64, sigmas[0]),
        sigmas,
        noise=noise,
        callback=lambda i, x, sigma, denoised: seen.append(x.clone()),
    )
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip([*seen[1:], end], wanted, strict=True))


def rounding(name: str) -> float:
    """The largest difference of our float32 from our float64."""
    return max(
        difference(ours(name, sigmas, torch.float32), ours(name, sigmas, torch.float64))
        for _, sigmas in schedules(name)
    )


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
    """Error against the exact probability flow of Gaussian data, by number of steps.

    UniPC's is taken before its last steps, which are of lower order.
    """
    if name in ADD_NOISE:
        options = {**_NOISELESS.get(name, {"eta": 0.0}), **options}
    errors = []
    for count in counts:
        sigmas = (ramped if name in _RAMPED else even)(count)
        trace = ours(name, sigmas, torch.float64, exact.gaussian, **options)
        x, sigma = trace.end, sigmas[-1]
        if name.startswith("uni_pc"):
            _, x, sigma, _ = trace.steps[-3]
        wanted = exact.gaussian_flow(start(torch.float64, sigmas[0]), sigmas[0], sigma)
        errors.append(float((x - wanted).abs().max()))
    return errors


def variance_errors(name: str, counts: list[int]) -> list[float]:
    """Error of the variance that a sampler which adds noise ends with, by number of steps.

    The model is linear, so x is a sum of the start and of every piece of one Brownian path between the levels at
    which noise is asked for, each times a number. Let these be unit vectors and the sampler computes those numbers:
    no chance is involved.
    """
    errors = []
    for count in counts:
        sigmas, asked = even(count), set[float]()

        def listen(sigma: float, following: float, asked: set[float] = asked) -> Tensor:
            asked.update((sigma, following))
            return torch.zeros(1, dtype=torch.float64)

        run = SAMPLERS[name]
        run(posed(name, exact.centred), torch.zeros(1, dtype=torch.float64), sigmas, noise=listen)
        levels = sorted(asked)
        lengths = torch.tensor(levels, dtype=torch.float64).diff()

        def path(sigma: float, following: float, levels: list[float] = levels, lengths: Tensor = lengths) -> Tensor:
            out = torch.zeros(len(lengths) + 1, dtype=torch.float64)
            if sigma > following:
                low, high = levels.index(following), levels.index(sigma)
                out[low + 1 : high + 1] = (lengths[low:high] / (sigma - following)).sqrt()
            return out

        x = torch.zeros(len(lengths) + 1, dtype=torch.float64)
        x[0] = math.sqrt(exact.SPREAD**2 + sigmas[0] ** 2)
        end = run(posed(name, exact.centred), x, sigmas, noise=path)
        errors.append(abs(float(end.square().sum()) - exact.SPREAD**2 - sigmas[-1] ** 2))
    return errors


def order(errors: list[float]) -> float:
    """The exponent with which the error fell when the steps doubled last."""
    return math.log2(errors[-2] / errors[-1])
