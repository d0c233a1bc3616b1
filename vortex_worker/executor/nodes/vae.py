"""Nodes between images and latents."""

from __future__ import annotations

from typing import Any

from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.ports import Param, Port

_LATENT = (Port("latent", "LATENT"),)
_SAMPLES = Port("samples", "LATENT")
_PIXELS = Port("pixels", "IMAGE")
_VAE = Port("vae", "VAE")
_IMAGE = (Port("image", "IMAGE"),)
_TILES = (
    Param("tile_size", "INT", default=512, minimum=64, maximum=4096, doc="pixels"),
    Param("overlap", "INT", default=64, minimum=0, maximum=4096, doc="pixels; at most half a tile"),
    Param("temporal_size", "INT", default=64, minimum=8, maximum=4096, doc="of video; nothing here has one"),
    Param("temporal_overlap", "INT", default=8, minimum=4, maximum=4096, doc="likewise"),
)


class _OfVAE(AbstractExecutor):
    """What all of these check."""

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        from vortex_worker.executor.diffusion.vae import VAE

        vae, problems = inputs["vae"], []
        if not isinstance(vae, VAE):
            return [f"'vae' is a {type(vae).__name__}: it takes a VAE"]
        if "samples" in inputs:
            samples = inputs["samples"]["samples"]
            if not samples.is_floating_point():
                problems.append(f"'samples' is of {samples.dtype}: it takes a floating-point tensor")
            shape = samples.shape
            if len(shape) != 4 or shape[1] != vae.latent_channels or 0 in shape:
                problems.append(f"'samples' is {list(shape)}: it takes [batch, {vae.latent_channels}, height, width]")
        if "pixels" in inputs:
            shape = inputs["pixels"].shape
            if min(shape[1:3]) < vae.factor or shape[0] == 0:
                problems.append(f"'pixels' is {list(shape)}: it takes images of {vae.factor}×{vae.factor} or more")
        return problems

    def report(self, step: int, total: int) -> None:
        self.context.progress(step, total)


class VAEDecode(_OfVAE):
    """Latents to images."""

    op_type = "VAEDecode"
    input_ports = (_SAMPLES, _VAE)
    output_ports = _IMAGE

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"image": inputs["vae"].decode(inputs["samples"]["samples"], self.report)}


class VAEDecodeTiled(_OfVAE):
    """Latents to images in tiles, which bounds the memory that a large one takes."""

    op_type = "VAEDecodeTiled"
    input_ports = (_SAMPLES, _VAE)
    output_ports = _IMAGE
    params = _TILES

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        vae = inputs["vae"]
        size, overlap = (max(1, params["tile_size"] // vae.factor), params["overlap"] // vae.factor)
        return {"image": vae.decode_tiled(inputs["samples"]["samples"], size, min(overlap, size // 2), self.report)}


class VAEEncode(_OfVAE):
    """Images to latents. Edges that fill no whole latent are cut off."""

    op_type = "VAEEncode"
    input_ports = (_PIXELS, _VAE)
    output_ports = _LATENT

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"latent": {"samples": inputs["vae"].encode(inputs["pixels"], self.report)}}


class VAEEncodeTiled(_OfVAE):
    """Images to latents in tiles."""

    op_type = "VAEEncodeTiled"
    input_ports = (_PIXELS, _VAE)
    output_ports = _LATENT
    params = _TILES

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        vae = inputs["vae"]
        size = max(1, params["tile_size"] // vae.factor) * vae.factor
        overlap = min(params["overlap"], size // 2) // vae.factor * vae.factor
        return {"latent": {"samples": vae.encode_tiled(inputs["pixels"], size, overlap, self.report)}}


class VAEEncodeForInpaint(_OfVAE):
    """Images to latents, with what the mask marks greyed out, and the mask for the sampler."""

    op_type = "VAEEncodeForInpaint"
    input_ports = (_PIXELS, _VAE, Port("mask", "MASK", "1 where to draw"))
    output_ports = _LATENT
    params = (Param("grow_mask_by", "INT", default=6, minimum=0, maximum=64, doc="pixels"),)

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        problems, mask = super().validate(inputs, params), inputs["mask"]
        count = mask.shape[:-2].numel() if mask.dim() >= 2 else 0
        if 0 in mask.shape or count not in (1, len(inputs["pixels"])):
            problems.append(f"'mask' is a tensor {list(mask.shape)}: it takes one [height, width] for all, or for each")
        return problems

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from torch.nn.functional import interpolate, max_pool2d

        vae, pixels, mask = inputs["vae"], inputs["pixels"], inputs["mask"].float()
        mask = mask.reshape(-1, 1, *mask.shape[-2:])
        mask = interpolate(mask, pixels.shape[1:3], mode="bilinear").movedim(1, -1)
        pixels, mask = vae.cropped(pixels), vae.cropped(mask).round()
        kept = (pixels - 0.5) * (1 - mask) + 0.5
        samples = vae.encode(kept, self.report)
        mask = mask.movedim(-1, 1)
        size = params["grow_mask_by"]
        if size:  # an even size grows by one more at the top and left
            height, width = mask.shape[-2:]
            mask = max_pool2d(mask, size, stride=1, padding=size // 2)[..., :height, :width]
        return {"latent": {"samples": samples, "noise_mask": mask}}


EXECUTORS = (VAEDecode, VAEDecodeTiled, VAEEncode, VAEEncodeTiled, VAEEncodeForInpaint)
