"""Nodes on masks: float tensors [batch, height, width], 0 to 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.nodes.image import decoded
from vortex_worker.executor.ports import Param, Port

if TYPE_CHECKING:
    from torch import Tensor

_MAX_SIDE = 16384  # pixels
_MASK = (Port("mask", "MASK"),)
_IMAGE = (Port("image", "IMAGE"),)
_CHANNELS = ("red", "green", "blue", "alpha")
_PLACE = tuple(Param(name, "INT", default=0, minimum=0, maximum=_MAX_SIDE) for name in ("x", "y"))


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


class _OfMasks(AbstractExecutor):
    """Base of nodes on masks that have pixels."""

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        return [
            f"{name!r} is a tensor {list(mask.shape)}: it takes [batch, height, width], none of them 0"
            for name, mask in inputs.items()
            if mask.dim() < 2 or 0 in mask.shape
        ]


class GrowMask(_OfMasks):
    """Let masks spread by some pixels, or shrink where that is below 0."""

    op_type = "GrowMask"
    input_ports = _MASK
    output_ports = _MASK
    params = (
        Param("expand", "INT", default=0, minimum=-1024, maximum=1024, doc="pixels"),
        Param("tapered_corners", "BOOLEAN", default=True, doc="corners grow as a diamond's, not a square's"),
    )

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


class CropMask(_OfMasks):
    """Cut a rectangle out of masks; what of it lies outside is left out."""

    op_type = "CropMask"
    input_ports = _MASK
    output_ports = _MASK
    params = (
        *_PLACE,
        Param("width", "INT", default=512, minimum=1, maximum=_MAX_SIDE),
        Param("height", "INT", default=512, minimum=1, maximum=_MAX_SIDE),
    )

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        if problems := super().validate(inputs, params):
            return problems
        height, width = inputs["mask"].shape[-2:]
        return [
            f"{name!r} is {params[name]}: 'mask' has {side} {what}"
            for name, side, what in (("x", width, "columns"), ("y", height, "rows"))
            if params[name] >= side
        ]

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        x, y = params["x"], params["y"]
        return {"mask": _flat(inputs["mask"])[:, y : y + params["height"], x : x + params["width"]]}


class FeatherMask(_OfMasks):
    """Let masks fade towards their edges, evenly, over some columns and rows of each side."""

    op_type = "FeatherMask"
    input_ports = _MASK
    output_ports = _MASK
    params = tuple(
        Param(side, "INT", default=0, minimum=0, maximum=_MAX_SIDE) for side in ("left", "top", "right", "bottom")
    )

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        import torch

        def fading(size: int, begin: int, end: int) -> Tensor:
            def rising(rows: int) -> Tensor:
                line = torch.ones(size)
                line[:rows] = (torch.arange(rows) + 1) / max(1, rows)
                return line

            return rising(min(begin, size)) * rising(min(end, size)).flip(0)

        mask = _flat(inputs["mask"])
        height, width = mask.shape[-2:]
        down = fading(height, params["top"], params["bottom"])
        across = fading(width, params["left"], params["right"])
        return {"mask": mask * down[:, None] * across}


class MaskComposite(_OfMasks):
    """Combine masks with others laid over them: what comes of it is cut to 0 to 1."""

    op_type = "MaskComposite"
    input_ports = (Port("destination", "MASK"), Port("source", "MASK"))
    output_ports = _MASK
    params = (
        *_PLACE,
        Param(
            "operation",
            "CHOICE",
            default="multiply",
            choices=("multiply", "add", "subtract", "and", "or", "xor"),
            doc="the last three take values as 0 or 1, whichever is nearer",
        ),
    )

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        if problems := super().validate(inputs, params):
            return problems
        below, above = (len(_flat(inputs[name])) for name in ("destination", "source"))
        return [] if above in (1, below) else [f"'source' has {above} masks: it takes 1 or {below}"]

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        import torch

        x, y = params["x"], params["y"]
        out, above = _flat(inputs["destination"]).clone(), _flat(inputs["source"])
        place = out[:, y : y + above.shape[1], x : x + above.shape[2]]
        above = above[:, : place.shape[1], : place.shape[2]].to(out.dtype)
        sets = (mask.round().bool() for mask in (place, above))
        match params["operation"]:
            case "multiply":
                new = place * above
            case "add":
                new = place + above
            case "subtract":
                new = place - above
            case "and":
                new = torch.logical_and(*sets)
            case "or":
                new = torch.logical_or(*sets)
            case _:
                new = torch.logical_xor(*sets)
        place.copy_(new)
        return {"mask": out.clamp(0, 1)}


def _flat(mask: Tensor) -> Tensor:
    """Masks as [batch, height, width]."""
    return mask.reshape(-1, *mask.shape[-2:])


EXECUTORS = (
    LoadImageMask,
    ImageToMask,
    MaskToImage,
    InvertMask,
    SolidMask,
    GrowMask,
    ThresholdMask,
    CropMask,
    FeatherMask,
    MaskComposite,
)
