"""Nodes on latents: dicts with ``samples``, a tensor [batch, channels, height, width]."""

from __future__ import annotations

from typing import Any

from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.ports import Param, Port

_LATENT = (Port("latent", "LATENT"),)


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


class RepeatLatentBatch(AbstractExecutor):
    """Repeat a latent's batch."""

    op_type = "RepeatLatentBatch"
    input_ports = (Port("samples", "LATENT"),)
    output_ports = _LATENT
    params = (Param("amount", "INT", default=1, minimum=1, maximum=64),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        samples = inputs["samples"]["samples"]
        repeated = samples.repeat(params["amount"], *[1] * (samples.dim() - 1))
        return {"latent": {**inputs["samples"], "samples": repeated}}


class LatentFromBatch(AbstractExecutor):
    """Take some of a latent's batch, without a copy."""

    op_type = "LatentFromBatch"
    input_ports = (Port("samples", "LATENT"),)
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
        begin = params["batch_index"]
        samples = inputs["samples"]["samples"][begin : begin + params["length"]]
        return {"latent": {**inputs["samples"], "samples": samples}}


EXECUTORS = (EmptyLatentImage, RepeatLatentBatch, LatentFromBatch)
