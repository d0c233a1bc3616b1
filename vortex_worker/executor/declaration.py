"""Reads what a node's class declares, and says in a sentence what is wrong with it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.ports import HIDDEN, REQUIRED, OpSpec, Param, Port, as_ports
from vortex_worker.executor.validation import param_problem

_METHODS = {"CHANGED": "changed", "NEEDS": "needs", "PRECHECK": "precheck"}


def spec_of(cls: type[Any], source: str) -> OpSpec:
    """What a node's class declares, checked.

    Raises:
        TypeError, ValueError: a sentence that says what is wrong with the declaration.
    """
    if not (inspect.isclass(cls) and issubclass(cls, AbstractExecutor)):
        raise TypeError(f"{getattr(cls, '__name__', cls)!r:.80} is no subclass of AbstractExecutor")
    name = getattr(cls, "op_type", None)
    if not isinstance(name, str) or not name:
        raise TypeError(f"{cls.__name__} has no op_type: it must be a string")
    _require_text(f"op_type of {cls.__name__}", name)
    if inspect.isabstract(cls):
        raise TypeError(f"{name} ({cls.__name__}) has no execute method")
    inputs = _ports(name, "input_ports", cls.input_ports)
    outputs = _ports(name, "output_ports", cls.output_ports)
    params = _params(name, cls.params)
    taken: set[str] = set()
    for given in [*_names(inputs), *(param.name for param in params)]:
        if given in taken:
            raise ValueError(f"{name}: two inputs or params are called {given!r}")
        taken.add(given)
    if len({port.name for port in outputs}) != len(outputs):
        raise ValueError(f"{name}: two outputs have one name")
    doc = inspect.getdoc(cls) if isinstance(cls.__doc__, str) and cls.__doc__ else ""
    line = (doc or "").split("\n")[0].encode("utf-8", "replace").decode("utf-8")
    hidden = dict(cls.hidden)
    for param, kind in hidden.items():
        if kind not in HIDDEN or not any(param == known.name for known in params):
            raise ValueError(f"{name}: hidden: {param!r:.80}: {kind!r:.80}: it takes params, and {', '.join(HIDDEN)}")
    _require_text(f"{name}: category", cls.category)
    own = {question: getattr(cls, method) for question, method in _METHODS.items()}
    return OpSpec(
        name, inputs, outputs, params, bool(cls.mutates_inputs), source, line,
        category=cls.category, output_node=bool(cls.output_node), input_is_list=bool(cls.input_is_list), hidden=hidden,
        answers=frozenset(q for q, method in _METHODS.items() if own[q] is not getattr(AbstractExecutor, method)),
    )  # fmt: skip


def _items(name: str, field: str, items: object, *wanted: type) -> tuple[Any, ...]:
    if not isinstance(items, tuple | list) or not all(isinstance(item, wanted) for item in items):
        kinds = " or ".join(kind.__name__ for kind in wanted)
        raise TypeError(f"{name}: {field} must be a tuple or list of {kinds}")
    return tuple(items)


def _ports(name: str, field: str, items: object) -> tuple[Port, ...]:
    ports = as_ports(_items(name, field, items, Port, str))
    for port in ports:
        if not isinstance(port.aliases, tuple | list) or not all(isinstance(a, str) for a in port.aliases):
            raise TypeError(f"{name}: {field}: aliases of {port.name!r} must be a tuple of strings")
        for text in (port.name, port.type, *port.aliases):
            if not isinstance(text, str) or not text:
                raise TypeError(f"{name}: {field}: a port's name, type and aliases must be strings, not empty")
            _require_text(f"{name}: {field}", text)
        _require_text(f"{name}: doc of {port.name!r}", port.doc)
    return ports


def _params(name: str, items: object) -> tuple[Param, ...]:
    params: tuple[Param, ...] = _items(name, "params", items, Param)
    for param in params:
        if not isinstance(param.name, str) or not param.name:
            raise TypeError(f"{name}: params: a param's name must be a string, not empty")
        about = f"{name}: param {param.name!r}"
        if not all(isinstance(choice, str) for choice in param.choices):
            raise TypeError(f"{about}: choices must be strings")
        for text in (param.name, param.doc, *param.choices):
            _require_text(about, text)
        bounds = [bound for bound in (param.minimum, param.maximum) if bound is not None]
        if bounds and param.type not in ("INT", "FLOAT"):
            raise ValueError(f"{about}: minimum and maximum go with INT and FLOAT only")
        for bound in bounds:
            if problem := param_problem(Param("bound", param.type), bound):
                raise ValueError(f"{about}: {problem}")
        if len(bounds) == 2 and bounds[0] > bounds[1]:
            raise ValueError(f"{about}: minimum {bounds[0]} is above maximum {bounds[1]}")
        if param.default is not REQUIRED:
            if problem := param_problem(param, param.default):
                raise ValueError(f"{about}: the default of {problem}")
            if not is_plain(param.default):
                raise TypeError(f"{about}: the default must be plain data, which the wire can carry")
    return params


def _names(ports: tuple[Port, ...]) -> Iterator[str]:
    for port in ports:
        yield port.name
        yield from port.aliases


def _require_text(about: str, text: object) -> None:
    """A string that the wire can carry: UTF-8 has no lone surrogates."""
    if not isinstance(text, str):
        raise TypeError(f"{about} is a {type(text).__name__}: it must be a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{about} is {text!r:.80}: it must be text that UTF-8 can carry") from None


def is_plain(value: object, depth: int = 0) -> bool:
    """Whether a value can go on the wire as data: see ``Value`` in ``proto/control.proto``."""
    if depth > 16:
        return False
    if isinstance(value, bool | float | bytes) or value is None:
        return True
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 64
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, list | tuple):
        return all(is_plain(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return all(isinstance(k, str) and is_plain(k) and is_plain(v, depth + 1) for k, v in value.items())
    return False
