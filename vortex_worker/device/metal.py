"""Apple GPUs through torch's MPS backend. Written to torch's documentation; not run on hardware yet."""

from __future__ import annotations

import sys

from vortex_worker.device import Device


def devices() -> list[Device]:
    """The Metal device, where there is one."""
    import torch

    if not torch.backends.mps.is_available():
        return []
    return [Device("mps", 0, "Apple GPU", torch.mps.recommended_max_memory())]


def empty_cache() -> None:
    torch = sys.modules.get("torch")
    if sys.platform == "darwin" and torch is not None and torch.backends.mps.is_available():
        torch.mps.empty_cache()
