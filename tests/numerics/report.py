"""Prints the table of docs/sampling.md: ``python tests/numerics/report.py``."""

from __future__ import annotations

import measure
import torch

from vortex_worker.executor.nodes.sampling.samplers import ADD_NOISE, SAMPLERS


def main() -> None:
    print("| sampler | reference | largest error, float32 | float64 | order | order of the variance |")
    print("|---|---|---|---|---|---|")
    for name in SAMPLERS:
        single, double = measure.worst(name, torch.float32), measure.worst(name, torch.float64)
        order = measure.order(measure.flow_errors(name, [256, 512]))
        weak = f"{measure.order(measure.variance_errors(name, [256, 512])):.2f}" if name in ADD_NOISE else "–"
        print(f"| `{name}` | k-diffusion `sample_{name}` | {single:.1e} | {double:.1e} | {order:.2f} | {weak} |")


if __name__ == "__main__":
    main()
