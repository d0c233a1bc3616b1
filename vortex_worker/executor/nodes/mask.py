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


class GrowMask(AbstractExecutor):
    """Let masks spread by some pixels, or shrink where that is below 0."""

    op_type = "GrowMask"
    input_ports = _MASK
    output_ports = _MASK
    params = (
        Param("expand", "INT", default=0, minimum=-1024, maximum=1024, doc="pixels"),
        Param("tapered_corners", "BOOLEAN", default=True, doc="corners grow as a diamond's, not a square's"),
    )

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        mask = inputs["mask"]
        if mask.dim() >= 2 and 0 not in mask.shape:
            return []
        return [f"'mask' is a tensor {list(mask.shape)}: it takes [batch, height, width], none of them 0"]

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        import torch
        from torch.nn.functional import max_pool2d

        mask, sign = inputs["mask"], -1 if params["expand"] < 0 else 1
        out = sign * mask.reshape(-1, 1, *mask.shape[-2:])  # shrinking is the growth of what is left out
        for turn in range(abs(params["expand"])):
            self.context.progress(turn, abs(params["expand"]))
            if params["tapered_corners"]:
                across, down = (max_pool2d(out, size, 1, pad) for size, pad in (((1, 3), (0, 1)), ((3, 1), (1, 0))))
                out = torch.maximum(across, down)
            else:
                out = max_pool2d(out, 3, 1, 1)
        return {"mask": sign * out[:, 0]}


class ThresholdMask(AbstractExecutor):
    """1 where a mask is above a value, else 0."""

    op_type = "ThresholdMask"
    input_ports = _MASK
    output_ports = _MASK
    params = (Param("value", "FLOAT", default=0.5, minimum=0.0, maximum=1.0),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"mask": (inputs["mask"] > params["value"]).float()}


EXECUTORS = (LoadImageMask, ImageToMask, MaskToImage, InvertMask, SolidMask, GrowMask, ThresholdMask)
