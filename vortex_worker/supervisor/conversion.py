"""Plain values of workflows as the types that nodes declare, by the rules of ComfyUI's check of a prompt.

What is typed into an editor, or filled into a workflow by a script, is often of a neighbouring type: ``"4"`` or
``4.0`` where a whole number is wanted. Values that nodes give each other, and those of ``Fabric.run``, are never
converted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_WRAPPED = "__value__"  # how ComfyUI's editor writes a list that is no link: {"__value__": ["3", 0]}


def converted(kind: str, value: Any) -> Any:
    """``value`` as a port's or param's type has it, or as it is where it can't be that without loss.

    To ``INT`` go whole floats and strings of whole numbers; to ``FLOAT`` numbers and strings of finite ones; to
    ``STRING`` numbers and booleans, as Python writes them; to ``BOOLEAN`` numbers and strings, being false when
    they are 0 or empty.

    Unlike ComfyUI's, an INT takes no boolean, nor a fraction whose rest would be lost.
    """
    if isinstance(value, Mapping) and _WRAPPED in value:
        value = value[_WRAPPED]
    try:
        match kind, value:
            case ("INT", float()) if value.is_integer():
                return int(value)
            case ("INT", str()):
                return int(value)
            case ("FLOAT", bool()):
                return value
            case ("FLOAT", int() | str()):
                number = float(value)
                return number if math.isfinite(number) else value
            case ("STRING", int() | float()):
                return str(value)
            case ("BOOLEAN", int() | float() | str()):
                return bool(value)
    except (ValueError, OverflowError):  # no number, or one of too many digits
        pass
    return value
