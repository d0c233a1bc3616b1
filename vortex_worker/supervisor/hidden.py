"""Hidden inputs: what a workflow tells a node of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vortex_worker.executor.ports import OpSpec
    from vortex_worker.supervisor.files import Place
    from vortex_worker.supervisor.graph import Graph, Node


def hidden_of(graph: Graph, specs: Mapping[str, OpSpec], node: Node, place: Place) -> dict[str, Any]:
    """A node's hidden params, those of them that are known."""
    known = {"UNIQUE_ID": node.id, "PROMPT": place.prompt, "EXTRA_PNGINFO": place.extra}
    hidden = specs[node.class_type].hidden
    types = linked_types(graph, specs, node, hidden)
    return {name: known[kind] for name, kind in hidden.items() if kind in known} | types


def linked_types(
    graph: Graph, specs: Mapping[str, OpSpec], node: Node, hidden: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """What hidden params for ``INPUT_TYPES`` get: the type of what each input is linked to, by input."""
    wanted = [name for name, kind in hidden.items() if kind == "INPUT_TYPES"]
    if not wanted:
        return {}
    types = {
        name: specs[graph.nodes[source].class_type].outputs[slot].type for name, (source, slot) in node.links.items()
    }
    return dict.fromkeys(wanted, types)
