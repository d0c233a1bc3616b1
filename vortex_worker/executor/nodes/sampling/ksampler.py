"""The KSampler node. Imports torch only when it runs: its declaration is read before torch is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vortex_worker.errors import ExecutionError
from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.ports import Param, Port

if TYPE_CHECKING:
    from torch import Tensor

# The names of `samplers.SAMPLERS` and `schedules.SCHEDULES`, which import torch; a test holds them equal.
SAMPLER_NAMES = ("euler", "euler_ancestral", "heun", "dpm_2", "dpmpp_2m")
SCHEDULE_NAMES = ("normal", "karras", "simple", "sgm_uniform", "exponential", "ddim_uniform")


class KSampler(AbstractExecutor):
    """Denoise a latent with a diffusion model under classifier-free guidance."""

    op_type = "KSampler"
    input_ports = (
        Port("model", "MODEL"),
        Port("positive", "CONDITIONING", "what to draw"),
        Port("negative", "CONDITIONING", "what to steer away from"),
        Port("latent", "LATENT", "where to start", aliases=("latent_image",)),
    )
    output_ports = (Port("latent", "LATENT"),)
    params = (
        Param("seed", "INT", default=0, minimum=0, maximum=(1 << 64) - 1),
        Param("steps", "INT", default=20, minimum=1, maximum=10_000),
        Param("cfg", "FLOAT", default=8.0, minimum=0.0, maximum=100.0, doc="guidance scale; 1: none"),
        Param("sampler_name", "CHOICE", default="euler", choices=SAMPLER_NAMES),
        Param("scheduler", "CHOICE", default="normal", choices=SCHEDULE_NAMES),
        Param("denoise", "FLOAT", default=1.0, minimum=0.0, maximum=1.0, doc="1: from pure noise"),
    )

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        from vortex_worker.executor.nodes.sampling.guidance import problem_of
        from vortex_worker.executor.nodes.sampling.model import DiffusionModel

        model, samples = inputs["model"], inputs["latent"]["samples"]
        if not isinstance(model, DiffusionModel):
            return [f"'model' is a {type(model).__name__}: it takes a DiffusionModel"]
        problems = [
            problem
            for name in ("positive", "negative")
            if (problem := problem_of(inputs[name], name, samples.shape[0]))
        ]
        if model.latent_channels not in (None, samples.shape[1]):
            problems.append(f"'latent' has {samples.shape[1]} channels: the model takes {model.latent_channels}")
        if not samples.is_floating_point():
            problems.append(f"'latent' is of {samples.dtype}: it takes a floating-point tensor")
        index = inputs["latent"].get("batch_index")
        if index is not None and not (
            isinstance(index, list)
            and len(index) == samples.shape[0]
            and all(isinstance(i, int) and 0 <= i < 4096 for i in index)
        ):
            problems.append("'latent' has a batch_index that is not one number, 0 to 4095, for each sample")
        if inputs["latent"].get("noise_mask") is not None:
            problems.append("'latent' has a noise_mask: inpainting is not supported")
        return problems

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from vortex_worker.executor.nodes.sampling import noise
        from vortex_worker.executor.nodes.sampling.guidance import guided
        from vortex_worker.executor.nodes.sampling.samplers import DROP_PENULTIMATE, SAMPLERS
        from vortex_worker.executor.nodes.sampling.schedules import sigmas_for

        model, latent, device = inputs["model"], inputs["latent"], self.context.device
        samples: Tensor = latent["samples"]
        steps, name = params["steps"], params["sampler_name"]
        extra = name in DROP_PENULTIMATE
        schedule = sigmas_for(model, params["scheduler"], steps + extra, params["denoise"])
        sigmas = schedule.tolist()
        if extra and len(sigmas) > 2:
            del sigmas[-2]
        if len(sigmas) < 2:
            return {"latent": dict(latent)}

        start, level = model.noise_scale(sigmas[0])
        drawn = noise.initial(samples, params["seed"], latent.get("batch_index"))
        x = samples.to(device, drawn.dtype) * start + drawn.to(device) * level
        denoise = guided(model, inputs["positive"], inputs["negative"], params["cfg"], samples.shape[0], device)
        total = len(sigmas) - 1

        def report(step: int, x: Tensor, sigma: float, denoised: Tensor) -> None:
            # A sum is NaN or infinite if any term is, and on the CPU costs nothing beside the network.
            if not denoised.sum().isfinite():
                raise ExecutionError(
                    f"the model gave NaN or infinity at step {step + 1} of {total} (sigma {sigma:.4g})",
                    {"step": str(step + 1)},
                )
            self.context.progress(step, total)

        x = SAMPLERS[name](denoise, x, sigmas, noise=noise.NoiseSource(x, params["seed"]), callback=report)
        self.context.progress(total, total)
        out = self.context.empty(samples.shape, samples.dtype)
        out.copy_(x)
        return {"latent": {**latent, "samples": out}}


EXECUTORS = (KSampler,)
