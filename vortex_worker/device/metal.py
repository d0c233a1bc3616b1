"""Apple GPUs through torch's MPS backend. Written to torch's documentation; not run on hardware yet."""

from __future__ import annotations

import sys

from vortex_worker.device import Device, message_of


def devices() -> list[Device]:
    """The Metal device, where there is one."""
    import torch

    if not torch.backends.mps.is_available():
        return []
    return [Device("mps", 0, "Apple GPU", torch.mps.recommended_max_memory())]


def empty_cache() -> None:
    """Give the caching allocator's unused memory back."""
    torch = sys.modules.get("torch")
    if sys.platform == "darwin" and torch is not None and torch.backends.mps.is_available():
        torch.mps.empty_cache()


def is_oom(error: BaseException) -> bool:
    """What torch's MPS allocator raises: a plain RuntimeError."""
    return isinstance(error, RuntimeError) and "MPS backend out of memory" in message_of(error)
