"""Nodes of ControlNets: they have what is drawn follow a picture, its edges say, or its depths."""

from __future__ import annotations

from typing import Any

from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.nodes.loaders import Loader
from vortex_worker.executor.ports import Param, Port

_PICTURE = (Port("control_net", "CONTROL_NET"), Port("image", "IMAGE"))
_STRENGTH = Param("strength", "FLOAT", default=1.0, minimum=0.0, maximum=10.0)


class ControlNetLoader(Loader):
    """Load a ControlNet: a safetensors file for Stable Diffusion 1, 2 or XL."""

    op_type = "ControlNetLoader"
    kind = "controlnet"
    files = ("control_net_name",)
    output_ports = (Port("control_net", "CONTROL_NET"),)
    params = (Param("control_net_name", "STRING", doc="below the folders of models, or their controlnet/"),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from vortex_worker.executor.diffusion import checkpoint

        path = self.found(params["control_net_name"])
        return {"control_net": checkpoint.load_controlnet(path, self.context.device)}


class _Apply(AbstractExecutor):
    """Base of nodes that give conditionings a ControlNet."""

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        from vortex_worker.executor.diffusion.networks import ControlNet
        from vortex_worker.executor.nodes.sampling.conditioning import control_problem

        net, image = inputs["control_net"], inputs["image"]
        problems = []
        if not isinstance(net, ControlNet):
            problems.append(f"'control_net' is a {type(net).__name__}: it takes a ControlNet")
        if image.dim() != 4 or image.shape[-1] < 3 or 0 in image.shape:
            problems.append(f"'image' is a tensor {list(image.shape)}: it takes [batch, height, width, 3]")
        for name in ("conditioning", "positive", "negative"):
            before = [options.get("control", []) for _, options in inputs.get(name, ())]
            if problem := next(filter(None, map(control_problem, before)), None):
                problems.append(f"{name!r} {problem}")
        return problems


class ControlNetApply(_Apply):
    """Have what is drawn follow a picture. The negative conditioning is asked with it, too."""

    op_type = "ControlNetApply"
    input_ports = (Port("conditioning", "CONDITIONING"), *_PICTURE)
    output_ports = (Port("conditioning", "CONDITIONING"),)
    params = (_STRENGTH,)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"conditioning": _with(inputs["conditioning"], inputs, params, control_apply_to_uncond=True)[0]}


class ControlNetApplyAdvanced(_Apply):
    """Have what is drawn follow a picture, for a part of the way from noise, 0, to picture, 1."""

    op_type = "ControlNetApplyAdvanced"
    input_ports = (
        Port("positive", "CONDITIONING"),
        Port("negative", "CONDITIONING"),
        *_PICTURE,
        Port("vae", "VAE", "not used: for ControlNets of other families", optional=True),
    )
    output_ports = (Port("positive", "CONDITIONING"), Port("negative", "CONDITIONING"))
    params = (
        _STRENGTH,
        Param("start_percent", "FLOAT", default=0.0, minimum=0.0, maximum=1.0),
        Param("end_percent", "FLOAT", default=1.0, minimum=0.0, maximum=1.0),
    )

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        positive, negative = _with(
            inputs["positive"], inputs, params, inputs["negative"], control_apply_to_uncond=False
        )
        return {"positive": positive, "negative": negative}


def _with(
    first: list[Any], inputs: dict[str, Any], params: dict[str, Any], *others: list[Any], **options: Any
) -> list[list[Any]]:
    """Conditionings with one more ControlNet, the same for all."""
    from vortex_worker.executor.nodes.sampling.control import control

    if params["strength"] == 0:
        return [first, *others]
    one = control(
        inputs["control_net"],
        inputs["image"][..., :3].movedim(-1, 1),
        params["strength"],
        params.get("start_percent", 0.0),
        params.get("end_percent", 1.0),
    )
    return [
        [[tensor, {**given, "control": [*given.get("control", ()), one], **options}] for tensor, given in each]
        for each in (first, *others)
    ]


EXECUTORS = (ControlNetLoader, ControlNetApply, ControlNetApplyAdvanced)
