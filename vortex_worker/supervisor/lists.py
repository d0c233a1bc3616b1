"""Lists in workflows: an output that gives one has whatever it is linked to run once for each item.

A node that takes lists (``input_is_list``) is run once, with every input as a list. Shorter lists, and
single values, go on with their last item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vortex_worker.executor.ports import OpSpec


class Items(list[Any]):
    """The values of one output, one by one; a plain list is a single value."""


class _Turns(Sequence[dict[str, Any]]):
    """What each run is given, made when it is asked for: a list may have a million items."""

    def __init__(self, given: Mapping[str, Any], count: int) -> None:
        self._given = given
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, turn: int) -> dict[str, Any]:  # type: ignore[override]  # nobody takes slices
        if turn >= self._count:
            raise IndexError(turn)
        return {
            name: value[min(turn, len(value) - 1)] if isinstance(value, Items) else value
            for name, value in self._given.items()
        }


def spread(spec: OpSpec, given: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """What each run of a node is given. No run at all, if a list is empty."""
    if spec.input_is_list:
        return [{name: list(value) if isinstance(value, Items) else [value] for name, value in given.items()}]
    lengths = [len(value) for value in given.values() if isinstance(value, Items)]
    if 0 in lengths:
        return []
    return _Turns(given, max(lengths)) if lengths else [dict(given)]


def is_spread(spec: OpSpec, given: Mapping[str, Any]) -> bool:
    """Whether the node's outputs are lists because its inputs were."""
    return not spec.input_is_list and any(isinstance(value, Items) for value in given.values())


def gathered(spec: OpSpec, results: Sequence[Mapping[str, Any]], *, spread: bool) -> dict[str, Any]:
    """The outputs of all runs, by port."""
    outputs: dict[str, Any] = {}
    for port in spec.outputs:
        values = [result[port.name] for result in results]
        if port.is_list:
            outputs[port.name] = Items(item for value in values for item in value)
        else:
            outputs[port.name] = Items(values) if spread else values[0]
    return outputs
