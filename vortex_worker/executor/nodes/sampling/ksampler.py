"""The KSampler node. Imports torch only when it runs: its declaration is read before torch is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vortex_worker.errors import ExecutionError
from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.ports import Param, Port
from vortex_worker.executor.validation import is_tensor

if TYPE_CHECKING:
    from torch import Tensor

# The names of `samplers.SAMPLERS` and `schedules.SCHEDULES`, which import torch; a test holds them equal.
SAMPLER_NAMES = (
    "euler", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "lms", "dpmpp_2s_ancestral", "dpmpp_2m",
)  # fmt: skip
SCHEDULE_NAMES = (
    "normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform", "beta", "kl_optimal",
)  # fmt: skip
MAX_BATCH_INDEX = 4095  # noise is drawn for every index below, too


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
        from vortex_worker.executor.nodes.sampling.samplers import ADD_NOISE
        from vortex_worker.executor.nodes.sampling.schedules import MAX_STEPS

        model, latent = inputs["model"], inputs["latent"]
        samples: Tensor = latent["samples"]
        if not isinstance(model, DiffusionModel):
            return [f"'model' is a {type(model).__name__}: it takes a DiffusionModel"]
        problems = [
            problem
            for name in ("positive", "negative")
            if (problem := problem_of(model, inputs[name], name, samples.shape[0]))
        ]
        if model.latent_channels not in (None, samples.shape[1]) and samples.any():
            problems.append(f"'latent' has {samples.shape[1]} channels: it takes {model.latent_channels}")
        if not samples.is_floating_point():
            problems.append(f"'latent' is of {samples.dtype}: it takes a floating-point tensor")
        index = latent.get("batch_index")
        if index is not None and not (
            isinstance(index, list)
            and len(index) == samples.shape[0]
            and all(isinstance(i, int) and 0 <= i <= MAX_BATCH_INDEX for i in index)
        ):
            problems.append(f"'latent' has a bad batch_index: it takes one of 0 to {MAX_BATCH_INDEX} a sample")
        mask = latent.get("noise_mask")
        if mask is not None and not (is_tensor(mask) and _fits(mask, samples)):
            problems.append(f"'latent' has a bad noise_mask: it takes [{len(samples)} or 1, …, height, width], 0 to 1")
        steps, denoise = params["steps"], params["denoise"]
        if 0 < denoise * MAX_STEPS < steps:
            least = steps / MAX_STEPS
            problems.append(f"'denoise' is {denoise:g}: with {steps} steps it takes 0, or at least {least:g}")
        if model.parametrization == "flow" and params["sampler_name"] in ADD_NOISE:
            problems.append(f"'sampler_name' is {params['sampler_name']}: not for a flow model")
        return problems

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from vortex_worker.executor.nodes.sampling import noise
        from vortex_worker.executor.nodes.sampling.guidance import guided, masked
        from vortex_worker.executor.nodes.sampling.samplers import DROP_PENULTIMATE, SAMPLERS
        from vortex_worker.executor.nodes.sampling.schedules import sigmas_for

        model, latent, context, device = inputs["model"], inputs["latent"], self.context, self.context.device
        samples: Tensor = latent["samples"]
        if model.latent_channels not in (None, samples.shape[1]):  # empty: of whatever channels the model has
            samples = samples.new_zeros(len(samples), model.latent_channels, *samples.shape[2:])
        seed, name = params["seed"], params["sampler_name"]
        sigmas = sigmas_for(
            model,
            params["scheduler"],
            params["steps"],
            params["denoise"],
            drop_penultimate=name in DROP_PENULTIMATE,
        )
        if not sigmas:
            return {"latent": {**latent, "samples": samples}}
        # Before the work: a lease that is full should fail the job now.
        out = context.empty(samples.shape, samples.dtype)

        start, level = model.noise_scale(sigmas[0])
        drawn = noise.initial(samples, seed, latent.get("batch_index")).to(device)
        original = model.scaled(samples.to(device, drawn.dtype))
        x = drawn * level + original * start
        denoiser = guided(model, inputs["positive"], inputs["negative"], params["cfg"], x)
        mask = latent.get("noise_mask")
        if mask is not None:
            mask = _resized(mask.to(device, x.dtype), x)
            denoiser = masked(model, denoiser, mask, original, drawn)
        total = len(sigmas) - 1

        def report(step: int, x: Tensor, sigma: float, denoised: Tensor) -> None:
            # A sum is NaN or infinite if a term is. On a GPU this waits for the step, which progress and
            # cancellation want anyway.
            if not denoised.sum().isfinite():
                culprit = "the model gave" if x.isfinite().all() else "the latent holds"
                raise ExecutionError(
                    f"{culprit} NaN or infinity at step {step + 1} of {total} (sigma {sigma:.4g})",
                    {"step": str(step + 1)},
                )
            context.progress(step, total)

        source = noise.NoiseSource(x, seed)
        out.copy_(model.unscaled(SAMPLERS[name](denoiser, x, sigmas, noise=source, callback=report)))
        context.progress(total, total)
        return {"latent": {**latent, "samples": out}}


def _fits(mask: Tensor, samples: Tensor) -> bool:
    return mask.dim() >= 2 and 0 not in mask.shape and mask.shape[:-2].numel() in (1, len(samples))


def _resized(mask: Tensor, like: Tensor) -> Tensor:
    """A mask of any size as [B or 1, 1, height, width] of the latent."""
    from torch.nn.functional import interpolate

    mask = mask.reshape(-1, 1, *mask.shape[-2:])
    return interpolate(mask, like.shape[-2:], mode="bilinear").clamp(0, 1)


EXECUTORS = (KSampler,)
