"""Prints the tables of docs/sampling.md: ``python -W ignore tests/numerics/report.py``."""

from __future__ import annotations

import diffusers_runs
import measure

from vortex_worker.executor.nodes.sampling.samplers import ADD_NOISE, SAMPLERS


def main() -> None:
    print("| sampler | reference | float64 | float32 | its float32 | order | of the variance |")
    print("|---|---|---|---|---|---|---|")
    for name in SAMPLERS:
        found = measure.errors(name)
        order = measure.order(measure.flow_errors(name, [128, 256]))
        weak = f"{measure.order(measure.variance_errors(name, [128, 256])):.2f}" if name in ADD_NOISE else ""
        print(
            f"| `{name}` | k-diffusion `sample_{name}` | {found.double:.0e} | {found.single:.0e} "
            f"| {found.single_theirs:.0e} | {order:.2f} | {weak} |"
        )
    print()
    print("| sampler | reference | float32 | with Karras's sigmas |")
    print("|---|---|---|---|")
    for name, (class_name, _) in diffusers_runs.SAME.items():
        plain = f"{diffusers_runs.difference(name):.0e}"
        karras = "–" if name in ADD_NOISE else f"{diffusers_runs.difference(name, use_karras_sigmas=True):.0e}"
        print(f"| `{name}` | diffusers `{class_name}` | {plain} | {karras} |")


if __name__ == "__main__":
    main()
