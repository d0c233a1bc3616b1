"""Whether a graph can run: everything that can be told before anything runs, all of it at once.

Unknown nodes, missing and unknown inputs, wrong types and ranges, dangling links, cycles; each under
ComfyUI's name for the kind of error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from vortex_worker.errors import Problem, WorkflowError, shown_id
from vortex_worker.executor.ports import REQUIRED, OpSpec, Param
from vortex_worker.executor.validation import a, few, near, param_problem
from vortex_worker.ipc.protocol import printable
from vortex_worker.supervisor.conversion import converted
from vortex_worker.supervisor.graph import Graph, Node, short

#: Names that one check compares with misspelt ones, at some microseconds each: in a large workflow that is all wrong,
#: the last problems come without a guess at what was meant.
_GUESSES = 100_000
_MOST_OF_A_CYCLE = 8  # nodes of cycles that are named: it may have a hundred thousand
_MOST_TOLD = 20  # nodes with inputs that nobody knows, which are named
_ELSEWHERE = " Folders of custom nodes are given by custom_nodes= or --custom-nodes"
#: Port types that a plain value may be given for, where no link is.
_PLAIN_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "*"}


def check(graph: Graph, specs: Mapping[str, OpSpec], only: Collection[str] | None = None) -> None:
    """``problems_of``, raised as a WorkflowError if there are any."""
    if problems := problems_of(graph, specs, only):
        raise WorkflowError(problems)


def problems_of(
    graph: Graph, specs: Mapping[str, OpSpec], only: Collection[str] | None = None, failed: Collection[str] = ()
) -> list[Problem]:
    """Every problem of a graph, by node id. Renames aliases to the ports' names, and converts plain values to the
    types that are declared, before anything looks at their bounds or signs them.

    Args:
        only: the nodes that are to run, if not all.
        failed: plugins that did not load, which an unknown node may be of.
    """
    problems: list[Problem] = []
    guess, hinted = _Guesses(), False
    for node in graph.nodes.values():
        if only is not None and node.id not in only:
            continue
        spec = specs.get(node.class_type)
        if spec is None:
            meant = guess(node.class_type, specs)
            text = f"there is no node {short(node.class_type)}{meant}"
            if not hinted:
                text, hinted = text + ("" if meant else ".") + _ELSEWHERE, True
                text += f". These did not load: {few(node.class_type, failed)}" if failed else ""
            problems.append(Problem(node.id, text, "missing_node_type", class_type=node.class_type))
        else:
            _rename_aliases(node, spec)
            _convert(node, spec)
            problems += _node_problems(graph, node, spec, specs, guess)
    stuck = [key for key in cycle(graph) if only is None or key in only]
    problems += [
        Problem(key, "is part of a cycle", "dependency_cycle", class_type=graph.nodes[key].class_type)
        for key in stuck[:_MOST_OF_A_CYCLE]
    ]
    if len(stuck) > _MOST_OF_A_CYCLE:
        problems.append(Problem("", f"{len(stuck)} nodes in all are part of a cycle", "dependency_cycle"))
    return problems


def drop_unknown(graph: Graph, specs: Mapping[str, OpSpec], settings: Iterable[str]) -> list[str]:
    """Take away inputs that their nodes don't have, as ComfyUI passes over what its editor's extensions write.

    Args:
        settings: ``NODE.INPUT`` of those that stay, to be refused: somebody has just typed them in.

    Returns:
        a sentence for each node that had some.
    """
    meant, guess, more = set(settings), _Guesses(), 0
    told: list[str] = []
    for node in graph.nodes.values():
        spec = specs.get(node.class_type)
        if spec is None:
            continue
        known = {**spec.known_ports, **spec.known_params}
        unknown = [
            name for name in [*node.values, *node.links] if name not in known and f"{node.id}.{name}" not in meant
        ]
        for name in unknown:
            node.values.pop(name, None)
            node.links.pop(name, None)
        if unknown and len(told) < _MOST_TOLD:
            names = ", ".join(short(name) + _bracketed(guess(name, known)) for name in unknown[:_MOST_TOLD])
            names += f" and {len(unknown) - _MOST_TOLD} more" * (len(unknown) > _MOST_TOLD)
            told.append(
                printable(f"node {shown_id(node.id)} ({node.class_type:.60}) has no input {names}: passed over")
            )
        elif unknown:
            more += 1
    return told + [f"{more} more nodes have inputs that are passed over"] * bool(more)


def _bracketed(hint: str) -> str:
    return f" ({hint.removeprefix('; ')})" if hint else ""


def _node_problems(
    graph: Graph, node: Node, spec: OpSpec, specs: Mapping[str, OpSpec], guess: _Guesses
) -> Iterable[Problem]:
    def problem(text: str, kind: str, name: str) -> Problem:
        return Problem(node.id, text, kind, said(name), node.values.get(name), node.class_type)

    def said(name: str) -> str:
        return node.written.get(name, name)

    ports = {port.name: port for port in spec.inputs}
    params = {param.name: param for param in spec.params}
    known = [*ports, *params]
    for name in [*node.values, *node.links]:
        if name not in ports and name not in params:
            yield problem(f"{spec.name} has no input {short(name)}{guess(name, known)}", "unknown_input", name)
    for name, port in ports.items():
        if name in node.values and _PLAIN_TYPES.isdisjoint(port.type.split(",")):
            text = f"{said(name)!r} takes a link to {a(port.type)}, not {short(node.values[name])}"
            yield problem(text, "bad_linked_input", name)
        elif name not in node.values and name not in node.links and not port.optional:
            either = " or ".join(map(repr, (name, *port.aliases)))
            yield problem(f"{either} is missing: it takes a link to {a(port.type)}", "required_input_missing", name)
    for name, param in params.items():
        if name in node.values:
            if found := param_problem(param, node.values[name]):
                yield problem(found, _kind(param, node.values[name]), name)
        elif name not in node.links and param.default is REQUIRED:
            yield problem(f"{name!r} is missing: it takes {param.type}", "required_input_missing", name)
    for name, (source, slot) in node.links.items():
        origin = graph.nodes.get(source)
        if origin is None:
            text = f"{short(said(name))} links to node {short(source)}, which is not there{guess(source, graph.nodes)}"
            yield problem(text, "bad_linked_input", name)
            continue
        given = specs.get(origin.class_type)
        if given is None:
            continue  # told of that node itself
        if slot >= len(given.outputs):
            text = (
                f"{short(said(name))} links to slot {slot} of node {shown_id(source)} ({origin.class_type}), "
                f"which has {len(given.outputs)} output{'s' * (len(given.outputs) != 1)}"
            )
            yield problem(text, "bad_linked_input", name)
        elif name in ports or name in params:
            wanted = (ports.get(name) or params[name]).type
            if not fits(given.outputs[slot].type, wanted):
                text = (
                    f"{short(said(name))} takes {wanted}, but slot {slot} of node {shown_id(source)} "
                    f"({origin.class_type}) gives {given.outputs[slot].type}"
                )
                yield problem(text, "return_type_mismatch", name)


class _Guesses:
    """``near``, as long as it has not been too much work."""

    def __init__(self) -> None:
        self._left = _GUESSES

    def __call__(self, name: str, known: Collection[str]) -> str:
        self._left -= len(known)
        return near(name, known) if self._left >= 0 else ""


def _kind(param: Param, value: Any) -> str:
    """ComfyUI's name for what is wrong with a param's value."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if param.type == "CHOICE":
        return "value_not_in_list"
    if number and param.minimum is not None and value < param.minimum:
        return "value_smaller_than_min"
    if number and param.maximum is not None and value > param.maximum:
        return "value_bigger_than_max"
    return "invalid_input_type"


def cycle(graph: Graph) -> list[str]:
    """Nodes that can never run, for they wait for one another; only those on a cycle or between two."""
    consumers = graph.consumers()
    waits = {key: len(node.sources & graph.nodes.keys()) for key, node in graph.nodes.items()}
    ready = deque(key for key, count in waits.items() if count == 0)
    while ready:
        for consumer in consumers[ready.popleft()]:
            waits[consumer] -= 1
            if waits[consumer] == 0:
                ready.append(consumer)
    stuck = {key for key, count in waits.items() if count > 0}
    # What merely lies behind a cycle is not part of it: peel off nodes that feed nothing stuck.
    feeds = {key: sum(consumer in stuck for consumer in consumers[key]) for key in stuck}
    loose = [key for key, count in feeds.items() if count == 0]
    while loose:
        key = loose.pop()
        stuck.remove(key)
        for source in graph.nodes[key].sources & stuck:
            feeds[source] -= 1
            if feeds[source] == 0:
                loose.append(source)
    return [key for key in graph.nodes if key in stuck]


def fits(given: str, wanted: str) -> bool:
    """Whether an output of type ``given`` may be linked to an input of type ``wanted``."""
    if given == wanted or "*" in (given, wanted) or wanted == "ANY":
        return True
    if "," in given or "," in wanted:  # one of several, as packs write it
        return any(fits(one, other) for one in given.split(",") for other in wanted.split(",") if one and other)
    return (given, wanted) in {("INT", "FLOAT"), ("STRING", "CHOICE"), ("IMAGE", "TENSOR"), ("MASK", "TENSOR")}


def _rename_aliases(node: Node, spec: OpSpec) -> None:
    for port in spec.inputs:
        for alias in port.aliases:
            for held in (node.values, node.links):
                if alias in held and port.name not in held:
                    held[port.name] = held.pop(alias)
                    node.written[port.name] = alias


def _convert(node: Node, spec: OpSpec) -> None:
    types = {port.name: port.type for port in spec.inputs} | {param.name: param.type for param in spec.params}
    for name, value in node.values.items():
        if name in types:
            node.values[name] = converted(types[name], value)
