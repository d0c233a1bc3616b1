"""Draws a result of ``compare.py``: docs/images/comparison.svg and .png, and the table in docs/performance.md.

Run by ``compare.py plot [RESULT.json]``, in an environment that has matplotlib.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "images" / "comparison"
BEGIN, END = "<!-- comparison: written by bench/plot.py -->", "<!-- end of comparison -->"

#: Figure, its short name, and how it is called in the picture.
FIGURES = {
    "roundtrip": ("4 KiB", "Round trip, 4 KiB"),
    "large": ("64 MiB, held", "64 MiB in and out, held where the system likes it"),
    "large.private": ("64 MiB, private", "64 MiB in and out, from private memory"),
    "start": ("start", "Start, to the first result"),
    "crash": ("crash", "SIGKILL of a worker, to the next result"),
    "memory": ("one more worker", "Memory of one more worker (PSS)"),
    "memory.whole": ("all, 1 worker", "Memory of all beyond the program, one worker (PSS)"),
}


def main() -> None:
    result = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    draw(result)
    page = PAGE.read_text("utf-8")
    text = f"{BEGIN}\n{table(result)}\n{END}"
    PAGE.write_text(re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: text, page, flags=re.S), "utf-8")
    print(f"{PAGE.relative_to(ROOT)} and {PICTURE.relative_to(ROOT)}.svg, .png", file=sys.stderr)


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown; the best of each column, beside the floor, in bold. What is missing, with its reason."""
    peers = result["peers"]
    lines = ["| | " + " | ".join(short for short, _ in FIGURES.values()) + " |", "|---" * (len(FIGURES) + 1) + "|"]
    best = {
        figure: min(
            (p["figures"][figure]["median"] for p in peers.values() if figure in p["figures"] and p.get("has_workers")),
            default=None,
        )
        for figure in FIGURES
    }
    for peer in peers.values():
        cells = []
        for figure in FIGURES:
            found = peer["figures"].get(figure)
            text = written(found) if found else "–"
            is_best = found and peer.get("has_workers") and found["median"] == best[figure]
            cells.append(f"**{text}**" if is_best else text)
        lines.append(f"| {' '.join([peer['title'], peer.get('version', '')]).strip()} | " + " | ".join(cells) + " |")
    machine = result["machine"]
    quick = " with --quick" if result["quick"] else ""
    notes = [
        "",
        f"Measured {result['date'][:16].replace('T', ' ')} UTC, in {result['seconds'] // 60} minutes{quick}, commit "
        f"{result['commit']}: {machine['cpu']}, {machine['cpus']} CPUs"
        f"{' (virtual)' if machine['virtual'] else ''}, {machine['memory_gib']} GiB, Linux {machine['kernel']}, Python "
        f"{machine['python']}, torch {machine['torch']}. {result['confession'][-1]}",
    ]
    notes += [
        f"\n{peer['title']} is missing, in whole or in part: {peer['failure']}"
        for peer in peers.values() if peer.get("failure")
    ]  # fmt: skip
    if not result["complete"]:
        notes.append("\nThe run was interrupted.")
    return "\n".join([*lines, *notes])


def written(found: dict[str, Any]) -> str:
    """A figure for people."""
    value = found["median"]
    if found["unit"] == "MiB":
        return f"{value:.3g} MiB" if value < 999.5 else f"{value:.0f} MiB"
    for unit, factor in (("µs", 1e6), ("ms", 1e3), ("s", 1.0)):
        if value * factor < 999.5 or unit == "s":
            return f"{value * factor:.2g} {unit}" if value * factor < 99.5 else f"{value * factor:.0f} {unit}"
    raise AssertionError


def draw(result: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "comparison", "svg.fonttype": "none", "font.size": 9}
    figure, axes = plt.subplots(4, 2, figsize=(12, 13), layout="constrained")
    for axis, (name, (_, title)) in zip(axes.flat, FIGURES.items(), strict=False):
        bars = [(p["figures"][name], key, p["title"]) for key, p in result["peers"].items() if name in p["figures"]]
        bars.sort(key=lambda bar: -bar[0]["median"])
        colours = ["#c2410c" if key == "fabric" else "#9ca3af" for _, key, _ in bars]
        values = [found["median"] for found, _, _ in bars]
        axis.barh([label for _, _, label in bars], values, color=colours)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xscale("log")
        axis.set_xlim(min(values) / 3, max(values) * 6)
        axis.set_xticks([], minor=True)
        axis.set_xticks([])
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        for place, (found, _, _) in enumerate(bars):
            low, high = found.get("of_rounds", [found["median"]] * 2)
            axis.plot([low, high], [place, place], color="#111827", linewidth=1)
            axis.text(max(high, found["median"]) * 1.15, place, written(found), va="center")
    rest = axes.flat[len(FIGURES)]
    rest.axis("off")
    words = [
        "Less is better. Scales are logarithmic.",
        "Bars: medians; lines: from the least to the greatest",
        "median of a round.",
        f"{result['date'][:10]}, {result['machine']['cpus']} CPUs, {result['machine']['cpu']}",
    ]
    rest.text(0.02, 0.95, "\n".join(words), va="top")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(PICTURE.with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    main()
