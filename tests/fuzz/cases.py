"""How many cases to make, and of which seed.

``VORTEX_FUZZ_CASES`` (cases of each test) and ``VORTEX_FUZZ_SEED`` (1) make a run longer, or another one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

SEED = int(os.environ.get("VORTEX_FUZZ_SEED") or "1")


def cases(name: str, usual: int) -> Iterator[tuple[int, random.Random]]:
    """Numbers from 0 and, for each, its own generator: any case can be made again by itself."""
    for number in range(int(os.environ.get("VORTEX_FUZZ_CASES") or usual)):
        yield number, random.Random(f"{name} {SEED} {number}")
