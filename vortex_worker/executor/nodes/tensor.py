"""Nodes on bare tensors."""

from __future__ import annotations

import time
from typing import Any

from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.ports import Param, Port


class Identity(AbstractExecutor):
    """Give back the input, without a copy."""

    op_type = "Identity"
    input_ports = (Port("tensor", "*"),)
    output_ports = (Port("tensor", "*"),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"tensor": inputs["tensor"]}


class Add(AbstractExecutor):
    """Add two tensors, with broadcasting."""

    op_type = "Add"
    input_ports = (Port("a", "TENSOR"), Port("b", "TENSOR"))
    output_ports = (Port("tensor", "TENSOR"),)

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        a, b = list(inputs["a"].shape), list(inputs["b"].shape)
        if all(m == n or 1 in (m, n) for m, n in zip(reversed(a), reversed(b), strict=False)):
            return []
        return [f"'a' is {a} and 'b' is {b}: dimensions, from the last on, must be equal or 1"]

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"tensor": inputs["a"] + inputs["b"]}


class Scale(AbstractExecutor):
    """Multiply a tensor by a number and add another: ``tensor * factor + offset``."""

    op_type = "Scale"
    input_ports = (Port("tensor", "TENSOR"),)
    output_ports = (Port("tensor", "TENSOR"),)
    params = (Param("factor", "FLOAT", default=1.0), Param("offset", "FLOAT", default=0.0))

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"tensor": inputs["tensor"] * params["factor"] + params["offset"]}


class Matmul(AbstractExecutor):
    """Multiply two matrices, or batches of them."""

    op_type = "Matmul"
    input_ports = (Port("a", "TENSOR"), Port("b", "TENSOR"))
    output_ports = (Port("tensor", "TENSOR"),)

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        a, b = inputs["a"].shape, inputs["b"].shape
        if not a or not b or a[-1] != b[-2 if len(b) > 1 else 0]:
            return [f"'a' is {list(a)} and 'b' is {list(b)}: a's last dimension must be b's last but one"]
        return []

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"tensor": inputs["a"] @ inputs["b"]}


class RandomTensor(AbstractExecutor):
    """A tensor of normal noise from a seed: the same in every worker."""

    op_type = "RandomTensor"
    output_ports = (Port("tensor", "TENSOR"),)
    params = (
        Param("shape", "LIST", doc="whole numbers"),
        Param("seed", "INT", default=0, minimum=0, maximum=(1 << 64) - 1),
    )

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        shape = params["shape"]
        if all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape) and len(shape) <= 32:
            return []
        return [f"'shape' is {shape!r:.80}: it takes at most 32 whole numbers, 0 or more"]

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        import torch

        generator = torch.Generator().manual_seed(params["seed"])
        out = self.context.empty(params["shape"], torch.float32)
        return {"tensor": torch.randn(params["shape"], generator=generator, out=out)}


class Sleep(AbstractExecutor):
    """Wait, reporting progress ten times a second: to try out deadlines and cancellation."""

    op_type = "Sleep"
    input_ports = (Port("tensor", "*", optional=True),)
    output_ports = (Port("tensor", "*"),)
    params = (Param("seconds", "FLOAT", default=1.0, minimum=0.0, maximum=86_400.0),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        steps = max(1, round(params["seconds"] * 10))
        for step in range(steps):
            self.context.progress(step, steps)
            time.sleep(params["seconds"] / steps)
        self.context.progress(steps, steps)
        return {"tensor": inputs.get("tensor")}


EXECUTORS = (Identity, Add, Scale, Matmul, RandomTensor, Sleep)
