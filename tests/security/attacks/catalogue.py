"""Writes the tables of README.md from the attacks themselves: ``python catalogue.py``."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

HERE = Path(__file__).parent
BEGIN, END = "<!-- catalogue -->\n", "<!-- end of catalogue -->\n"


def tables() -> str:
    """A section for each kind: its first words, and a table of its attacks."""
    from hostile import ATTACKS

    parts = []
    for kind, cases in groupby(ATTACKS.values(), key=lambda case: case.kind):
        about = " ".join((sys.modules[f"hostile.{kind}"].__doc__ or "").split())
        parts.append(
            f"### {kind}.py\n\n{about}\n\n| attack | what it tries | stopped by | seen in |\n|---|---|---|---|"
        )
        for case in cases:
            layers = " or ".join(case.stopped_by)
            parts[-1] += f"\n| `{case.name}` | {case.tells} | {layers} | {case.effect} |"
    return "\n\n".join(parts) + "\n"


def readme(text: str) -> str:
    """``text`` with the tables as they should be."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n" + tables() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    sys.path[:0] = [str(HERE / "nodes")]
    path = HERE / "README.md"
    path.write_text(readme(path.read_text()))
