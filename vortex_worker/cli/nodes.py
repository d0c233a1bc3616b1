"""``vortex-worker nodes``: what nodes there are, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vortex_worker.cli import EXIT_FAILED, EXIT_USAGE
from vortex_worker.errors import ConfigError, VortexError
from vortex_worker.executor.ports import REQUIRED, OpSpec, Param
from vortex_worker.executor.validation import accepted
from vortex_worker.supervisor.fabric import Fabric
from vortex_worker.supervisor.workflow import CLIENT_NODES


def nodes_command(
    custom_nodes: tuple[str, ...], models: tuple[str, ...], modules: tuple[str, ...], as_json: bool
) -> int:
    """List them; returns the exit status."""
    errors = Console(stderr=True)
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
    table = Table("node", "takes", "gives", "from", show_lines=True)
    for name in sorted(specs):
        spec = specs[name]
        takes = [escape(f"{port.name}: {port.type}{'?' * port.optional}") for port in spec.inputs]
        takes += [f"[dim]{escape(_setting(param))}[/]" for param in spec.params]
        gives = [escape(f"{port.name}: {port.type}") for port in spec.outputs]
        about = f"[bold]{escape(name)}[/]\n[dim]{escape(spec.doc)}[/]"
        table.add_row(about, "\n".join(takes), "\n".join(gives), escape(spec.source))
    Console().print(table)
    for plugin, message, _ in failures:
        errors.print(f"[yellow]{escape(plugin)} did not load:[/] {escape(message)}", highlight=False)
    return 0


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
    words = accepted(param)
    return f"{param.name}{default} [{words if len(words) < 60 else param.type}]"
