"""A workflow's graph: read from ComfyUI's API format, and checked whole before anything runs.

::

    {"3": {"class_type": "KSampler", "inputs": {"seed": 7, "model": ["1", 0], …}}, …}

A value is plain data or a link, ``[node id, output slot]``. All problems are found at once: unknown
nodes, missing and unknown inputs, wrong types and ranges, dangling links, cycles.
"""

from __future__ import annotations

import difflib
import json
import os
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vortex_worker.errors import WorkflowError
from vortex_worker.executor.ports import REQUIRED, OpSpec
from vortex_worker.executor.validation import param_problem

#: Names that one check compares with misspelt ones, at some microseconds each: in a large workflow that is all wrong,
#: the last problems come without a guess at what was meant.
_GUESSES = 100_000
#: Port types that a plain value may be given for, where no link is.
_PLAIN_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "*"}


@dataclass(slots=True)
class Node:
    """One node: its plain values and its links, by the name its specification has for them."""

    id: str
    class_type: str
    values: dict[str, Any] = field(default_factory=dict)
    links: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def sources(self) -> set[str]:
        """The nodes that it links to."""
        return {source for source, _ in self.links.values()}


class Graph:
    """Nodes by id."""

    def __init__(self, nodes: dict[str, Node]) -> None:
        self.nodes = nodes

    @classmethod
    def read(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> Graph:
        """Read a file or an already parsed workflow.

        Raises:
            WorkflowError: it can't be read or has another form; problems by node id.
        """
        if not isinstance(source, Mapping):
            try:
                source = json.loads(Path(source).read_text("utf-8"))
            except OSError as error:
                raise WorkflowError([("", f"{os.fspath(source)}: {error.strerror}")]) from None  # type: ignore[arg-type]
            except (ValueError, RecursionError) as error:
                raise WorkflowError([("", f"{source} is not JSON: {error}")]) from None
        if not isinstance(source, Mapping):
            raise WorkflowError([("", f"a workflow is a JSON object of nodes by id, not a {type(source).__name__}")])
        if isinstance(source.get("nodes"), list):
            raise WorkflowError(
                [("", "this is the format that ComfyUI's editor saves; export it for the API (Export (API))")]
            )
        problems: list[tuple[str, str]] = []
        nodes = {}
        for key, raw in source.items():
            if not isinstance(raw, Mapping) or not isinstance(raw.get("class_type"), str):
                problems.append((str(key), 'a node is {"class_type": name, "inputs": {…}}'))
                continue
            inputs = raw.get("inputs", {})
            if not isinstance(inputs, Mapping):
                problems.append((str(key), f"inputs is a {type(inputs).__name__}: it must be an object"))
                continue
            node = nodes[str(key)] = Node(str(key), raw["class_type"])
            for name, value in inputs.items():
                if is_link(value):
                    node.links[name] = (value[0], value[1])
                else:
                    node.values[name] = value
        if not problems and not nodes:
            problems.append(("", "the workflow has no nodes"))
        if problems:
            raise WorkflowError(problems)
        return cls(nodes)

    def set_values(self, settings: Mapping[str, Any]) -> None:
        """Override values: ``{"3.seed": 7}``.

        Raises:
            WorkflowError: no such node.
        """
        problems = []
        for target, value in settings.items():
            node_id, dot, name = target.partition(".")
            if not dot or not name:
                problems.append(("", f"--set {target}: it takes NODE.INPUT=VALUE"))
            elif node_id not in self.nodes:
                problems.append(("", f"--set {target}: there is no node {node_id!r}{near(node_id, self.nodes)}"))
            else:
                self.nodes[node_id].links.pop(name, None)
                self.nodes[node_id].values[name] = value
        if problems:
            raise WorkflowError(problems)

    def check(self, specs: Mapping[str, OpSpec]) -> None:
        """Check everything that can be known before running, and rename aliases to the ports' names.

        Raises:
            WorkflowError: every problem, by node id.
        """
        problems: list[tuple[str, str]] = []
        guess = _Guesses()
        for node in self.nodes.values():
            spec = specs.get(node.class_type)
            if spec is None:
                text = f"there is no node {node.class_type!r}{guess(node.class_type, specs)}"
                problems.append((node.id, text))
            else:
                _rename_aliases(node, spec)
                problems += [(node.id, text) for text in self._node_problems(node, spec, specs, guess)]
        problems += [(node, "is part of a cycle") for node in self._cycle()]
        if problems:
            raise WorkflowError(problems)

    def _node_problems(self, node: Node, spec: OpSpec, specs: Mapping[str, OpSpec], guess: _Guesses) -> Iterable[str]:
        ports = {port.name: port for port in spec.inputs}
        params = {param.name: param for param in spec.params}
        known = [*ports, *params]
        for name in [*node.values, *node.links]:
            if name not in ports and name not in params:
                yield f"{spec.name} has no input {name!r}{guess(name, known)}"
        for name, port in ports.items():
            if name in node.values and port.type not in _PLAIN_TYPES:
                yield f"{name!r} takes a link to a {port.type}, not {short(node.values[name])}"
            elif name not in node.values and name not in node.links and not port.optional:
                yield f"{name!r} is missing: it takes a link to a {port.type}"
        for name, param in params.items():
            if name in node.values:
                if problem := param_problem(param, node.values[name]):
                    yield problem
            elif name not in node.links and param.default is REQUIRED:
                yield f"{name!r} is missing: it takes {param.type}"
        for name, (source, slot) in node.links.items():
            origin = self.nodes.get(source)
            if origin is None:
                yield f"{name!r} links to node {source!r}, which is not there{guess(source, self.nodes)}"
                continue
            given = specs.get(origin.class_type)
            if given is None:
                continue  # told of that node itself
            if slot >= len(given.outputs):
                yield (
                    f"{name!r} links to slot {slot} of node {source} ({origin.class_type}), "
                    f"which has {len(given.outputs)} outputs"
                )
            elif name in ports or name in params:
                wanted = (ports.get(name) or params[name]).type
                if not fits(given.outputs[slot].type, wanted):
                    yield (
                        f"{name!r} takes {wanted}, but slot {slot} of node {source} "
                        f"({origin.class_type}) gives {given.outputs[slot].type}"
                    )

    def consumers(self) -> dict[str, set[str]]:
        """The nodes that link to each node."""
        consumers: dict[str, set[str]] = {key: set() for key in self.nodes}
        for node in self.nodes.values():
            for source in node.sources & consumers.keys():
                consumers[source].add(node.id)
        return consumers

    def needed_for(self, targets: Iterable[str]) -> list[str]:
        """``targets`` and everything they depend on, in the workflow's order."""
        needed: set[str] = set()
        todo = list(targets)
        while todo:
            key = todo.pop()
            if key not in needed:
                needed.add(key)
                todo += self.nodes[key].sources
        return [key for key in self.nodes if key in needed]

    def _cycle(self) -> list[str]:
        """Nodes that can never run, for they wait for one another; only those on a cycle or between two."""
        consumers = self.consumers()
        waits = {key: len(node.sources & self.nodes.keys()) for key, node in self.nodes.items()}
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
            for source in self.nodes[key].sources & stuck:
                feeds[source] -= 1
                if feeds[source] == 0:
                    loose.append(source)
        return [key for key in self.nodes if key in stuck]


def is_link(value: Any) -> bool:
    """Whether a JSON value is ``[node id, slot]``."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and not isinstance(value[1], bool)
        and value[1] >= 0
    )


def fits(given: str, wanted: str) -> bool:
    """Whether an output of type ``given`` may be linked to an input of type ``wanted``."""
    if given == wanted or "*" in (given, wanted) or wanted == "ANY":
        return True
    return (given, wanted) in {("INT", "FLOAT"), ("STRING", "CHOICE"), ("IMAGE", "TENSOR"), ("MASK", "TENSOR")}


class _Guesses:
    """``near``, as long as it has not been too much work."""

    def __init__(self) -> None:
        self._left = _GUESSES

    def __call__(self, name: str, known: Collection[str]) -> str:
        self._left -= len(known)
        return near(name, known) if self._left >= 0 else ""


def near(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'KSampler'?`` or nothing."""
    found = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def short(value: Any) -> str:
    """A value as it may stand in a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _rename_aliases(node: Node, spec: OpSpec) -> None:
    for port in spec.inputs:
        for alias in port.aliases:
            for held in (node.values, node.links):
                if alias in held and port.name not in held:
                    held[port.name] = held.pop(alias)
