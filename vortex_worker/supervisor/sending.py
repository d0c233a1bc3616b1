"""Whether what a workflow gives its nodes, and tells them of itself, can be sent to a worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from vortex_worker.errors import Problem
from vortex_worker.ipc import protocol
from vortex_worker.supervisor.hidden import hidden_of

if TYPE_CHECKING:
    from vortex_worker.executor.ports import OpSpec
    from vortex_worker.supervisor.files import Place
    from vortex_worker.supervisor.graph import Graph


_MOST_REPEATED = 1 << 20  # lists and objects, those that are there again counted again


def repetition_problems(graph: Graph) -> list[Problem]:
    """Values, and what comes with a workflow, in which the same few lists or objects would be written out endlessly."""
    named = [(key, name, value) for key, node in graph.nodes.items() for name, value in node.values.items()]
    text = "holds the same lists or objects too often to be written out"
    problems = [
        Problem(key, f"{name!r} {text}", "custom_validation_failed", name, class_type=graph.nodes[key].class_type)
        for key, name, value in named
        if _repeats(value)
    ]
    return problems + [Problem("", f"what comes with the workflow (extra_pnginfo) {text}")] * _repeats(graph.extra)


def _repeats(value: Any) -> bool:
    """Of a value that `Graph` has found to end."""
    level = {id(value): (value, 1)} if isinstance(value, Mapping | list | tuple) else {}  # and how often each is there
    while level:
        inner: dict[int, tuple[Any, int]] = {}
        for held, times in level.values():
            for item in held.values() if isinstance(held, Mapping) else held:
                if isinstance(item, Mapping | list | tuple):
                    inner[id(item)] = item, inner.get(id(item), (item, 0))[1] + times
        if sum(times for _, times in inner.values()) > max(_MOST_REPEATED, len(inner)):
            return True
        level = inner
    return False


def sending_problems(
    graph: Graph, specs: Mapping[str, OpSpec], keys: Iterable[str], place: Place, most: int
) -> list[Problem]:
    """Problems of ``keys``, nodes that ``check`` has passed and workers run; ``most`` is the bytes of a message."""
    problems = []
    shared = {"PROMPT": place.prompt, "EXTRA_PNGINFO": place.extra}  # as large as the workflow: measured once
    size_of_shared = cache(lambda kind, in_list: _size(shared[kind], in_list))
    for key in keys:
        node = graph.nodes[key]
        spec = specs[node.class_type]
        in_list = spec.input_is_list
        found = {name: _size(value, in_list) for name, value in node.values.items()}
        for name, value in hidden_of(graph, specs, node, place).items():
            kind = spec.hidden[name]
            found[name] = size_of_shared(kind, in_list) if kind in shared else _size(value, in_list)
        told = [
            (name, f"{name!r}{_kind(spec, name)} can't be sent to a worker: {why}")
            for name, why in found.items()
            if isinstance(why, str)
        ]
        sizes = {name: size for name, size in found.items() if isinstance(size, int)}
        if (total := sum(sizes.values())) > most:
            name = max(sizes, key=sizes.__getitem__)
            about = f"{sizes[name]} of them {name!r}{_kind(spec, name)}"
            told.append((name, f"its values have {total} bytes, {about}: a worker can be sent {most} at most"))
        for name, text in told:
            value = node.values.get(name)
            problems.append(Problem(key, text, "custom_validation_failed", name, value, node.class_type))
    return problems


def _kind(spec: OpSpec, name: str) -> str:
    """`` (PROMPT)`` of a hidden param."""
    return f" ({spec.hidden[name]})" if name in spec.hidden else ""


def _size(value: Any, in_list: bool) -> int | str:
    """Bytes that a value takes on its way, or why it can't be sent."""
    try:
        return len(protocol.pack([value] if in_list else value, _by_reference))
    except (TypeError, ValueError) as error:
        return str(error)


def _by_reference(value: Any) -> protocol.ObjectHandle:
    """What tensors and objects are sent as. Something else is refused when its job is made."""
    return protocol.ObjectHandle(1, "")
