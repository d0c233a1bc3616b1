"""Families of models, and what the shapes of a file's weights can't tell of them."""

from __future__ import annotations

from dataclasses import dataclass

from vortex_worker.executor.diffusion import sd3


@dataclass(frozen=True)
class Family:
    """One family.

    Args:
        marker: a tensor that only this family's checkpoints have, or the beginning of its name.
        latent_scale: what a VAE's latents are multiplied by for the network.
    """

    name: str
    marker: str
    latent_scale: float


MODEL = "model.diffusion_model."  # what the diffusion model's names begin with in a checkpoint
SDXL = Family("Stable Diffusion XL", "conditioner.embedders.1.model.", 0.13025)
SD3 = Family("Stable Diffusion 3", MODEL + "joint_blocks.", sd3.LATENT_SCALE)
SD2 = Family("Stable Diffusion 2", "cond_stage_model.model.", 0.18215)
SD1 = Family("Stable Diffusion 1", "cond_stage_model.transformer.", 0.18215)
FAMILIES = (SD3, SDXL, SD2, SD1)
