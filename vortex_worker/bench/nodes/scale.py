"""Nodes for ``scale.*``: one that takes so long, and one that makes a tensor of so many bytes."""

from typing import Any

import torch

from vortex_worker.bench.measure import busy
from vortex_worker.executor import AbstractExecutor, Param, Port


class BenchBusy(AbstractExecutor):
    """Takes ``us`` microseconds."""

    op_type = "BenchBusy"
    output_ports = (Port("us", "FLOAT"),)
    params = (Param("us", "FLOAT", default=0.0),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"us": busy(params["us"]) * 1e6}


class BenchMake(AbstractExecutor):
    """A tensor of ``nbytes`` bytes, of which the first and the last are 7; the rest isn't touched."""

    op_type = "BenchMake"
    output_ports = (Port("tensor", "TENSOR"),)
    params = (Param("nbytes", "INT", default=0),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        tensor = self.context.empty((params["nbytes"],), torch.uint8)
        if params["nbytes"]:
            tensor[0] = tensor[-1] = 7
        return {"tensor": tensor}
