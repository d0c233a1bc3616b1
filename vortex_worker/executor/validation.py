"""Checks of what goes into a node and what comes out. Every problem is listed, by name.

Needs no torch: a value can only be a tensor if somebody has imported it.
"""

from __future__ import annotations

import copy
import difflib
import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NoReturn

from vortex_worker.errors import ExecutionError, ValidationError
from vortex_worker.executor.ports import REQUIRED, OpSpec, Param, Port

_INT_LOW, _INT_HIGH = -(1 << 63), (1 << 64) - 1
_MAX_PROBLEMS = 50  # told of one job: more help nobody
_MAX_QUOTE = 60  # characters of a value
_MAX_LINE = 1000  # characters of what a node says is wrong
_MAX_NAMES = 8  # of what there is to choose from: who wants all asks `vortex-worker nodes`


def prepare(
    spec: OpSpec, inputs: Mapping[str, Any], params: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs by port and params with defaults filled in.

    A port may be given by an alias; and, as workflows link and type in what they please, a param may
    come among the inputs and a port among the params.

    Raises:
        ValidationError: ``problems`` lists every one: unknown, missing, of the wrong type, out of range.
    """
    problems: list[str] = []
    ports, known_params = spec.known_ports, spec.known_params
    ready: dict[str, Any] = {}
    settings: dict[str, Any] = {}

    for kind, given in (("input", inputs), ("parameter", params)):
        for name, value in given.items():
            if name in ports:
                into, own_name = ready, ports[name].name
            elif name in known_params:
                into, own_name = settings, name
            else:
                known = ports if kind == "input" else known_params
                hint = near(name, [*ports, *known_params])
                if not hint and 0 < len(known) <= 12:
                    hint = f"; it has {', '.join(known)}"
                problems.append(f"it has no {kind} {describe(name)}{hint}")
                continue
            if own_name in into:
                problems.append(f"{own_name!r} is given twice, once as {kind} {name!r}")
            into[own_name] = value

    for port in spec.inputs:
        if port.name not in ready or (ready[port.name] is None and (port.optional or port.lazy)):
            ready.pop(port.name, None)
            if not port.optional and not port.lazy:
                problems.append(f"input {port.name!r} is missing: it takes {_accepted_at(port)}")
        elif spec.input_is_list:
            problems += _each(ready[port.name], partial(port_problem, port), f"input {port.name!r}")
        elif problem := port_problem(port, ready[port.name]):
            problems.append(f"input {problem}")
        elif port.type == "FLOAT":
            ready[port.name] = float(ready[port.name])
    for param in spec.params:
        if param.name not in settings:
            if param.default is REQUIRED and param.lazy:
                pass  # the node did not ask for it
            elif param.default is REQUIRED:
                problems.append(f"parameter {param.name!r} is missing: it takes {accepted(param)}")
            else:  # a node may change what it is given
                default = copy.deepcopy(param.default)
                settings[param.name] = [default] if spec.input_is_list else default
        elif spec.input_is_list:
            given, about = settings[param.name], f"parameter {param.name!r}"
            problems += _each(given, partial(param_problem, param), about)
        elif problem := param_problem(param, settings[param.name]):
            problems.append(f"parameter {problem}")
        elif param.type == "FLOAT" and settings[param.name] is not None:
            settings[param.name] = float(settings[param.name])
    if problems:
        raise as_error(spec, problems)
    return ready, settings


def as_error(spec: OpSpec, problems: list[str]) -> ValidationError:
    """The job's error for what is wrong with what a node was given; a long list is cut."""
    if len(problems) > _MAX_PROBLEMS:
        problems = [*problems[:_MAX_PROBLEMS], f"and {len(problems) - _MAX_PROBLEMS} more"]
    return ValidationError(f"{spec.name}: " + "; ".join(problems), problems=problems)


def linked_problems(spec: OpSpec, linked: Mapping[str, Any]) -> list[str]:
    """What is wrong with some of a node's values: those that other nodes gave."""
    problems = []
    for name, value in linked.items():
        if (port := spec.known_ports.get(name)) and (problem := port_problem(port, value)):
            problems.append(f"input {problem}")
        elif (param := spec.known_params.get(name)) and (problem := param_problem(param, value)):
            problems.append(f"parameter {problem}")
    return problems


def _each(value: Any, problem_of: Callable[[Any], str | None], about: str) -> list[str]:
    """What is wrong with the items of a list, where a node takes lists."""
    if not isinstance(value, list):
        return [f"{about} is {describe(value)}: this node takes lists of values"]
    return [f"{about}, item {place}: {found}" for place, item in enumerate(value) if (found := problem_of(item))]


def port_problem(port: Port, value: Any) -> str | None:
    """What is wrong with ``value`` at ``port``, or None."""
    ok: bool
    match port.type:
        case "*":
            ok = True
        case "INT" | "FLOAT" | "STRING" | "BOOLEAN":
            return param_problem(Param(port.name, port.type), value)
        case "TENSOR" | "MASK":
            ok = is_tensor(value)
        case "IMAGE":
            ok = is_tensor(value) and value.dim() == 4 and value.shape[-1] in (1, 3, 4)
            ok = ok and value.is_floating_point()
        case "LATENT":
            ok = isinstance(value, Mapping) and is_tensor(value.get("samples")) and value["samples"].dim() >= 3
        case "CONDITIONING":
            ok = isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_condition, value))
        case several if "," in several:
            ok = any(port_problem(one, value) is None for one in _alternatives(port))
        case _:
            ok = port.loose or not (
                value is None or isinstance(value, bool | int | float | str | bytes) or is_tensor(value)
            )
    return None if ok else f"{port.name!r} is {describe(value)}: it takes {_accepted_at(port)}"


def _alternatives(port: Port) -> list[Port]:
    """A port for each type of one that takes several, which packs write with commas."""
    return [replace(port, type=kind.strip()) for kind in port.type.split(",")]


def _is_condition(pair: Any) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and is_tensor(pair[0]) and isinstance(pair[1], Mapping)


def _accepted_at(port: Port) -> str:
    match port.type:
        case "*":
            return "any value"
        case "INT" | "FLOAT" | "STRING" | "BOOLEAN":
            return accepted(Param(port.name, port.type))
        case "TENSOR" | "MASK":
            return "a tensor"
        case "IMAGE":
            return "a floating-point tensor [batch, height, width, 1, 3 or 4]"
        case "LATENT":
            return "a dict with 'samples', a tensor [batch, channels, …]"
        case "CONDITIONING":
            return "a list of [tensor, dict]"
        case several if "," in several:
            return " or ".join(map(_accepted_at, _alternatives(port)))
        case _:
            return f"{a(port.type)} object"


def param_problem(param: Param, value: Any) -> str | None:
    """What is wrong with ``value`` for ``param``, or None. None is right where it is the default."""
    if value is None and param.default is None:
        return None
    ok = False
    hint = ""
    match param.type:
        case "ANY":
            return None
        case "INT":
            ok = isinstance(value, int) and not isinstance(value, bool)
            if ok and not _INT_LOW <= value <= _INT_HIGH:
                ok, hint = False, " (of 64 bits)"
        case "FLOAT":
            ok = isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
        case "STRING":
            ok = isinstance(value, str)
        case "BOOLEAN":
            ok = isinstance(value, bool)
        case "BYTES":
            ok = isinstance(value, bytes)
        case "LIST":
            ok = isinstance(value, list | tuple)
        case "CHOICE":
            if not isinstance(value, str) or value not in param.choices:
                return f"{param.name!r} is {describe(value)}: {offer(value, param.choices)}"
            ok = True
    if ok and param.minimum is not None and value < param.minimum:
        ok = False
    if ok and param.maximum is not None and value > param.maximum:
        ok = False
    return None if ok else f"{param.name!r} is {describe(value)}: it takes {accepted(param)}{hint}"


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def accepted(param: Param) -> str:
    """What a parameter takes, in words."""
    words = {
        "INT": "a whole number",
        "FLOAT": "a finite number",
        "STRING": "a string",
        "BOOLEAN": "true or false",
        "CHOICE": f"one of {', '.join(param.choices)}",
        "BYTES": "bytes",
        "LIST": "a list",
        "ANY": "any value",
    }[param.type]
    if param.minimum is not None and param.maximum is not None:
        return f"{words}, {param.minimum} to {param.maximum}"
    if param.minimum is not None:
        return f"{words}, at least {param.minimum}"
    if param.maximum is not None:
        return f"{words}, at most {param.maximum}"
    return words


def check_outputs(spec: OpSpec, result: Any) -> dict[str, Any]:
    """A node's outputs by port, complete.

    Raises:
        ExecutionError: it gave no dict, too few or too many ports, or a value that fits none.
    """
    if type(result) is not dict:
        if not isinstance(result, Mapping):
            raise ExecutionError(f"{spec.name} returned {describe(result)}: execute must return a dict by output port")
        result = dict(result)
    ports = spec.known_outputs
    if result.keys() != ports.keys():
        _complain_of_ports(spec, result)
    outputs = {}
    for name, port in ports.items():
        value = outputs[name] = result[name]
        problem = None
        if not port.is_list:
            problem = port_problem(port, value)
        elif isinstance(value, list | tuple):
            problem = next(filter(None, (port_problem(port, item) for item in value)), None)
        else:
            problem = f"{name!r} is {describe(value)}: it takes a list"
        if problem:
            raise ExecutionError(f"{spec.name} returned a bad output: {problem}", {"port": name})
    return outputs


def _complain_of_ports(spec: OpSpec, result: dict[Any, Any]) -> NoReturn:
    names = spec.known_outputs
    missing = [name for name in names if name not in result]
    extra = [describe(name) for name in result if name not in names]
    said = [f"lacks {', '.join(missing)}"] * bool(missing)
    said += [f"has unknown {', '.join(extra[:_MAX_PROBLEMS])}"] * bool(extra)
    raise ExecutionError(
        f"{spec.name} returned a dict that {' and '.join(said)}: its outputs are {', '.join(names) or 'none'}"
    )


def is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def describe(value: Any) -> str:
    """A value as a message may quote it: short, and never its own ``__repr__`` gone wrong."""
    if is_tensor(value):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, int) and value.bit_length() > 128:  # its digits may be too many for Python to print
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, str):
        return repr(value) if len(value) < _MAX_QUOTE else repr(value[:_MAX_QUOTE]) + "…"
    if value is None or type(value) in (bool, int, float):
        return repr(value)
    return a(type(value).__name__)


def one_line(text: str, most: int = _MAX_LINE) -> str:
    """What somebody else's code says, as a message may quote it: bounded, and what can't be printed written out."""
    shown = text[:most]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return shown if len(text) <= most and len(shown) <= most else shown[:most] + "…"


def near(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``; did you mean 'euler'?`` or nothing."""
    found = _nearest(name, known, 3, cutoff)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def offer(name: Any, choices: Collection[str]) -> str:
    """What there is instead of ``name``: all of a few choices; of many the nearest, and how many there are."""
    if len(choices) <= _MAX_NAMES:
        return f"it takes one of {', '.join(choices)}{near(name, choices)}"
    meant = _nearest(name, choices, 2, 0.6)
    about = f"did you mean {' or '.join(map(repr, meant))}? It" if meant else "it"
    return f"{about} takes one of {len(choices)}: {few(name, choices)}"


def few(name: Any, known: Collection[str]) -> str:
    """Some of many names: those nearest to ``name`` first, then others in their order."""
    shown = _nearest(name, known, _MAX_NAMES, 0.4)
    shown += islice((other for other in known if other not in shown), _MAX_NAMES - len(shown))
    return ", ".join(shown) + ", …" * (len(known) > len(shown))


def a(noun: str) -> str:
    """With its article: ``an IMAGE``, ``a MODEL``."""
    return f"an {noun}" if noun[:1] in "AEIOUaeiou" else f"a {noun}"


def _nearest(name: Any, known: Iterable[str], most: int, cutoff: float) -> list[str]:
    if not isinstance(name, str):
        return []
    by_lower: dict[str, list[str]] = {}  # who writes EULER means euler
    for other in known:
        by_lower.setdefault(other.lower(), []).append(other)
    meant = difflib.get_close_matches(name[:200].lower(), by_lower, n=most, cutoff=cutoff)
    return [other for lower in meant for other in by_lower[lower]][:most]
