"""A workflow's graph, read from ComfyUI's API format. ``check`` says whether it can run.

::

    {"3": {"class_type": "KSampler", "inputs": {"seed": 7, "model": ["1", 0], …}}, …}

A value is plain data or a link, ``[node id, output slot]``.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vortex_worker.errors import Problem, WorkflowError
from vortex_worker.executor.ports import OpSpec
from vortex_worker.executor.validation import a, offer
from vortex_worker.supervisor import embedded
from vortex_worker.supervisor.files import read_regular
from vortex_worker.supervisor.plain import foreign

_MOST_PICTURE = 1 << 30  # bytes of a file
_MOST_JSON = 64 << 20  # bytes, of a hundred thousand nodes

_TEXT_NAME = re.compile(r"[\x20-\x7e\xa1-\xff]+")  # what a PNG may call its texts: Latin-1, of which some is shown
_DEEPEST = 100  # lists and objects in one another in a node's value


@dataclass(slots=True)
class Node:
    """One node: its plain values and its links, by the name its specification has for them."""

    id: str
    class_type: str
    values: dict[str, Any] = field(default_factory=dict)
    links: dict[str, tuple[str, int]] = field(default_factory=dict)
    #: By an input's name, the alias under which the workflow gives it.
    written: dict[str, str] = field(default_factory=dict)

    @property
    def sources(self) -> set[str]:
        """The nodes that it links to."""
        return {source for source, _ in self.links.values()}


class Graph:
    """Nodes by id."""

    def __init__(self, nodes: dict[str, Node], extra: Mapping[str, Any] | None = None) -> None:
        self.nodes = nodes
        #: What goes into pictures beside it: ComfyUI's ``extra_pnginfo``.
        self.extra = dict(extra or {})

    @classmethod
    def read(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> Graph:
        """Read a file, or an already parsed workflow: a PNG with one inside, or JSON.

        Raises:
            WorkflowError: it can't be read or has another form; problems by node id.
        """
        extra: Any = {}
        if not isinstance(source, Mapping):
            source, extra = _from_file(os.fspath(source))
        if isinstance(source, Mapping) and _is_request(source):
            told = source.get("extra_data")
            found = told.get("extra_pnginfo") if isinstance(told, Mapping) else None
            extra = {} if found is None else found
            source = source["prompt"]
        if not isinstance(source, Mapping):
            raise WorkflowError([("", f"a workflow is a JSON object of nodes by id, not {_kind(source)}")])
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
                problems.append((str(key), f"inputs is {_kind(inputs)}: it must be an object"))
                continue
            if str(key) in nodes:
                problems.append((str(key), "is there twice, by the number and by the string"))
                continue
            node = nodes[str(key)] = Node(str(key), raw["class_type"])
            for name, value in inputs.items():
                if _is_deep(value):
                    problems.append((str(key), f"{short(name)} is nested too deeply, or holds itself"))
                elif told := foreign(value, short(name), objects=True):
                    problems.append((str(key), told))
                elif is_link(value):
                    node.links[name] = (value[0], value[1])
                else:
                    node.values[name] = value
        if told := _problem_of(extra):
            problems.append(("", f"what comes with the workflow (extra_pnginfo) {told}"))
        if not problems and not nodes:
            problems.append(("", "the workflow has no nodes"))
        if problems:
            raise WorkflowError(problems)
        return cls(nodes, extra)

    def set_values(self, settings: Mapping[str, Any], said: str = 'settings["{}"]') -> None:
        """Override values: ``{"3.seed": 7}``; ``said`` is how whoever set one wrote its name.

        Raises:
            WorkflowError: no such node.
        """
        problems = []
        for target, value in settings.items():
            node_id, dot, name = target.partition(".")
            if not dot or not name:
                problems.append(("", f"{said.format(target)}: it takes NODE.INPUT"))
            elif node_id not in self.nodes:
                problems.append(
                    ("", f"{said.format(target)}: there is no node {short(node_id)}: {offer(node_id, self.nodes)}")
                )
            elif _is_deep(value):
                problems.append((node_id, f"{said.format(target)} is nested too deeply, or holds itself"))
            else:
                self.nodes[node_id].links.pop(name, None)
                self.nodes[node_id].values[name] = value
        if problems:
            raise WorkflowError(problems)

    def target_nodes(self, specs: Mapping[str, OpSpec], chosen: Iterable[str] | None = None) -> list[str]:
        """What a run is for: ``chosen``, else output nodes, else nodes that nothing is linked to.

        Raises:
            WorkflowError: a chosen one isn't there.
        """
        if chosen is not None:
            wanted = list(dict.fromkeys(map(str, chosen)))
            missing = [
                Problem("", f"there is no node {short(key)}: {offer(key, self.nodes)}")
                for key in wanted
                if key not in self.nodes
            ]
            if not wanted:
                missing = [Problem("", "no node was chosen to run", "prompt_no_outputs")]
            if missing:
                raise WorkflowError(missing)
            return wanted
        consumers = self.consumers()
        outputs = [key for key, node in self.nodes.items() if (s := specs.get(node.class_type)) and s.output_node]
        return outputs or [key for key in self.nodes if not consumers[key]]

    def in_order(self, wanted: Iterable[str]) -> list[str]:
        """``wanted``, each after the nodes it is linked to. They hold all of these, and there is no cycle."""
        keys = list(wanted)
        waits = {key: self.nodes[key].sources for key in keys}
        consumers = self.consumers()
        ready = deque(key for key in keys if not waits[key])
        ordered = []
        while ready:
            key = ready.popleft()
            ordered.append(key)
            for consumer in consumers[key] & waits.keys():
                waits[consumer].discard(key)
                if not waits[consumer]:
                    ready.append(consumer)
        return ordered

    def as_prompt(self) -> dict[str, Any]:
        """ComfyUI's API format, with the values that were set."""
        return {
            key: {
                "inputs": node.values | {n: list(link) for n, link in node.links.items()},
                "class_type": node.class_type,
            }
            for key, node in self.nodes.items()
        }

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
            if key not in needed and key in self.nodes:
                needed.add(key)
                todo += self.nodes[key].sources
        return [key for key in self.nodes if key in needed]


def _from_file(path: str) -> tuple[Any, dict[str, Any]]:
    """A file's workflow, and what a picture has beside it."""
    try:
        data = read_regular(path, _MOST_PICTURE)
    except OSError as error:
        raise WorkflowError([("", f"{path}: {error.strerror}")]) from None
    except ValueError as error:
        raise WorkflowError([("", f"{path} can't be read: {error}")]) from None
    if not data.startswith(embedded.SIGNATURE):
        return _parsed(data, path), {}
    try:
        texts = embedded.texts(data, {"prompt", "workflow"})
    except ValueError as error:
        raise WorkflowError([("", f"{path}: {error}")]) from None
    if "prompt" not in texts:
        raise WorkflowError([("", f"{path} is a picture without a workflow: ComfyUI puts one into its text 'prompt'")])
    extra = {"workflow": _parsed(texts["workflow"], f"{path}, its text 'workflow',")} if "workflow" in texts else {}
    return _parsed(texts["prompt"], f"{path}, its text 'prompt',"), extra


def _parsed(text: str | bytes, path: str) -> Any:
    if len(text) > _MOST_JSON:
        raise WorkflowError([("", f"{path} has {len(text)} bytes of JSON: at most {_MOST_JSON} are read")])
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_whole)
    except RecursionError:
        raise WorkflowError([("", f"{path} is not JSON that can be read: it is nested too deeply")]) from None
    except _Refused as error:
        raise WorkflowError([("", f"{path} {error}")]) from None
    except ValueError as error:
        raise WorkflowError([("", f"{path} is not JSON: {error}")]) from None


class _Refused(Exception):
    """What Python's reader of JSON lets pass, or has no words for."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's content. Of a key that is there twice one value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _Refused(f"has the key {short(twice)} twice in one object")
    return found


def _whole(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # more than Python reads
        raise _Refused(f"has a number of {len(digits.lstrip('-'))} digits") from None


def _kind(value: Any) -> str:
    return "null" if value is None else a(type(value).__name__)


def _problem_of(extra: Any) -> str:
    """Why what comes with a workflow can't be put into files beside it, or ""."""
    if not isinstance(extra, Mapping):
        return f"is {_kind(extra)}: it must be an object"
    if _is_deep(extra):
        return "is nested too deeply, or holds itself"
    for name in extra:
        if not isinstance(name, str) or not _TEXT_NAME.fullmatch(name):
            return f"has {_named(name)} by name: a picture takes names of Latin letters, digits and signs"
    told = foreign(extra, "extra_pnginfo")
    return f"can't be kept with it: {told}" if told else ""


def _named(name: Any) -> str:
    return short(name) if isinstance(name, str) else a(type(name).__name__)


def _is_deep(value: Any) -> bool:
    """Whether plain data is nested deeper than anybody may read it, or endlessly, in itself."""
    level = [value] if isinstance(value, Mapping | list | tuple) else []
    for _ in range(_DEEPEST):
        inner = (item for held in level for item in (held.values() if isinstance(held, Mapping) else held))
        level = list({id(item): item for item in inner if isinstance(item, Mapping | list | tuple)}.values())
        if not level:
            return False
    return True


def _is_request(source: Mapping[str, Any]) -> bool:
    """Whether it is what ComfyUI's ``/prompt`` is sent: ``{"prompt": {…}, "extra_data": {…}}``."""
    return isinstance(source.get("prompt"), Mapping) and "class_type" not in source["prompt"]


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


def short(value: Any) -> str:
    """A value as it may stand in a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
