"""Latents from files: safetensors, as ComfyUI's SaveLatent writes them."""

from __future__ import annotations

from typing import Any

from vortex_worker.errors import ValidationError
from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.ports import Param, Port

_FIRST_SCALE = 1 / 0.18215  # of files without the mark of a version: Stable Diffusion's, scaled as its VAE gives them


class LoadLatent(AbstractExecutor):
    """Decode a latent file's bytes. The client's side of this node reads the file."""

    op_type = "LoadLatent"
    output_ports = (Port("latent", "LATENT"),)
    params = (Param("data", "BYTES", doc="the file's content: safetensors with latent_tensor"),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(params["data"])
        except KeyError as error:
            raise ValidationError(f"'data' has a tensor of dtype {error}: it takes floats") from None
        except (SafetensorError, ValueError, RuntimeError) as error:
            raise ValidationError(
                f"'data' is {len(params['data'])} bytes of no sound safetensors file: {error}"
            ) from None
        samples = tensors.get("latent_tensor")
        if samples is None:
            raise ValidationError(
                f"'data' has no tensor latent_tensor: it has {', '.join(sorted(tensors)[:5]) or 'none'}"
            )
        if samples.dim() < 3 or not samples.is_floating_point():
            raise ValidationError(
                f"'data' has a latent_tensor {list(samples.shape)} of {samples.dtype}: "
                "it takes floats, 3 dimensions or more"
            )
        scale = 1.0 if "latent_format_version_0" in tensors else _FIRST_SCALE
        return {"latent": {"samples": samples.float() * scale}}


EXECUTORS = (LoadLatent,)
