"""Measures the table of docs/sampling.md, and prints it: ``python -W ignore tests/numerics/report.py [--write]``."""

from __future__ import annotations

import sys
from pathlib import Path

import diffusers_runs
import measure
import torch

from vortex_worker.executor.nodes.sampling.samplers import ADD_NOISE, CFG_PP

PAGE = Path(__file__).parents[2] / "docs" / "sampling.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
HEAD = """\
| sampler | reference | float64 | float32 | its float32 | diffusers, float32 | order | of the variance |
|---|---|---|---|---|---|---|---|
"""


def row(name: str) -> str:
    """One sampler's line."""
    references, double, single, single_theirs = [], [], f"{measure.rounding(name):.0e}", ""
    if name in measure.KDIFFUSION:
        found = measure.errors(name)
        known_as = f"k-diffusion `sample_{measure.KDIFFUSION[name][0]}`"
        references.append(known_as + " (guidance that changes nothing)" * (name in CFG_PP))
        double.append(found.double)
        single, single_theirs = f"{found.single:.0e}", f"{found.single_theirs:.0e}"
    if name in measure.TOLD:
        references.append("its formula told again")
        double.append(max(measure.retelling(name, sigmas) for _, sigmas in measure.schedules(name)))
    if not references:
        references.append("diffusers")
    second = ""
    if name in diffusers_runs.SAME:
        second = f"`{diffusers_runs.SAME[name][0]}` {diffusers_runs.difference(name):.0e}"
    order, weak = "–", ""
    if name not in ("lcm", "dpm_adaptive"):
        counts = [125, 251] if name == "dpm_fast" else [128, 256]
        order = f"{measure.order(measure.flow_errors(name, counts)):.2f}"
        if name in ADD_NOISE:
            weak = f"{measure.order(measure.variance_errors(name, [128, 256])):.2f}"
    exact = f"{max(double):.0e}" if double else ""
    cells = [f"`{name}`", "; ".join(references), exact, single, single_theirs, second, order, weak]
    return f"| {' | '.join(cells)} |\n".replace("|  |", "| |").replace("|  |", "| |")


def main() -> None:
    torch.set_num_threads(1)
    table = HEAD + "".join(map(row, measure.NAMES))
    if "--write" in sys.argv:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(before + BEGIN + table + END + rest.partition(END)[2], encoding="utf-8")
    else:
        print(table, end="")


if __name__ == "__main__":
    main()
