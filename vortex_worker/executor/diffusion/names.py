"""Names of a file's tensors: what is below a prefix, and the numbers of layers in them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vortex_worker.errors import ValidationError

Tensors = Mapping[str, Tensor]

MOST_LAYERS = 100  # Stable Diffusion 3.5 has 38, the largest CLIP 32
_DEEPEST = 16  # dots of a name that are looked at


def under(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def number(name: str, prefix: str) -> int:
    """The number after ``prefix``; −1 where there is none."""
    if not name.startswith(prefix):
        return -1
    head = name[len(prefix) :].partition(".")[0]
    return int(head) if head.isdecimal() and len(head) < 5 else -1


def check_layers(tensors: Tensors) -> None:
    """See that there are no more layers than networks have, before one is made of them: each takes its time.

    Raises:
        ValidationError: a number says so, or how many there are in one place.
    """
    layers: dict[str, set[str]] = {}
    for name in tensors:
        place, *inner = name.split(".", _DEEPEST)
        for layer in inner:
            there = layers.setdefault(place, set())
            there.add(layer)
            if len(there) > MOST_LAYERS or number(layer, "") >= MOST_LAYERS:
                raise ValidationError(
                    f"the file has {place[:100]}.{layer[:100]}: there are at most {MOST_LAYERS} layers in one place"
                )
            place = f"{place}.{layer}"


def count(tensors: Tensors, prefix: str) -> int:
    """How many numbers follow ``prefix``."""
    return len({found for name in tensors if (found := number(name, prefix)) >= 0})
