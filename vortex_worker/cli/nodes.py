"""``vortex-worker nodes``: what nodes there are, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from typing import Any

from rich.console import Console
from rich.text import Text

from vortex_worker.cli import EXIT_FAILED, EXIT_USAGE
from vortex_worker.cli.console import diagnostics
from vortex_worker.errors import ConfigError, VortexError
from vortex_worker.executor.ports import REQUIRED, OpSpec, Param
from vortex_worker.executor.validation import accepted
from vortex_worker.supervisor.fabric import Fabric
from vortex_worker.supervisor.workflow import CLIENT_NODES

_LEAST = 40  # columns: a narrower terminal wraps by itself


def nodes_command(
    custom_nodes: tuple[str, ...], models: tuple[str, ...], modules: tuple[str, ...], as_json: bool
) -> int:
    """List them; returns the exit status."""
    errors = diagnostics()  # plugins that fail are warned of
    try:
        with Fabric(1, custom_nodes=custom_nodes, models=models, modules=modules) as fabric:
            specs = {**fabric.nodes(), **{name: node.spec for name, node in CLIENT_NODES.items()}}
            failures = fabric.plugin_errors()
    except ConfigError as error:
        errors.print(str(error), style="red", markup=False)
        return EXIT_USAGE
    except VortexError as error:
        errors.print(str(error), style="red", markup=False)
        return EXIT_FAILED
    if as_json:
        listing = {
            "nodes": [as_dict(specs[name]) for name in sorted(specs)],
            "failures": [{"plugin": p, "message": m, "traceback": t} for p, m, t in failures],
        }
        print(json.dumps(listing, indent=2))
        return 0
    console = Console(soft_wrap=True, highlight=False)
    width = max(_LEAST, console.width) if console.is_terminal else None
    for name in sorted(specs):
        console.print(_entry(specs[name], width))
    return 0


def _entry(spec: OpSpec, width: int | None) -> Text:
    """One node for people; in a pipe (no ``width``) each thing is one line, whole, for ``grep``."""
    entry = Text().append(spec.name, "bold").append(f"  {spec.source}\n", "dim")
    takes = [f"{port.name}: {port.type}{' (optional)' * port.optional}" for port in spec.inputs]
    takes += [_setting(param) for param in spec.params]
    gives = [f"{port.name}: {port.type}{' (a list)' * port.is_list}" for port in spec.outputs]
    lines = [("  ", spec.doc)] if spec.doc else []
    for heading, items in ("takes", takes), ("gives", gives):
        lines += [(f"  {heading if number == 0 else '':7}", item) for number, item in enumerate(items)]
    for begin, line in lines:
        hanging = " " * (len(begin) + 2)
        folded = textwrap.fill(begin + line, width, subsequent_indent=hanging) if width else begin + line
        entry.append(folded + "\n", "" if line is not spec.doc else "dim")
    return entry


def as_dict(spec: OpSpec) -> dict[str, Any]:
    """One node, as ``--json`` prints it."""
    data = dataclasses.asdict(spec)
    del data["known_ports"], data["known_params"]  # the same once more, by name
    data["answers"] = sorted(spec.answers)
    for declared, param in zip(spec.params, data["params"], strict=True):
        if declared.default is REQUIRED:
            del param["default"]
    return data


def _setting(param: Param) -> str:
    default = "" if param.default is REQUIRED else f" = {param.default!r}"
    return f"{param.name}{default} [{accepted(param)}]"
