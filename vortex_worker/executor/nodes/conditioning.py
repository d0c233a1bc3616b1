"""Nodes that turn prompts into conditioning: lists of ``[tensor [1, tokens, width], options]``."""

from __future__ import annotations

from typing import Any

from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.ports import Param, Port

_CLIP = (Port("clip", "CLIP"),)
_CONDITIONING = (Port("conditioning", "CONDITIONING"),)
_SIDE: dict[str, Any] = {"default": 1024, "minimum": 0, "maximum": 16384, "doc": "pixels"}
_OFFSET: dict[str, Any] = {"default": 0, "minimum": 0, "maximum": 16384, "doc": "pixels"}


class CLIPTextEncode(AbstractExecutor):
    """Encode a prompt: "(word:1.2)" weighs more, "(word)" 1.1 times as much. Any length."""

    op_type = "CLIPTextEncode"
    input_ports = _CLIP
    output_ports = _CONDITIONING
    params = (Param("text", "STRING"),)

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


EXECUTORS = (CLIPTextEncode, CLIPTextEncodeSDXL, CLIPSetLastLayer, ConditioningZeroOut)
