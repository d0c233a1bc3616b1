"""A worker's lease as pinned memory, so that copies from a CUDA device run at the bus's speed.

Written to CUDA's and torch's documentation; not run on a GPU yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from vortex_worker._core.arena import Arena

_REGISTER_DEFAULT = 0  # cudaHostRegisterDefault


def pin(arena: Arena) -> bool:
    """Register the lease with CUDA; false where there is no CUDA, or no lease.

    Takes all of its pages at once and keeps them in memory. It makes system calls of the driver that
    the execute filter may deny: call it before lockdown. Copies work without it, through a buffer of
    the driver's.

    Raises:
        RuntimeError: CUDA refused (``torch.cuda.CudaError``).
    """
    if not torch.cuda.is_available() or not arena.lease_size:
        return False
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    torch.cuda.check_error(cudart.cudaHostRegister(arena.lease_address, arena.lease_size, _REGISTER_DEFAULT))
    return True


def unpin(arena: Arena) -> None:
    """Undo ``pin``, before the arena is closed."""
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    torch.cuda.check_error(cudart.cudaHostUnregister(arena.lease_address))
