"""What can be wrong with a sound graph before anything runs: files that aren't there, folders that can't be written
to, and what nodes say of their params when they are asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vortex_worker.errors import JobError, Problem, ValidationError, shown_id
from vortex_worker.executor.ports import PRECHECK_TYPES
from vortex_worker.executor.validation import one_line
from vortex_worker.supervisor.hidden import linked_types

if TYPE_CHECKING:
    from vortex_worker.executor.ports import OpSpec
    from vortex_worker.supervisor.deadline import Deadline
    from vortex_worker.supervisor.fabric import Fabric
    from vortex_worker.supervisor.files import ClientNode, Place
    from vortex_worker.supervisor.graph import Graph, Node

Params = dict[str, dict[str, Any]]  # plain ones by node id, as the worker's half of each node takes them

#: What a workflow does while it asks a question, for one whose time runs out then.
_DOING = {
    "CHANGED": "node {node} ({class_type}) was asked whether it has changed (IS_CHANGED)",
    "PRECHECK": "node {node} ({class_type}) was asked whether its inputs are right (VALIDATE_INPUTS)",
}
_MOST_TEXTS = 20  # that a pack's node says of what is wrong with it


def prepare(
    fabric: Fabric,
    graph: Graph,
    specs: Mapping[str, OpSpec],
    clients: Mapping[str, ClientNode],
    place: Place,
    keys: Iterable[str],
    until: Deadline,
) -> tuple[Params, list[Problem]]:
    """Read files, look at folders, and ask nodes what is wrong, for those of ``keys``, which ``check`` has passed.

    Raises:
        DeadlineExceeded: not done until then.
    """
    params: Params = {}
    problems: list[Problem] = []
    for key in keys:
        node = graph.nodes[key]
        client = clients.get(node.class_type)
        if client is None or is_told_late(node, client):
            params[key] = dict(node.values)
            continue
        try:
            params[key] = client.prepare(with_defaults(node, specs[node.class_type]), place)
        except ValidationError as error:
            kind = error.details.get("type", "custom_validation_failed")
            value = node.values.get(client.names)
            problems.append(Problem(key, error.message, kind, client.names, value, node.class_type))
    for key, answer in ask(fabric, graph, specs, "PRECHECK", params, until).items():
        problems += _told(graph.nodes[key], answer)
    return params, problems


def ask(
    fabric: Fabric, graph: Graph, specs: Mapping[str, OpSpec], question: str, params: Params, until: Deadline
) -> dict[str, Any | JobError]:
    """The answers of those nodes that have one; of a node that failed to give it, its error.

    Raises:
        DeadlineExceeded: not all were given until then.
    """
    asked = {}
    for key, values in params.items():
        node = graph.nodes[key]
        if question in specs[node.class_type].answers:
            linked: dict[str, Any] = dict.fromkeys(node.links) if question == "CHANGED" else {}
            if question == "PRECHECK":
                linked = linked_types(graph, specs, node, specs[node.class_type].hidden)
            doing = _DOING[question].format(node=shown_id(key), class_type=node.class_type)
            job = until.submitted(fabric.ask, node.class_type, question, params=linked | values, doing=doing)
            asked[key] = job, doing
    answers: dict[str, Any | JobError] = {}
    for key, (job, doing) in asked.items():
        try:
            answers[key] = job.result().get("answer")  # a liar's result may lack it
        except JobError as error:
            until.left(doing)
            answers[key] = error
    return answers


def with_defaults(node: Node, spec: OpSpec) -> dict[str, Any]:
    """A client node's params: nobody else fills in what the workflow doesn't say."""
    given = {param.name: param.default for param in spec.params}
    return given | {name: value for name, value in node.values.items() if name in given}


def is_told_late(node: Node, client: ClientNode | None) -> bool:
    """Whether a client node reads a file whose name another node gives."""
    return client is not None and client.finish is None and bool(node.links)


def _told(node: Node, answer: Any) -> Iterator[Problem]:
    """What a node said is wrong with it; it may have said anything."""
    if isinstance(answer, JobError):
        answer = [str(answer)]
    for item in answer[:_MOST_TEXTS] if isinstance(answer, list) else [answer]:
        told = item if isinstance(item, Mapping) else {"text": item}
        name = told.get("input")
        name = name if isinstance(name, str) and name in node.values else ""
        kind = told.get("type")
        kind = kind if kind in PRECHECK_TYPES else "custom_validation_failed"
        yield Problem(node.id, one_line(str(told.get("text"))), kind, name, node.values.get(name), node.class_type)
