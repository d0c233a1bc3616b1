"""Names of a file's tensors: what is below a prefix, and the numbers of layers in them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

Tensors = Mapping[str, Tensor]


def under(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def number(name: str, prefix: str) -> int:
    """The number after ``prefix``; −1 where there is none."""
    if not name.startswith(prefix):
        return -1
    head = name[len(prefix) :].partition(".")[0]
    return int(head) if head.isdecimal() and len(head) < 5 else -1


def count(tensors: Tensors, prefix: str) -> int:
    """How many numbers follow ``prefix``."""
    return len({found for name in tensors if (found := number(name, prefix)) >= 0})
