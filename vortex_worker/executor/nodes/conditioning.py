"""Nodes that turn prompts into conditioning: lists of ``[tensor [1, tokens, width], options]``."""

from __future__ import annotations

from typing import Any

from vortex_worker.executor import model_files
from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.ports import Param, Port

_CLIP = (Port("clip", "CLIP"),)
_CONDITIONING = (Port("conditioning", "CONDITIONING"),)
_SIDE: dict[str, Any] = {"default": 1024, "minimum": 0, "maximum": 16384, "doc": "pixels"}
_OFFSET: dict[str, Any] = {"default": 0, "minimum": 0, "maximum": 16384, "doc": "pixels"}

_STRENGTH = Param("strength", "FLOAT", default=1.0, minimum=0.0, maximum=10.0)
_AREA = ("height", "width", "y", "x")  # as conditionings have it


class CLIPTextEncode(AbstractExecutor):
    """Encode a prompt: "(word:1.2)" weighs more, "(word)" 1.1 times as much; "embedding:NAME". Any length."""

    op_type = "CLIPTextEncode"
    input_ports = _CLIP
    output_ports = _CONDITIONING
    params = (Param("text", "STRING"),)

    def changed(self, params: dict[str, Any]) -> Any:
        return _embeddings(params.get("text"))

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        return _problems(inputs["clip"], params, ("text",))

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        cond, pooled = inputs["clip"].encode(params["text"])
        return {"conditioning": [[cond, {"pooled_output": pooled}]]}


class CLIPTextEncodeSDXL(AbstractExecutor):
    """Encode a prompt for each of SDXL's text encoders, with the sizes it was trained to be told."""

    op_type = "CLIPTextEncodeSDXL"
    input_ports = _CLIP
    output_ports = _CONDITIONING
    params = (
        Param("width", "INT", **_SIDE),
        Param("height", "INT", **_SIDE),
        Param("crop_w", "INT", **_OFFSET),
        Param("crop_h", "INT", **_OFFSET),
        Param("target_width", "INT", **_SIDE),
        Param("target_height", "INT", **_SIDE),
        Param("text_g", "STRING", doc="for the larger encoder"),
        Param("text_l", "STRING", doc="for the smaller one"),
    )

    def changed(self, params: dict[str, Any]) -> Any:
        return [_embeddings(params.get(name)) for name in ("text_g", "text_l")]

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        problems = _problems(inputs["clip"], params, ("text_g", "text_l"))
        if not problems and len(inputs["clip"].towers) != 2:
            problems.append("'clip' has one text encoder: this node takes SDXL's two")
        return problems

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        cond, pooled = inputs["clip"].encode_each([params.pop("text_l"), params.pop("text_g")])
        return {"conditioning": [[cond, {"pooled_output": pooled, **params}]]}


class CLIPSetLastLayer(AbstractExecutor):
    """Take the text encoder's output from an earlier layer: "CLIP skip"."""

    op_type = "CLIPSetLastLayer"
    input_ports = _CLIP
    output_ports = _CLIP
    params = (Param("stop_at_clip_layer", "INT", default=-1, minimum=-24, maximum=-1),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"clip": inputs["clip"].at_layer(params["stop_at_clip_layer"])}


class ConditioningZeroOut(AbstractExecutor):
    """The same conditioning, all zeros: what models that were trained so take for "nothing"."""

    op_type = "ConditioningZeroOut"
    input_ports = _CONDITIONING
    output_ports = _CONDITIONING

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        emptied = []
        for tensor, options in inputs["conditioning"]:
            pooled = options.get("pooled_output")
            zero = {} if pooled is None else {"pooled_output": pooled.new_zeros(pooled.shape)}
            emptied.append([tensor.new_zeros(tensor.shape), {**options, **zero}])
        return {"conditioning": emptied}


class _OfTwo(AbstractExecutor):
    """Base of nodes that join conditionings."""

    input_ports = (Port("conditioning_to", "CONDITIONING"), Port("conditioning_from", "CONDITIONING"))
    output_ports = _CONDITIONING

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        given = inputs["conditioning_from"][0][0].shape
        return [
            f"'conditioning_from' is {list(given)}: it can't be joined to {list(tensor.shape)}"
            for tensor, _ in inputs["conditioning_to"]
            if len(given) != 3 or tensor.dim() != 3 or (given[0], given[2]) != (tensor.shape[0], tensor.shape[2])
        ]


class ConditioningConcat(_OfTwo):
    """One prompt's tokens behind another's."""

    op_type = "ConditioningConcat"

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        import torch

        last = inputs["conditioning_from"][0][0]
        return {"conditioning": [[torch.cat([t, last], 1), options] for t, options in inputs["conditioning_to"]]}


class ConditioningAverage(_OfTwo):
    """A mean of two prompts; the second is cut to the first's tokens, or zeros follow it."""

    op_type = "ConditioningAverage"
    params = (
        Param("conditioning_to_strength", "FLOAT", default=1.0, minimum=0.0, maximum=1.0, doc="the first's share"),
    )

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        import torch
        from torch.nn.functional import pad

        share, (other, its) = params["conditioning_to_strength"], inputs["conditioning_from"][0]
        mixed = []
        for tensor, options in inputs["conditioning_to"]:
            tokens = tensor.shape[1]
            fitted = pad(other[:, :tokens], (0, 0, 0, max(0, tokens - other.shape[1])))
            pooled, others = options.get("pooled_output"), its.get("pooled_output")
            if others is not None:
                pooled = others if pooled is None else torch.lerp(others, pooled, share)
            more = {} if pooled is None else {"pooled_output": pooled}
            mixed.append([torch.lerp(fitted, tensor, share), {**options, **more}])
        return {"conditioning": mixed}


class ConditioningCombine(AbstractExecutor):
    """Both of two conditionings: the model is asked each, and the mean of what it says is taken."""

    op_type = "ConditioningCombine"
    input_ports = (Port("conditioning_1", "CONDITIONING"), Port("conditioning_2", "CONDITIONING"))
    output_ports = _CONDITIONING

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"conditioning": [*inputs["conditioning_1"], *inputs["conditioning_2"]]}


class ConditioningSetArea(AbstractExecutor):
    """Have a conditioning hold in a rectangle; where it holds beside others, strengths are the shares of a mean."""

    op_type = "ConditioningSetArea"
    input_ports = _CONDITIONING
    output_ports = _CONDITIONING
    params = (
        *(Param(name, "INT", default=64, minimum=64, maximum=16384, doc="pixels") for name in ("width", "height")),
        *(Param(name, "INT", default=0, minimum=0, maximum=16384, doc="pixels") for name in ("x", "y")),
        _STRENGTH,
    )

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        area = [params[name] // 8 for name in _AREA]
        return _with(inputs, area=area, strength=params["strength"], set_area_to_bounds=False)


class ConditioningSetAreaPercentage(AbstractExecutor):
    """Have a conditioning hold in a rectangle, in shares of the picture."""

    op_type = "ConditioningSetAreaPercentage"
    input_ports = _CONDITIONING
    output_ports = _CONDITIONING
    params = (
        *(Param(name, "FLOAT", default=1.0, minimum=0.0, maximum=1.0) for name in ("width", "height")),
        *(Param(name, "FLOAT", default=0.0, minimum=0.0, maximum=1.0) for name in ("x", "y")),
        _STRENGTH,
    )

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        area = ["percentage", *(params[name] for name in _AREA)]
        return _with(inputs, area=area, strength=params["strength"], set_area_to_bounds=False)


class ConditioningSetAreaStrength(AbstractExecutor):
    """Set what a conditioning weighs beside others."""

    op_type = "ConditioningSetAreaStrength"
    input_ports = _CONDITIONING
    output_ports = _CONDITIONING
    params = (_STRENGTH,)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return _with(inputs, **params)


class ConditioningSetMask(AbstractExecutor):
    """Have a conditioning weigh as much as a mask says, which is resized to the picture."""

    op_type = "ConditioningSetMask"
    input_ports = (*_CONDITIONING, Port("mask", "MASK"))
    output_ports = _CONDITIONING
    params = (
        _STRENGTH,
        Param(
            "set_cond_area",
            "CHOICE",
            default="default",
            choices=("default", "mask bounds"),
            doc="mask bounds: the model sees the rectangle around the mask alone",
        ),
    )

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        mask = inputs["mask"]
        if mask.dim() >= 2 and 0 not in mask.shape:
            return []
        return [f"'mask' is a tensor {list(mask.shape)}: it takes [batch, height, width], none of them 0"]

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        bounds = params["set_cond_area"] == "mask bounds"
        return _with(inputs, mask=inputs["mask"], mask_strength=params["strength"], set_area_to_bounds=bounds)


class ConditioningSetTimestepRange(AbstractExecutor):
    """Have a conditioning hold for a part of the way from noise, 0, to picture, 1."""

    op_type = "ConditioningSetTimestepRange"
    input_ports = _CONDITIONING
    output_ports = _CONDITIONING
    params = (
        Param("start", "FLOAT", default=0.0, minimum=0.0, maximum=1.0),
        Param("end", "FLOAT", default=1.0, minimum=0.0, maximum=1.0),
    )

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return _with(inputs, start_percent=params["start"], end_percent=params["end"])


def _with(inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"conditioning": [[tensor, {**given, **options}] for tensor, given in inputs["conditioning"]]}


def _problems(clip: Any, params: dict[str, Any], texts: tuple[str, ...]) -> list[str]:
    from vortex_worker.executor.diffusion.prompt import MAX_LENGTH
    from vortex_worker.executor.diffusion.text import TextEncoder

    if not isinstance(clip, TextEncoder):
        return [f"'clip' is a {type(clip).__name__}: it takes a TextEncoder"]
    return [
        f"{name!r} has {len(params[name])} characters: it takes {MAX_LENGTH}"
        for name in texts
        if len(params[name]) > MAX_LENGTH
    ]


def _embeddings(text: str | None) -> str | None:
    """What changes with the files of the embeddings that a prompt names; of None with any."""
    if not model_files.folders():
        return None  # nor could a worker that reads no files import this
    from vortex_worker.executor.diffusion import embedding

    return embedding.stamp(text)


EXECUTORS = (
    CLIPTextEncode,
    CLIPTextEncodeSDXL,
    CLIPSetLastLayer,
    ConditioningZeroOut,
    ConditioningConcat,
    ConditioningAverage,
    ConditioningCombine,
    ConditioningSetArea,
    ConditioningSetAreaPercentage,
    ConditioningSetAreaStrength,
    ConditioningSetMask,
    ConditioningSetTimestepRange,
)
