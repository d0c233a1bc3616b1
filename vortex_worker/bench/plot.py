"""The figures as one picture: how far each is from what it must be, on a logarithmic scale."""

from __future__ import annotations

import textwrap
from pathlib import Path

from vortex_worker.bench import machine
from vortex_worker.bench.measure import Result, number

try:
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter
except ImportError as error:
    raise ImportError("--plot needs matplotlib: pip install 'vortex-worker[plot]'") from error

_COLOURS = {"reaches the aim": "#1b7f4d", "meets the target": "#2f6fb0", "misses the target": "#c0392b"}
_GREY = "#6b6b6b"
_ROW = 0.55  # inches


def draw(results: dict[str, Result], about: dict[str, object], folder: Path) -> list[Path]:
    """Write ``bench.svg`` and ``bench.png`` into ``folder``, which is made if it must be. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"font.family": "DejaVu Sans", "svg.hashsalt": "vortex", "svg.fonttype": "path"}):
        caption = textwrap.fill(machine.sentence(about), 118)
        height = _ROW * len(results) + 1.9
        figure = Figure(figsize=(10, height), layout="constrained")
        axes = figure.add_subplot()
        _fill(axes, results)
        axes.set_title("What the fabric costs, beside what it must not exceed", loc="left", fontsize=12, pad=26)
        figure.supxlabel(caption, x=0.01, ha="left", fontsize=7.5, color=_GREY)
        files = [folder / "bench.svg", folder / "bench.png"]
        figure.savefig(files[0], metadata={"Date": None})
        figure.savefig(files[1], dpi=150)
    return files


def _fill(axes: Axes, results: dict[str, Result]) -> None:
    """A row for each: a bar from the limit to the median, a thin line on to the 99th percentile, a tick at the aim."""
    spans = []
    for row, result in enumerate(results.values()):
        target, colour = result.target, _COLOURS[result.target.verdict(result)]
        of = result.median if target.of == "median" else result.ratio
        at = _share(of, target.must, target.higher_is_better)
        worst = at * (1 if target.higher_is_better else result.p99 / result.median)
        aim = _share(target.aim, target.must, target.higher_is_better)
        axes.plot([at, worst], [row, row], color=colour, linewidth=1, alpha=0.6)
        axes.plot([1, at], [row, row], color=colour, linewidth=7, alpha=0.25, solid_capstyle="butt")
        axes.plot(at, row, "o", color=colour, markersize=7)
        axes.plot(aim, row, "|", color=_GREY, markersize=13)
        label = f"{number(result.median)} {result.unit}"
        if target.of == "ratio":
            label += f" = {number(result.ratio)} × reference"
        axes.annotate(
            label, (at, row), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8, color=colour,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip
        spans += [at, aim, worst]
    axes.axvline(1, color="black", linewidth=1, zorder=0)
    low, high = min([*spans, 0.5]), max([*spans, 2])
    axes.set_xscale("log")
    margin = max(2, (high / low) ** 0.15)  # room for a label around the outermost dot
    axes.set_xlim(low / margin, high * margin)
    axes.set_ylim(len(results) - 0.5, -0.7)
    axes.set_yticks(
        range(len(results)), [f"{key}\n{_short(result.what)}" for key, result in results.items()], fontsize=8
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="both", which="both", length=0)
    axes.set_xlabel(
        "multiple of what it must not exceed: left of the line is within\n"
        "dot: median · thin line: to the 99th percentile · grey tick: the aim",
        fontsize=8,
        color=_GREY,
    )
    axes.grid(axis="x", which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)


def _share(value: float, must: float, higher_is_better: bool) -> float:
    """``value`` as a multiple of its limit, above 1 being worse in either direction."""
    return must / value if higher_is_better else value / must


def _short(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 46, max_lines=2, placeholder="…"))
