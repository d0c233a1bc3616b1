"""What of a workflow goes into the files it makes, as JSON: whether it can, and how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vortex_worker.executor.validation import a

_SHOWN = 60  # characters of a name or a key in a message


def foreign(value: Any, name: str, *, objects: bool = False) -> str:
    """What JSON has no form for, and where: ``extra_pnginfo["a"][3] is a set: it takes …``; "" if nothing is.

    Args:
        value: finite, but the same lists and dicts may be in it more than once: each is looked at once.
        name: of the whole.
        objects: whether something else may stand for a value: a tensor, a reference, whatever its node takes.
    """
    seen: set[int] = set()
    todo = [(value, name)]
    while todo:
        value, place = todo.pop()
        if isinstance(value, Mapping | list | tuple):
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, Mapping):
                if bad := [key for key in value if not isinstance(key, str | int | float | None)]:
                    return f"{place} has a key that is {a(type(bad[0]).__name__)}: it takes strings"
                inner = [(value[key], f"{place}[{_short(key)}]") for key in value]
            else:
                inner = [(item, f"{place}[{number}]") for number, item in enumerate(value)]
            todo += reversed(inner)  # the first is told first
        elif isinstance(value, int):
            try:
                str(value)
            except ValueError:  # more than Python writes
                return f"{place} is a number of {value.bit_length()} bits: there is no room for so many digits"
        elif not objects and not isinstance(value, str | float | None):
            kind = a(type(value).__name__)
            return f"{place} is {kind}: it takes what JSON has, strings, numbers, booleans, null, lists and objects"
    return ""


def as_json(value: Any) -> str:
    """What has passed `foreign`, as JSON; objects in it as Python shows them."""
    return json.dumps(value, default=_shown)


def _shown(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # of somebody's own making
        return f"<{type(value).__name__}>"


def _short(key: Any) -> str:
    text = json.dumps(key)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
