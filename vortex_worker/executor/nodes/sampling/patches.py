"""Nodes that give a model asked otherwise. The one they take stays as it is; its network is shared."""

from __future__ import annotations

from typing import Any

from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.ports import Param, Port

_LEAST_TABLE = 50  # levels that a consistency model keeps
_LEAST_SHIFT = 0.001  # below it, all times are 0
_MODEL = (Port("model", "MODEL"),)
#: ComfyUI's names of what networks give.
_GIVES = {"eps": "eps", "v_prediction": "v", "lcm": "lcm", "x0": "x0"}


class _Patch(AbstractExecutor):
    """Base of these nodes."""

    input_ports = _MODEL
    output_ports = _MODEL

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        return model_problems(inputs["model"])


class ModelSamplingDiscrete(_Patch):
    """Say what a network gives (noise, velocity, data, a consistency model's noise), of levels to pure noise or not."""

    op_type = "ModelSamplingDiscrete"
    params = (
        Param("sampling", "CHOICE", default="eps", choices=tuple(_GIVES)),
        Param("zsnr", "BOOLEAN", default=False, doc="the last noise level holds no signal"),
    )

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        if problems := super().validate(inputs, params):
            return problems
        table = inputs["model"].trained
        if table is None:
            return ["'model' has no table of noise levels: it takes one of Stable Diffusion 1, 2 or XL"]
        if params["sampling"] == "lcm" and len(table) < _LEAST_TABLE:
            return [f"'model' has {len(table)} noise levels: lcm takes {_LEAST_TABLE} or more"]
        return []

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from vortex_worker.executor.nodes.sampling.model import distilled, zero_terminal

        model = inputs["model"]
        levels = zero_terminal(model.trained) if params["zsnr"] else model.trained
        levels = distilled(levels) if params["sampling"] == "lcm" else levels
        return {"model": model.with_sampling(_GIVES[params["sampling"]], levels)}


class ModelSamplingSD3(_Patch):
    """Have a model sampled as a rectified flow, its times shifted towards noise: more of it for larger pictures."""

    op_type = "ModelSamplingSD3"
    params = (Param("shift", "FLOAT", default=3.0, minimum=0.0, maximum=100.0, doc="1: none"),)

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        problems = super().validate(inputs, params)
        if params["shift"] < _LEAST_SHIFT:
            problems.append(f"'shift' is {params['shift']:g}: it takes {_LEAST_SHIFT:g} to 100")
        return problems

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from vortex_worker.executor.nodes.sampling.model import flow_sigmas

        return {"model": inputs["model"].with_sampling("flow", flow_sigmas(params["shift"]))}


class RescaleCFG(_Patch):
    """A model whose strong guidance doesn't bleach: Lin et al. (2024, arXiv 2305.08891), section 3.4."""

    op_type = "RescaleCFG"
    params = (Param("multiplier", "FLOAT", default=0.7, minimum=0.0, maximum=1.0, doc="0: guidance as it is"),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"model": inputs["model"].with_rescale(params["multiplier"])}


def model_problems(model: Any) -> list[str]:
    """What keeps it from being sampled."""
    from vortex_worker.executor.nodes.sampling.model import DiffusionModel

    ok = isinstance(model, DiffusionModel)
    return [] if ok else [f"'model' is a {type(model).__name__}: it takes a DiffusionModel"]


EXECUTORS = (ModelSamplingDiscrete, ModelSamplingSD3, RescaleCFG)
