"""Checkpoints as diffusers saves them: a folder of parts, each with its configuration as JSON.

Only classes named here are made, whatever a folder asks for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vortex_worker.errors import ValidationError
from vortex_worker.executor.diffusion import sd3, t5
from vortex_worker.executor.diffusion.networks import UNet, sdxl_extras
from vortex_worker.executor.diffusion.parts import build
from vortex_worker.executor.diffusion.text import TextEncoder, Tower
from vortex_worker.executor.diffusion.tokenizer import from_folder
from vortex_worker.executor.diffusion.vae import VAE
from vortex_worker.executor.diffusion.weights import read_folder, read_json, told_as_damage
from vortex_worker.executor.nodes.sampling.model import DiffusionModel, discrete_sigmas, zero_terminal

SD, SDXL, SD3 = "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def load(path: Path, device: torch.device) -> tuple[DiffusionModel, TextEncoder, VAE]:
    """The parts of a folder.

    Raises:
        ValidationError: of no known kind, or a part is missing or malformed.
    """
    kind = read_json(path / "model_index.json").get("_class_name")
    vae = load_vae(path / "vae", device)
    match kind:
        case "StableDiffusionPipeline":
            return _unet(path, vae, device), TextEncoder((_tower(path, "", device),)), vae
        case "StableDiffusionXLPipeline":
            side = {"layer": -2, "normed": False}
            towers = _tower(path, "", device, **side), _tower(path, "_2", device, **side)
            return _unet(path, vae, device), TextEncoder(towers), vae
        case "StableDiffusion3Pipeline":
            model = sd3.from_folder(path, vae, device)
            side = {"layer": -2, "normed": False}
            towers = _tower(path, "", device, **side), _tower(path, "_2", device, **side)
            joint, third = model.cond_width or 0, _t5(path / "text_encoder_3", device)
            return model, TextEncoder(towers, joint=joint, empty=sd3.T5_TOKENS, t5=third), vae
    raise ValidationError(f"{path.name} is a {str(kind)[:100]}: it takes one of {SD}, {SDXL}, {SD3}")


def load_vae(path: Path, device: torch.device) -> VAE:
    """The VAE of a folder that holds one."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    module: Any = _diffusers(AutoencoderKL, path, "VAE", device)
    scale, shift = module.config.scaling_factor, module.config.shift_factor
    if not _is_number(scale) or scale == 0:
        raise ValidationError(f"the VAE's scaling_factor is {scale!r:.50}: it takes a number, not 0")
    if shift is not None and not _is_number(shift):
        raise ValidationError(f"the VAE's shift_factor is {shift!r:.50}: it takes a number")
    return VAE(module)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30  # nor infinite, nor NaN


def _unet(path: Path, vae: VAE, device: torch.device) -> DiffusionModel:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    module: Any = _diffusers(UNet2DConditionModel, path / "unet", "U-Net", device)
    config = module.config
    if config.in_channels != config.out_channels:
        raise ValidationError(
            f"this U-Net takes {config.in_channels} channels: inpainting and other variants that see more than the "
            "latent are not supported; VAEEncodeForInpaint works with ordinary models"
        )
    scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    prediction = scheduler.get("prediction_type", "epsilon")
    if not isinstance(prediction, str) or prediction not in _PREDICTIONS:
        raise ValidationError(f"the scheduler predicts {prediction!r:.50}: it takes {', '.join(_PREDICTIONS)}")
    model = DiffusionModel(
        UNet(module),
        parametrization=_PREDICTIONS[prediction],
        sigmas=_sigmas(scheduler),
        latent_channels=config.in_channels,
        latent_scale=vae.module.config.scaling_factor,
        cond_width=config.cross_attention_dim,
        extras=sdxl_extras if config.addition_embed_type == "text_time" else None,
    )
    if scheduler.get("rescale_betas_zero_snr") is True:
        return model.with_sampling(model.parametrization, zero_terminal(model.sigmas))
    return model


def _sigmas(scheduler: dict[str, Any]) -> torch.Tensor:
    schedule = scheduler.get("beta_schedule", "scaled_linear")
    if schedule not in ("scaled_linear", "linear"):
        raise ValidationError(f"the scheduler's betas are {schedule!r:.50}: it takes scaled_linear or linear")
    first, last = scheduler.get("beta_start", 0.00085), scheduler.get("beta_end", 0.012)
    count = scheduler.get("num_train_timesteps", 1000)
    sound = isinstance(count, int) and 2 <= count <= 100_000
    if not sound or not all(isinstance(beta, float) for beta in (first, last)) or not 0 < first <= last < 1:
        raise ValidationError(f"the scheduler has {count!r:.30} steps of beta {first!r:.30} to {last!r:.30}")
    return discrete_sigmas(first, last, count, of_roots=schedule == "scaled_linear")


def _tower(path: Path, suffix: str, device: torch.device, **how: Any) -> Tower:
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

    folder = path / f"text_encoder{suffix}"
    given = read_json(folder / "config.json")
    classes = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
    named = given.get("architectures")
    make: Any = classes.get(named[0]) if isinstance(named, list) and named and isinstance(named[0], str) else None
    if make is None:
        raise ValidationError(f"{folder.name} is a {str(named)[:100]}: it takes {' or '.join(classes)}")

    def module() -> nn.Module:
        own: nn.Module = make(CLIPTextConfig.from_dict(given))
        return own

    weights = read_folder(folder, "model")
    tower = Tower(build(module, weights, "CLIP text encoder", device), from_folder(path / f"tokenizer{suffix}"), **how)
    tower.tokenizer.check(tower.table.num_embeddings)
    return tower


def _t5(folder: Path, device: torch.device) -> t5.T5 | None:
    """Stable Diffusion 3's third text encoder, where there is one."""
    if not folder.is_dir():
        return None
    tensors = read_folder(folder, "model")
    with told_as_damage(f"{folder.parent.name}/{folder.name} is a damaged text encoder", tensors):
        return t5.from_tensors(tensors, device)


def _diffusers(cls: Any, folder: Path, what: str, device: torch.device) -> nn.Module:
    config = read_json(folder / "config.json")
    if config.get("_class_name") != cls.__name__:
        raise ValidationError(f"{folder.name} is a {str(config.get('_class_name'))[:100]}: it takes a {cls.__name__}")
    return build(lambda: cls.from_config(config), read_folder(folder, "diffusion_pytorch_model"), what, device)
