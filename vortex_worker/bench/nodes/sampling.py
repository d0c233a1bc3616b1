"""A diffusion model and its loop in plain torch, for ``sample.overhead``."""

import time
from itertools import pairwise
from typing import Any

from vortex_worker.executor import AbstractExecutor, Param, Port

WIDTH = 128  # channels: some 20 ms a call on one core, less than any model that is worth serving


def network() -> Any:
    """Two convolutions around one of ``WIDTH`` channels, of fixed weights."""
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(4, WIDTH, 3, padding=1), nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.SiLU(),
        nn.Conv2d(WIDTH, 4, 3, padding=1),
    ).requires_grad_(False)  # fmt: skip
    for weight in layers.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
    return lambda x, t, cond: layers(x + cond.mean((1, 2))[:, None, None, None])


class BenchModel(AbstractExecutor):
    """The model."""

    op_type = "BenchModel"
    output_ports = (Port("model", "MODEL"),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from vortex_worker.executor.nodes.sampling.model import DiffusionModel

        return {"model": DiffusionModel(network(), latent_channels=4)}


class BenchLoop(AbstractExecutor):
    """Euler's method under guidance, as one would write it by hand: nothing is checked, nobody is told."""

    op_type = "BenchLoop"
    input_ports = (
        Port("model", "MODEL"),
        Port("cond", "TENSOR"),
        Port("uncond", "TENSOR"),
        Port("start", "TENSOR"),
        Port("levels", "TENSOR", "sigma and its place in the table, [steps + 1, 2]"),
    )
    output_ports = (Port("out", "TENSOR"), Port("seconds", "FLOAT"))
    params = (Param("cfg", "FLOAT", default=4.0),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        import torch

        net, x, levels = inputs["model"].network, inputs["start"], inputs["levels"].tolist()
        begun = time.perf_counter()
        both = torch.cat([inputs["cond"], inputs["uncond"]])
        for (sigma, t), (following, _) in pairwise(levels):
            times = torch.full((2 * len(x),), t)
            with_, without = net(torch.cat([x, x]) / (sigma**2 + 1) ** 0.5, times, both).chunk(2)
            x = x + (without + (with_ - without) * params["cfg"]) * (following - sigma)
        return {"out": x, "seconds": time.perf_counter() - begun}
