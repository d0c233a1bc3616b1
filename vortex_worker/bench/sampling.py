"""``sample.*``: what sampling costs beside the model's own work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vortex_worker.bench.measure import Result, Skipped, Target, interleaved, median, p99

_STEPS = 20


def sample_overhead(quick: bool) -> Result:
    """KSampler through the fabric, API to API, beside the same loop alone in the same worker."""
    import time

    import torch

    from vortex_worker.executor.nodes.sampling.model import DiffusionModel
    from vortex_worker.executor.nodes.sampling.schedules import sigmas_for
    from vortex_worker.supervisor.fabric import Fabric

    table = DiffusionModel(lambda *_: torch.empty(0))
    sigmas = sigmas_for(table, "karras", _STEPS)
    levels = torch.tensor([[sigma, table.sigma_to_t(sigma)] for sigma in sigmas])
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(3))
    start = noise * (sigmas[0] ** 2 + 1) ** 0.5
    cond, uncond = torch.ones(1, 7, 8), torch.zeros(1, 7, 8)
    through: list[float] = []
    alone: list[float] = []
    with Fabric(1, standby=0, threads=1, custom_nodes=Path(__file__).parent / "nodes") as fabric:
        model = fabric.run("BenchModel")["model"]
        plain = {"model": model, "cond": cond, "uncond": uncond, "start": start, "levels": levels}
        inputs = {
            "model": model,
            "positive": [[cond, {}]],
            "negative": [[uncond, {}]],
            "latent": {"samples": torch.zeros(1, 4, 64, 64)},
        }
        settings = {"seed": 3, "steps": _STEPS, "cfg": 4.0, "sampler_name": "euler", "scheduler": "karras"}

        def by_hand() -> Any:
            loop = fabric.run("BenchLoop", plain)
            alone.append(loop["seconds"])
            return loop["out"]

        def by_ksampler() -> Any:
            begun = time.perf_counter()
            out = fabric.run("KSampler", inputs, settings)["latent"]["samples"]
            through.append(time.perf_counter() - begun)
            return out

        drawn, wanted = by_ksampler(), by_hand()
        assert (drawn - wanted).abs().max() < 1e-3 * wanted.abs().max()
        through.clear()  # they warmed up
        alone.clear()
        for turn in range(3 if quick else 24):
            for run in (by_hand, by_ksampler) if turn % 2 else (by_ksampler, by_hand):
                run()
    return Result(
        f"KSampler of {_STEPS} steps, API to API", "ms", median(through) * 1e3, p99(through) * 1e3,
        "the loop alone, in plain torch in the same worker", median(alone) * 1e3, Target("ratio", 1.01, 1.003),
    )  # fmt: skip


def sample_step(quick: bool) -> Result:
    """One step of DPM-Solver++(2M) under guidance, around a model that takes next to no time, in one process.

    Raises:
        Skipped: neither k-diffusion nor diffusers is installed.
    """
    import torch

    from vortex_worker.executor.nodes.sampling.guidance import guided
    from vortex_worker.executor.nodes.sampling.model import DiffusionModel
    from vortex_worker.executor.nodes.sampling.samplers import SAMPLERS
    from vortex_worker.executor.nodes.sampling.schedules import sigmas_for

    def network(x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return x * 0.5 + cond[:, :, None, None]

    model = DiffusionModel(network)
    cond, uncond = torch.ones(1, 4), torch.zeros(1, 4)
    others = _others(model, network, cond, uncond)
    if not others:
        raise Skipped("neither k-diffusion nor diffusers is installed")
    x = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(3)) * model.sigma_max
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            sigmas = sigmas_for(model, "karras", _STEPS)

            def ours() -> torch.Tensor:
                denoiser = guided(model, [[cond, {}]], [[uncond, {}]], 4.0, x)
                return SAMPLERS["dpmpp_2m"](denoiser, x, sigmas)

            found: list[tuple[list[float], list[float], str]] = []
            for name, run in others.items():
                difference = (run(x) - ours()).abs().max() / x.abs().max()
                assert difference < 1e-3, f"{name}: {difference}"
                both = interleaved(ours, lambda run=run: run(x), rounds=10 if quick else 60, loops=10)  # type: ignore[misc]
                found.append((*both, name))
    finally:
        torch.set_num_threads(threads)
    mine, theirs, name = min(found, key=lambda pair: median(pair[1]) / median(pair[0]))
    per_step = 1e6 / _STEPS
    return Result(
        "a step of dpmpp_2m, beside the model", "µs", median(mine) * per_step, p99(mine) * per_step,
        f"{name}'s, the quicker of {' and '.join(others)}", median(theirs) * per_step, Target("ratio", 1.0, 0.8),
    )  # fmt: skip


def _others(model: Any, network: Any, cond: Any, uncond: Any) -> dict[str, Callable[[Any], Any]]:
    """The same run by those that are installed, each as its own users write it: one batch for both conditionings."""
    import torch

    from vortex_worker.bench import kdiffusion

    both = torch.cat([cond, uncond])
    kept = 1 / (model.sigmas.double() ** 2 + 1)
    runs: dict[str, Callable[[Any], Any]] = {}
    try:
        sampling, external = kdiffusion.load()
    except ImportError:
        pass
    else:
        inner = external.DiscreteEpsDDPMDenoiser(lambda x, t: network(x, t, both), kept.float(), quantize=False)
        levels = sampling.get_sigmas_karras(_STEPS, model.sigma_min, model.sigma_max)

        def denoise(x: Any, sigma: Any) -> Any:
            with_, without = inner(torch.cat([x, x]), torch.cat([sigma, sigma])).chunk(2)
            return without + (with_ - without) * 4.0

        runs["k-diffusion"] = lambda x: sampling.sample_dpmpp_2m(denoise, x, levels, disable=True)
    try:
        from diffusers import DPMSolverMultistepScheduler
    except ImportError:
        return runs

    betas = (1 - kept / torch.cat([torch.ones(1), kept[:-1]])).float().numpy()
    options = {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True, "euler_at_final": True}
    scheduler = DPMSolverMultistepScheduler(1000, trained_betas=betas, **options)

    def loop(x: Any) -> Any:
        scheduler.set_timesteps(_STEPS)
        x = x / (1 + scheduler.sigmas[0] ** 2) ** 0.5
        for t in scheduler.timesteps:
            seen = scheduler.scale_model_input(torch.cat([x, x]), t)
            with_, without = network(seen, t, both).chunk(2)
            x = scheduler.step(without + (with_ - without) * 4.0, t, x, return_dict=False)[0]
        return x

    runs["diffusers"] = loop
    return runs
