"""The KSampler nodes. They import torch only when they run: declarations are read before torch is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.nodes.sampling.patches import model_problems
from vortex_worker.executor.ports import Param, Port
from vortex_worker.executor.validation import is_tensor

if TYPE_CHECKING:
    from torch import Tensor

# The names of `samplers.SAMPLERS` and `schedules.SCHEDULES`, which import torch; a test holds them equal.
SAMPLER_NAMES = (
    "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "exp_heun_2_x0",
    "exp_heun_2_x0_sde", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp", "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm",
    "lcm", "ipndm", "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2",
    "seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2",
)  # fmt: skip
SCHEDULE_NAMES = (
    "normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform", "beta", "linear_quadratic",
    "kl_optimal",
)  # fmt: skip
MAX_BATCH_INDEX = 4095  # noise is drawn for every index below, too
MAX_SEED = (1 << 64) - 1

_INPUTS = (
    Port("model", "MODEL"),
    Port("positive", "CONDITIONING", "what to draw"),
    Port("negative", "CONDITIONING", "what to steer away from"),
    Port("latent", "LATENT", "where to start", aliases=("latent_image",)),
)
_SETTINGS = (
    Param("steps", "INT", default=20, minimum=1, maximum=10_000),
    Param("cfg", "FLOAT", default=8.0, minimum=0.0, maximum=100.0, doc="guidance scale; 1: none"),
    Param("sampler_name", "CHOICE", default="euler", choices=SAMPLER_NAMES),
    Param("scheduler", "CHOICE", default="normal", choices=SCHEDULE_NAMES),
)


class KSampler(AbstractExecutor):
    """Denoise a latent with a diffusion model under classifier-free guidance."""

    op_type = "KSampler"
    input_ports = _INPUTS
    output_ports = (Port("latent", "LATENT"),)
    params = (
        Param("seed", "INT", default=0, minimum=0, maximum=MAX_SEED),
        *_SETTINGS,
        Param("denoise", "FLOAT", default=1.0, minimum=0.0, maximum=1.0, doc="1: from pure noise"),
    )

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        from vortex_worker.executor.nodes.sampling.schedules import MAX_STEPS

        problems = _problems(inputs)
        steps, denoise = params["steps"], params["denoise"]
        if 0 < denoise * MAX_STEPS < steps:
            least = steps / MAX_STEPS
            problems.append(f"'denoise' is {denoise:g}: with {steps} steps it takes 0, or at least {least:g}")
        return problems

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from vortex_worker.executor.nodes.sampling.sample import sample
        from vortex_worker.executor.nodes.sampling.samplers import DROP_PENULTIMATE
        from vortex_worker.executor.nodes.sampling.schedules import sigmas_for

        name = params["sampler_name"]
        sigmas = sigmas_for(
            inputs["model"],
            params["scheduler"],
            params["steps"],
            params["denoise"],
            drop_penultimate=name in DROP_PENULTIMATE,
        )
        return {
            "latent": sample(
                self.context, **inputs, sampler=name, sigmas=sigmas, cfg=params["cfg"], seed=params["seed"]
            )
        }


class KSamplerAdvanced(AbstractExecutor):
    """Some steps of a schedule: from noise or from a latent that holds some, to a picture or to what is left to do."""

    op_type = "KSamplerAdvanced"
    input_ports = _INPUTS
    output_ports = (Port("latent", "LATENT"),)
    params = (
        Param("add_noise", "CHOICE", default="enable", choices=("enable", "disable")),
        Param("noise_seed", "INT", default=0, minimum=0, maximum=MAX_SEED),
        *_SETTINGS,
        Param("start_at_step", "INT", default=0, minimum=0, maximum=10_000),
        Param("end_at_step", "INT", default=10_000, minimum=0, maximum=10_000),
        Param("return_with_leftover_noise", "CHOICE", default="disable", choices=("disable", "enable")),
    )

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        return _problems(inputs)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from vortex_worker.executor.nodes.sampling.sample import sample
        from vortex_worker.executor.nodes.sampling.samplers import DROP_PENULTIMATE
        from vortex_worker.executor.nodes.sampling.schedules import sigmas_for

        name = params["sampler_name"]
        sigmas = sigmas_for(
            inputs["model"],
            params["scheduler"],
            params["steps"],
            drop_penultimate=name in DROP_PENULTIMATE,
            first_step=params["start_at_step"],
            last_step=params["end_at_step"],
            leftover=params["return_with_leftover_noise"] == "enable",
        )
        out = sample(
            self.context,
            **inputs,
            sampler=name,
            sigmas=sigmas,
            cfg=params["cfg"],
            seed=params["noise_seed"],
            add_noise=params["add_noise"] == "enable",
        )
        return {"latent": out}


def _problems(inputs: dict[str, Any]) -> list[str]:
    """What keeps these inputs from being sampled, by name."""
    from vortex_worker.executor.nodes.sampling.conditioning import problem_of

    model, latent = inputs["model"], inputs["latent"]
    if problems := model_problems(model):
        return problems
    samples: Tensor = latent["samples"]
    of_pictures = getattr(model.network, "of_pictures", False)
    if 0 in samples.shape or (of_pictures and samples.dim() != 4):
        takes = "height, width" if of_pictures else "…"
        return [f"'latent' is a tensor {list(samples.shape)}: it takes [batch, channels, {takes}], none of them 0"]
    problems = [
        problem for name in ("positive", "negative") if (problem := problem_of(model, inputs[name], name, samples))
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
    return problems


def _fits(mask: Tensor, samples: Tensor) -> bool:
    fits = mask.dim() >= 2 and 0 not in mask.shape and mask.shape[:-2].numel() in (1, len(samples))
    return fits and bool(mask.isfinite().all())


EXECUTORS = (KSampler, KSamplerAdvanced)
