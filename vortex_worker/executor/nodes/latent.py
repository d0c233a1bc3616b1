"""Nodes on latents: dicts with ``samples``, a tensor [batch, channels, height, width].

A latent may carry ``batch_index``, which draws of a batch's noise its samples get, and
``noise_mask``; nodes that change the batch change those with it.
"""

from __future__ import annotations

from typing import Any

from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.nodes.image import RESIZE_METHODS, resize, scale_problems, scaled_size
from vortex_worker.executor.nodes.overlay import laid_over, overlay_problems
from vortex_worker.executor.ports import Param, Port

_LATENT = (Port("latent", "LATENT"),)
_SAMPLES = (Port("samples", "LATENT"),)
_RESIZE_METHODS = (*(method for method in RESIZE_METHODS if method != "lanczos"), "bislerp")  # latents are no pictures
_FLIPS = {"x-axis: vertically": -2, "y-axis: horizontally": -1}
_TURNS = ("none", "90 degrees", "180 degrees", "270 degrees")


class EmptyLatentImage(AbstractExecutor):
    """A latent of zeros: the start of text-to-image. 4 channels, an eighth of the image's size."""

    op_type = "EmptyLatentImage"
    output_ports = _LATENT
    params = (
        Param("width", "INT", default=512, minimum=16, maximum=16384, doc="pixels"),
        Param("height", "INT", default=512, minimum=16, maximum=16384, doc="pixels"),
        Param("batch_size", "INT", default=1, minimum=1, maximum=4096),
    )

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        shape = (params["batch_size"], 4, params["height"] // 8, params["width"] // 8)
        return {"latent": {"samples": self.context.empty(shape).zero_()}}


class LatentUpscale(AbstractExecutor):
    """Resize a latent to an image's size in pixels. A width or height of 0 follows from the other."""

    op_type = "LatentUpscale"
    input_ports = _SAMPLES
    output_ports = _LATENT
    params = (
        Param("upscale_method", "CHOICE", default="nearest-exact", choices=_RESIZE_METHODS),
        Param("width", "INT", default=512, minimum=0, maximum=16384, doc="pixels"),
        Param("height", "INT", default=512, minimum=0, maximum=16384, doc="pixels"),
        Param("crop", "CHOICE", default="disabled", choices=("disabled", "center")),
    )

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        shape = inputs["samples"]["samples"].shape
        if len(shape) == 4 and 0 not in shape:
            return []
        return [f"'samples' is a tensor {list(shape)}: it takes [batch, channels, height, width], none of them 0"]

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        size = {side: max(8, params[side]) // 8 if params[side] else 0 for side in ("width", "height")}
        samples = resize(inputs["samples"]["samples"], {**params, **size})
        return {"latent": {**inputs["samples"], "samples": samples}}


class LatentUpscaleBy(AbstractExecutor):
    """Resize a latent by a factor."""

    op_type = "LatentUpscaleBy"
    input_ports = _SAMPLES
    output_ports = _LATENT
    params = (
        Param("upscale_method", "CHOICE", default="nearest-exact", choices=_RESIZE_METHODS),
        Param("scale_by", "FLOAT", default=1.5, minimum=0.01, maximum=8.0),
    )

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        return scale_problems("samples", inputs["samples"]["samples"], params["scale_by"])

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        samples = inputs["samples"]["samples"]
        return {"latent": {**inputs["samples"], "samples": resize(samples, scaled_size(samples, params))}}


class SetLatentNoiseMask(AbstractExecutor):
    """Have the sampler draw only where the mask is 1. The mask is resized to the latent then."""

    op_type = "SetLatentNoiseMask"
    input_ports = (*_SAMPLES, Port("mask", "MASK"))
    output_ports = _LATENT

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        mask, batch = inputs["mask"], len(inputs["samples"]["samples"])
        if mask.dim() >= 2 and 0 not in mask.shape and mask.shape[:-2].numel() in (1, batch):
            return []
        return [f"'mask' is a tensor {list(mask.shape)}: it takes one [height, width] for all, or for each"]

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        mask = inputs["mask"]
        return {"latent": {**inputs["samples"], "noise_mask": mask.reshape(-1, 1, *mask.shape[-2:])}}


class LatentComposite(AbstractExecutor):
    """Lay one latent over another, its inner edges faded."""

    op_type = "LatentComposite"
    input_ports = (Port("samples_to", "LATENT"), Port("samples_from", "LATENT"))
    output_ports = _LATENT
    params = tuple(
        Param(name, "INT", default=0, minimum=0, maximum=16384, doc="pixels") for name in ("x", "y", "feather")
    )

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        below, above = inputs["samples_to"]["samples"].shape, inputs["samples_from"]["samples"].shape
        if len(below) == len(above) == 4 and above[0] in (1, below[0]) and above[1] == below[1]:
            return []
        return [f"'samples_from' is {list(above)}: it can't be laid over {list(below)}"]

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        import torch

        out = inputs["samples_to"]["samples"].clone()
        x, y, feather = params["x"] // 8, params["y"] // 8, params["feather"] // 8
        height, width = out.shape[-2:]
        laid = inputs["samples_from"]["samples"][..., : max(0, height - y), : max(0, width - x)].to(out.dtype)
        h, w = laid.shape[-2:]
        down, across = torch.ones(h), torch.ones(w)
        steps = (torch.arange(feather) + 1) / max(1, feather)
        for line, begins, ends in ((down, y > 0, y + h < height), (across, x > 0, x + w < width)):
            edge = steps[: len(line)]
            if begins:
                line[: len(edge)] *= edge
            if ends:
                line[len(line) - len(edge) :] *= edge.flip(0)
        place = out[..., y : y + h, x : x + w]
        place.copy_(torch.lerp(place, laid, (down[:, None] * across).to(out.dtype)))
        return {"latent": {**inputs["samples_to"], "samples": out}}


class LatentCompositeMasked(AbstractExecutor):
    """Lay one latent over another, where a mask says."""

    op_type = "LatentCompositeMasked"
    input_ports = (Port("destination", "LATENT"), Port("source", "LATENT"), Port("mask", "MASK", optional=True))
    output_ports = _LATENT
    params = (
        Param("x", "INT", default=0, minimum=0, maximum=16384, doc="pixels"),
        Param("y", "INT", default=0, minimum=0, maximum=16384, doc="pixels"),
        Param("resize_source", "BOOLEAN", default=False, doc="to the size of destination"),
    )

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        below, above = inputs["destination"]["samples"], inputs["source"]["samples"]
        if problems := overlay_problems(below, above, inputs.get("mask")):
            return problems
        if below.shape[1] == above.shape[1]:
            return []
        return [f"'source' has {above.shape[1]} channels: it can't be laid over the {below.shape[1]} of 'destination'"]

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        below, above = inputs["destination"]["samples"], inputs["source"]["samples"]
        x, y, resized = params["x"] // 8, params["y"] // 8, params["resize_source"]
        samples = laid_over(below, above, x, y, inputs.get("mask"), resized=resized)
        return {"latent": {**inputs["destination"], "samples": samples}}


class EmptySD3LatentImage(AbstractExecutor):
    """A latent of zeros with 16 channels, as Stable Diffusion 3 and Flux have them."""

    op_type = "EmptySD3LatentImage"
    output_ports = _LATENT
    params = EmptyLatentImage.params

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        shape = (params["batch_size"], 16, params["height"] // 8, params["width"] // 8)
        return {"latent": {"samples": self.context.empty(shape).zero_()}}


class RepeatLatentBatch(AbstractExecutor):
    """Repeat a latent's batch. Each repetition gets noise of its own."""

    op_type = "RepeatLatentBatch"
    input_ports = _SAMPLES
    output_ports = _LATENT
    params = (Param("amount", "INT", default=1, minimum=1, maximum=64),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        latent, amount = dict(inputs["samples"]), params["amount"]
        batch = latent["samples"].shape[0]
        for name in ("samples", "noise_mask"):
            tensor = latent.get(name)
            if tensor is not None and tensor.shape[0] == batch:  # a mask of one holds for every sample
                latent[name] = tensor.repeat(amount, *[1] * (tensor.dim() - 1))
        index = latent.get("batch_index")
        if index:
            step = max(index) - min(index) + 1
            latent["batch_index"] = [i + step * turn for turn in range(amount) for i in index]
        return {"latent": latent}


class LatentFromBatch(AbstractExecutor):
    """Take some of a latent's batch, without a copy. They keep the noise they had in the batch."""

    op_type = "LatentFromBatch"
    input_ports = _SAMPLES
    output_ports = _LATENT
    params = (
        Param("batch_index", "INT", default=0, minimum=0, maximum=4095),
        Param("length", "INT", default=1, minimum=1, maximum=4096),
    )

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        size = inputs["samples"]["samples"].shape[0]
        if params["batch_index"] >= size:
            return [f"'batch_index' is {params['batch_index']}: the batch has {size}"]
        return []

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        latent = dict(inputs["samples"])
        batch = latent["samples"].shape[0]
        taken = slice(params["batch_index"], params["batch_index"] + params["length"])
        mask = latent.get("noise_mask")
        if mask is not None and mask.shape[0] == batch:
            latent["noise_mask"] = mask[taken]
        latent["batch_index"] = (latent.get("batch_index") or list(range(batch)))[taken]
        latent["samples"] = latent["samples"][taken]
        return {"latent": latent}


class _OfPlanes(AbstractExecutor):
    """Base of nodes on latents [batch, channels, height, width]."""

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        return [
            f"{name!r} is a tensor {list(shape)}: it takes [batch, channels, height, width], none of them 0"
            for name, latent in inputs.items()
            if len(shape := latent["samples"].shape) != 4 or 0 in shape
        ]


class LatentFlip(_OfPlanes):
    """Turn latents upside down, or left to right."""

    op_type = "LatentFlip"
    input_ports = _SAMPLES
    output_ports = _LATENT
    params = (Param("flip_method", "CHOICE", default=next(iter(_FLIPS)), choices=tuple(_FLIPS)),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        flipped = inputs["samples"]["samples"].flip(_FLIPS[params["flip_method"]])
        return {"latent": {**inputs["samples"], "samples": flipped}}


class LatentRotate(_OfPlanes):
    """Turn latents clockwise."""

    op_type = "LatentRotate"
    input_ports = _SAMPLES
    output_ports = _LATENT
    params = (Param("rotation", "CHOICE", default=_TURNS[0], choices=_TURNS),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        turned = inputs["samples"]["samples"].rot90(_TURNS.index(params["rotation"]), (3, 2))
        return {"latent": {**inputs["samples"], "samples": turned}}


class LatentCrop(_OfPlanes):
    """Cut a rectangle out of latents; what of it lies outside is left out, but for 64 pixels."""

    op_type = "LatentCrop"
    input_ports = _SAMPLES
    output_ports = _LATENT
    params = (
        Param("width", "INT", default=512, minimum=64, maximum=16384, doc="pixels"),
        Param("height", "INT", default=512, minimum=64, maximum=16384, doc="pixels"),
        Param("x", "INT", default=0, minimum=0, maximum=16384, doc="pixels"),
        Param("y", "INT", default=0, minimum=0, maximum=16384, doc="pixels"),
    )

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        samples = inputs["samples"]["samples"]
        height, width = samples.shape[2:]
        x, y = max(0, min(params["x"] // 8, width - 8)), max(0, min(params["y"] // 8, height - 8))
        cut = samples[:, :, y : y + params["height"] // 8, x : x + params["width"] // 8]
        return {"latent": {**inputs["samples"], "samples": cut}}


class LatentBlend(_OfPlanes):
    """A mean of two latents; the second is resized to the first's size."""

    op_type = "LatentBlend"
    input_ports = (Port("samples1", "LATENT"), Port("samples2", "LATENT"))
    output_ports = _LATENT
    params = (Param("blend_factor", "FLOAT", default=0.5, minimum=0.0, maximum=1.0, doc="the first's share"),)

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        if problems := super().validate(inputs, params):
            return problems
        one, other = (inputs[name]["samples"].shape for name in ("samples1", "samples2"))
        if one[1] == other[1] and other[0] in (1, one[0]):
            return []
        return [f"'samples2' is {list(other)}: it can't be blended with {list(one)}"]

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        import torch

        one, other = inputs["samples1"]["samples"], inputs["samples2"]["samples"]
        if one.shape[2:] != other.shape[2:]:
            size = {"width": one.shape[3], "height": one.shape[2], "upscale_method": "bicubic", "crop": "center"}
            other = resize(other, size)
        return {"latent": {**inputs["samples1"], "samples": torch.lerp(other.to(one), one, params["blend_factor"])}}


EXECUTORS = (
    EmptyLatentImage,
    EmptySD3LatentImage,
    LatentBlend,
    LatentCrop,
    LatentFlip,
    LatentRotate,
    LatentComposite,
    LatentCompositeMasked,
    LatentFromBatch,
    LatentUpscale,
    LatentUpscaleBy,
    RepeatLatentBatch,
    SetLatentNoiseMask,
)
