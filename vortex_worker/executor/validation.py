"""Checks of what goes into a node and what comes out. Every problem is listed, by name.

Needs no torch: a value can only be a tensor if somebody has imported it.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from vortex_worker.errors import ExecutionError, ValidationError
from vortex_worker.executor.ports import REQUIRED, OpSpec, Param, Port

_INT_LOW, _INT_HIGH = -(1 << 63), (1 << 64) - 1


def prepare(
    spec: OpSpec, inputs: Mapping[str, Any], params: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs by port and params with defaults filled in.

    A port may be given by an alias, and a param among the inputs, as workflows do that link one.

    Raises:
        ValidationError: ``problems`` lists every one: unknown, missing, of the wrong type, out of range.
    """
    problems: list[str] = []
    ports = {name: port for port in spec.inputs for name in (port.name, *port.aliases)}
    known_params = {param.name: param for param in spec.params}
    ready: dict[str, Any] = {}
    settings: dict[str, Any] = {}

    for name, value in inputs.items():
        port = ports.get(name)
        if port is not None:
            if port.name in ready:
                problems.append(f"input {port.name!r} is given twice, once as {name!r}")
            ready[port.name] = value
        elif name in known_params and name not in params:
            settings[name] = value
        else:
            problems.append(f"{spec.name} has no input {name!r}{_near(name, ports)}")
    for name, value in params.items():
        if name in known_params:
            settings[name] = value
        elif name in ports and ports[name].name not in ready:
            ready[ports[name].name] = value
        else:
            problems.append(f"{spec.name} has no parameter {name!r}{_near(name, known_params)}")

    for port in spec.inputs:
        if port.name in ready:
            if ready[port.name] is None and port.optional:
                del ready[port.name]
            elif problem := port_problem(port, ready[port.name]):
                problems.append(f"input {problem}")
        elif not port.optional:
            problems.append(f"input {port.name!r} is missing: it takes {port.type}")
    for param in spec.params:
        if param.name in settings:
            if problem := param_problem(param, settings[param.name]):
                problems.append(f"parameter {problem}")
            elif param.type == "FLOAT":
                settings[param.name] = float(settings[param.name])
        elif param.default is REQUIRED:
            problems.append(f"parameter {param.name!r} is missing: it takes {accepted(param)}")
        else:
            settings[param.name] = param.default
    if problems:
        raise ValidationError(f"{spec.name}: " + "; ".join(problems), problems=problems)
    return ready, settings


def port_problem(port: Port, value: Any) -> str | None:
    """What is wrong with ``value`` at ``port``, or None."""

    def wrong(wanted: str) -> str:
        return f"{port.name!r} is {describe(value)}: it takes {wanted}"

    match port.type:
        case "*":
            return None
        case "TENSOR" | "MASK":
            return None if is_tensor(value) else wrong("a tensor")
        case "IMAGE":
            if not is_tensor(value) or value.dim() != 4 or value.shape[-1] not in (1, 3, 4):
                return wrong("a float tensor [batch, height, width, 1, 3 or 4]")
            return None if value.is_floating_point() else wrong("a floating-point tensor, 0 to 1")
        case "LATENT":
            if not isinstance(value, Mapping) or not is_tensor(value.get("samples")):
                return wrong("a dict with a tensor 'samples'")
            return None if value["samples"].dim() >= 3 else wrong("'samples' of [batch, channels, …]")
        case "CONDITIONING":
            ok = isinstance(value, list) and value and all(
                isinstance(pair, list | tuple) and len(pair) == 2 and is_tensor(pair[0]) and isinstance(pair[1], Mapping)
                for pair in value
            )  # fmt: skip
            return None if ok else wrong("a list of [tensor, dict]")
        case "INT" | "FLOAT" | "STRING" | "BOOLEAN":
            return param_problem(Param(port.name, port.type), value)
        case _:
            plain = value is None or isinstance(value, bool | int | float | str | bytes)
            return wrong(f"a {port.type} object") if plain or is_tensor(value) else None


def param_problem(param: Param, value: Any) -> str | None:
    """What is wrong with ``value`` for ``param``, or None."""
    ok = False
    match param.type:
        case "ANY":
            return None
        case "INT":
            ok = isinstance(value, int) and not isinstance(value, bool) and _INT_LOW <= value <= _INT_HIGH
        case "FLOAT":
            ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        case "STRING":
            ok = isinstance(value, str)
        case "BOOLEAN":
            ok = isinstance(value, bool)
        case "BYTES":
            ok = isinstance(value, bytes)
        case "LIST":
            ok = isinstance(value, list | tuple)
        case "CHOICE":
            if isinstance(value, str) and value in param.choices:
                return None
            hint = _near(value, param.choices) if isinstance(value, str) else ""
            return f"{param.name!r} is {describe(value)}: it takes one of {', '.join(param.choices)}{hint}"
    if ok and param.minimum is not None and value < param.minimum:
        ok = False
    if ok and param.maximum is not None and value > param.maximum:
        ok = False
    return None if ok else f"{param.name!r} is {describe(value)}: it takes {accepted(param)}"


def accepted(param: Param) -> str:
    """What a parameter takes, in words."""
    words = {
        "INT": "a whole number", "FLOAT": "a finite number", "STRING": "a string", "BOOLEAN": "true or false",
        "BYTES": "bytes", "LIST": "a list", "ANY": "any value", "CHOICE": f"one of {', '.join(param.choices)}",
    }[param.type]  # fmt: skip
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
    if not isinstance(result, Mapping):
        raise ExecutionError(f"{spec.name} returned {describe(result)}: execute must return a dict by output port")
    names = [port.name for port in spec.outputs]
    missing = [name for name in names if name not in result]
    extra = [str(name) for name in result if name not in names]
    if missing or extra:
        said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(extra)}"] * bool(extra)
        raise ExecutionError(f"{spec.name} returned a dict that {' and '.join(said)}: its outputs are {', '.join(names)}")
    for port in spec.outputs:
        if problem := port_problem(port, result[port.name]):
            raise ExecutionError(f"{spec.name} returned a bad output: {problem}")
    return {name: result[name] for name in names}


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
    if isinstance(value, bool | int | float | str):
        text = repr(value)
        return text if len(text) <= 60 else text[:57] + "…"
    if value is None:
        return "None"
    return f"a {type(value).__name__}"


def _near(name: str, known: Iterable[str]) -> str:
    known = list(dict.fromkeys(known))
    found = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
    if found:
        return f"; did you mean {' or '.join(map(repr, found))}?"
    return f"; it has {', '.join(known)}" if 0 < len(known) <= 12 else ""
