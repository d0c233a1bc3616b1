"""Nodes on latents: dicts with ``samples``, a tensor [batch, channels, height, width].

A latent may carry ``batch_index``, which draws of a batch's noise its samples get, and
``noise_mask``; nodes that change the batch change those with it.
"""

from __future__ import annotations

from typing import Any

from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.nodes.image import RESIZE_METHODS, resize
from vortex_worker.executor.ports import Param, Port

_LATENT = (Port("latent", "LATENT"),)
_SAMPLES = (Port("samples", "LATENT"),)


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
        Param("upscale_method", "CHOICE", default="nearest-exact", choices=RESIZE_METHODS),
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


EXECUTORS = (EmptyLatentImage, LatentUpscale, RepeatLatentBatch, LatentFromBatch)
