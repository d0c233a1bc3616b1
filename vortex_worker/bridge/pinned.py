"""A worker's lease as pinned memory, so that results leave a CUDA device at the bus's speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vortex_worker.errors import ConfigError

if TYPE_CHECKING:
    from vortex_worker._core.arena import Arena

_REGISTER_DEFAULT = 0  # cudaHostRegisterDefault


def pin(arena: Arena) -> None:
    """Register the lease with CUDA (cudaHostRegister of its runtime API), until the process ends.

    Takes all of its pages at once and keeps them in memory. Before lockdown: it makes system calls of
    the driver that the filter denies after it.

    Raises:
        ConfigError: CUDA refused, mostly because there is not so much memory.
    """
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    status = cudart.cudaHostRegister(arena.lease_address, arena.lease_size, _REGISTER_DEFAULT)
    if int(status) != 0:
        raise ConfigError(
            f"lease_size is {arena.lease_size}, and CUDA can't pin so much memory (error {int(status)}): "
            "a smaller one, or device='cpu', may do"
        )
