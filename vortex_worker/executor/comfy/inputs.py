"""``INPUT_TYPES`` as ports and params.

ComfyUI calls an input by its type: ``("IMAGE",)``, ``("INT", {"default": 1, "min": 0})``, ``(["a", "b"],)``. What an
editor would show a control for becomes a param, everything else a port. Pack authors are not
strict about defaults and bounds, so nor is this: one that makes no sense is passed over.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vortex_worker.executor.declaration import is_plain
from vortex_worker.executor.ports import HIDDEN, REQUIRED, Param, Port
from vortex_worker.executor.validation import param_problem

#: What ``VALIDATE_INPUTS`` calls the types of what is linked.
LINKED_TYPES = "input_types"

_CONTROLS = ("INT", "FLOAT", "STRING", "BOOLEAN")
_WIDEST = {"INT": (-(1 << 63), (1 << 64) - 1), "FLOAT": (-math.inf, math.inf)}


@dataclass(slots=True)
class Inputs:
    """What a pack's class takes."""

    ports: list[Port] = field(default_factory=list)
    params: list[Param] = field(default_factory=list)
    hidden: dict[str, str] = field(default_factory=dict)
    #: Params that the node's function isn't given when they are None.
    may_lack: set[str] = field(default_factory=set)
    #: Choices that are no strings, or none at all: checked by the adapter.
    choices: dict[str, list[Any]] = field(default_factory=dict)

    def names(self) -> dict[str, bool]:
        """Every port and param, and whether it is lazy."""
        ports = {port.name: port.lazy for port in self.ports}
        return ports | {param.name: param.lazy for param in self.params}


def inputs_of(cls: type[Any]) -> Inputs:
    """Read ``cls.INPUT_TYPES()``.

    Raises:
        TypeError: it is malformed; the sentence says where.
        Whatever it raises.
    """
    declared = cls.INPUT_TYPES()
    if not isinstance(declared, Mapping):
        raise TypeError(f"INPUT_TYPES gave a {type(declared).__name__}: it must give a dict")
    found = Inputs()
    own_checks = _own_checks(cls)
    for section in ("required", "optional"):
        for name, given in _section(declared, section).items():
            if not isinstance(name, str) or not name:
                raise TypeError(f"INPUT_TYPES: {section}: {name!r:.80} is no name")
            if name in found.names():
                continue  # ComfyUI looks in "required" first
            _add(found, name, given, optional=section == "optional", loose=own_checks is None or name in own_checks)
    if not hasattr(cls, "check_lazy_status"):  # nobody could say that they are needed
        found.ports = [replace(port, lazy=False) for port in found.ports]
        found.params = [replace(param, lazy=False) for param in found.params]
    if own_checks and LINKED_TYPES in own_checks and LINKED_TYPES not in found.names():
        # Then types are the pack's to judge, as in ComfyUI.
        found.ports = [replace(port, type="*") for port in found.ports]
        found.params.append(Param(LINKED_TYPES, "ANY", default=None, doc="of VALIDATE_INPUTS: filled by the workflow"))
        found.hidden[LINKED_TYPES] = "INPUT_TYPES"
    for name, kind in _section(declared, "hidden").items():
        kind = kind[0] if isinstance(kind, list | tuple) and kind else kind
        found.params.append(Param(str(name), "ANY", default=None, doc=f"{kind}: filled by the workflow"))
        found.may_lack.add(str(name))
        if kind in HIDDEN:
            found.hidden[str(name)] = str(kind)
    return found


def type_name(given: Any) -> str:
    """A type as ports have it. A list of choices is a string's."""
    if isinstance(given, list | tuple):
        return "STRING"
    name = str.__str__(given) if isinstance(given, str) else str(given)  # some packs' own str is equal to everything
    return {"": "*", "COMBO": "STRING"}.get(name, name)


def _section(declared: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = declared.get(name) or {}
    if not isinstance(section, Mapping):
        raise TypeError(f"INPUT_TYPES: {name} is a {type(section).__name__}: it must be a dict")
    return section


def _own_checks(cls: type[Any]) -> set[str] | None:
    """Inputs that ``VALIDATE_INPUTS`` takes upon itself; None: all of them."""
    check = getattr(cls, "VALIDATE_INPUTS", None)
    if check is None:
        return set()
    taken = inspect.signature(check).parameters.values()
    return None if any(p.kind is p.VAR_KEYWORD for p in taken) else {p.name for p in taken}


def _add(found: Inputs, name: str, given: Any, *, optional: bool, loose: bool) -> None:
    if not isinstance(given, list | tuple) or not given:
        raise TypeError(
            f"INPUT_TYPES: {name!r} is a {type(given).__name__}: it must be a tuple that begins with a type"
        )
    kind, options = given[0], given[1] if len(given) > 1 and isinstance(given[1], Mapping) else {}
    doc, lazy = str(options.get("tooltip") or ""), bool(options.get("lazy"))
    choices = list(kind) if isinstance(kind, list | tuple) else None
    if choices is None and type_name(kind) == "STRING" and isinstance(options.get("options"), list | tuple):
        choices = list(options["options"])
    if choices is None and type_name(kind) not in _CONTROLS:
        # A value of a pack's own type may be anything, and comes as data where a switch has passed it on.
        found.ports.append(Port(name, type_name(kind), doc, optional=optional, lazy=lazy, loose=True))
        return
    default = options.get("default", REQUIRED)
    if choices is None:
        param = _bounded(Param(name, type_name(kind), doc=doc, lazy=lazy), {} if loose else options)
        if param.type == "FLOAT" and isinstance(default, int):
            default = float(default)
    elif choices and not loose and all(isinstance(choice, str) for choice in choices):
        param = Param(name, "CHOICE", choices=tuple(dict.fromkeys(map(str, choices))), doc=doc, lazy=lazy)
        default = default if default in choices else choices[0]
    else:
        param = Param(name, "ANY", doc=doc, lazy=lazy)
        if not loose:
            found.choices[name] = choices
        default = default if default is not REQUIRED or not choices else choices[0]
    if optional:
        found.may_lack.add(name)
        default = None  # the function's own default is used
    elif default is None or param_problem(param, default) or not is_plain(default):
        default = REQUIRED
    found.params.append(replace(param, default=default))


def _bounded(param: Param, options: Mapping[str, Any]) -> Param:
    """With the bounds that make sense."""
    widest = _WIDEST.get(param.type)
    if widest is None:
        return param
    bounds: list[Any] = []
    for key, turn in (("min", math.ceil), ("max", math.floor)):
        bound = options.get(key)
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
            bounds.append(None)
            continue
        number = turn(bound) if param.type == "INT" else float(bound)
        bounds.append(number if widest[0] <= number <= widest[1] else None)
    if None not in bounds and bounds[0] > bounds[1]:
        return param
    return replace(param, minimum=bounds[0], maximum=bounds[1])
