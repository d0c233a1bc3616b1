"""What a checkpoint gives: a diffusion model, a text encoder, a VAE; from a single file or a diffusers folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch

from vortex_worker.errors import ValidationError
from vortex_worker.executor.diffusion.networks import ControlNet
from vortex_worker.executor.diffusion.text import TextEncoder
from vortex_worker.executor.diffusion.vae import VAE
from vortex_worker.executor.nodes.sampling.model import DiffusionModel

Parts = tuple[DiffusionModel, TextEncoder, VAE]


def load(path: Path, device: torch.device) -> Parts:
    """The three parts of a checkpoint.

    Raises:
        ValidationError: it is no checkpoint of a known family, damaged, or a pickle.
    """
    require_libraries()
    from vortex_worker.executor.diffusion import folder, single_file

    return folder.load(path, device) if path.is_dir() else single_file.load(path, device)


def load_vae(path: Path, device: torch.device) -> VAE:
    """A VAE by itself: a file with or without the names that checkpoints have, or a diffusers folder of one."""
    require_libraries()
    from vortex_worker.executor.diffusion import folder, single_file

    return folder.load_vae(path, device) if path.is_dir() else single_file.load_vae(path, device)


def load_model(path: Path, device: torch.device, rounded: torch.dtype | None = None) -> DiffusionModel:
    """A diffusion model by itself, of a safetensors file; its weights ``rounded`` to what that dtype holds."""
    require_libraries()
    from vortex_worker.executor.diffusion import separate

    return separate.load_model(path, device, rounded)


def load_text(paths: Sequence[Path], family: str, device: torch.device) -> TextEncoder:
    """A text encoder by itself, of safetensors files. ``family``: a type of ComfyUI's CLIP loaders."""
    require_libraries()
    from vortex_worker.executor.diffusion import separate

    return separate.load_text(paths, family, device)


def load_controlnet(path: Path, device: torch.device) -> ControlNet:
    """A ControlNet, of a safetensors file."""
    require_libraries()
    from vortex_worker.executor.diffusion import controlnets

    return controlnets.load(path, device)


def require_libraries() -> None:
    """Raises ValidationError where the extra isn't installed."""
    if missing := [name for name in ("diffusers", "transformers") if importlib.util.find_spec(name) is None]:
        raise ValidationError(
            f"{' and '.join(missing)} must be installed for this: pip install vortex-worker[diffusion]"
        )
