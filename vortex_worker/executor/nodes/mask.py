"""Nodes on masks: float tensors [batch, height, width], 0 to 1."""

from __future__ import annotations

from typing import Any

from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.nodes.image import decoded
from vortex_worker.executor.ports import Param, Port

_MASK = (Port("mask", "MASK"),)
_IMAGE = (Port("image", "IMAGE"),)
_CHANNELS = ("red", "green", "blue", "alpha")


class LoadImageMask(AbstractExecutor):
    """Decode one channel of an image file's bytes as a mask; of alpha, 1 where it is transparent."""

    op_type = "LoadImageMask"
    output_ports = _MASK
    params = (
        Param("data", "BYTES", doc="the file's content, as of LoadImage"),
        Param("channel", "CHOICE", default="alpha", choices=("alpha", "red", "green", "blue")),
    )

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        image, mask = decoded(params["data"])
        if params["channel"] == "alpha":
            return {"mask": mask}
        return {"mask": image[..., _CHANNELS.index(params["channel"])].contiguous()}


class ImageToMask(AbstractExecutor):
    """One channel of images as masks."""

    op_type = "ImageToMask"
    input_ports = _IMAGE
    output_ports = _MASK
    params = (Param("channel", "CHOICE", default="red", choices=_CHANNELS),)

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        channels = inputs["image"].shape[-1]
        if _CHANNELS.index(params["channel"]) < channels:
            return []
        return [f"'channel' is {params['channel']}: 'image' has {channels} channels"]

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"mask": inputs["image"][..., _CHANNELS.index(params["channel"])].contiguous()}


class MaskToImage(AbstractExecutor):
    """Masks as grey images."""

    op_type = "MaskToImage"
    input_ports = _MASK
    output_ports = _IMAGE

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        mask = inputs["mask"]
        return {"image": mask.reshape(-1, *mask.shape[-2:], 1).expand(-1, -1, -1, 3).contiguous().float()}


class InvertMask(AbstractExecutor):
    """1 where a mask is 0."""

    op_type = "InvertMask"
    input_ports = _MASK
    output_ports = _MASK

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"mask": 1 - inputs["mask"]}


class SolidMask(AbstractExecutor):
    """A mask of one value."""

    op_type = "SolidMask"
    output_ports = _MASK
    params = (
        Param("value", "FLOAT", default=1.0, minimum=0.0, maximum=1.0),
        Param("width", "INT", default=512, minimum=1, maximum=16384),
        Param("height", "INT", default=512, minimum=1, maximum=16384),
    )

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"mask": self.context.empty((1, params["height"], params["width"])).fill_(params["value"])}


EXECUTORS = (LoadImageMask, ImageToMask, MaskToImage, InvertMask, SolidMask)
