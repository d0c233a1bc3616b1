"""Pictures larger than the format they are to be saved in has: told before anything runs, where plain values say so.

Else the node that saves them tells, when all that comes before it has run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vortex_worker.errors import Problem, shown_id
from vortex_worker.executor.ports import BUILTIN, OpSpec
from vortex_worker.supervisor.graph import Graph
from vortex_worker.supervisor.images import size_problem

_SAVES = {"SaveImage": "png", "SaveAnimatedWEBP": "webp"}  # and in which format, if nothing else is said
_GIVES = ("EmptyImage", "ImageScale", "SolidMask")  # what their width and height say
_KEEPS = {"ImageInvert": "image", "InvertMask": "mask", "MaskToImage": "mask"}  # the size of an input


def picture_problems(graph: Graph, specs: Mapping[str, OpSpec], keys: Iterable[str]) -> list[Problem]:
    """Problems of those of ``keys`` that save pictures; ``check`` has passed them."""
    problems = []
    for key in keys:
        node = graph.nodes[key]
        if node.class_type not in _SAVES or "format" in node.links:
            continue
        source = node.links["images"][0]
        size = _size(graph, specs, source)
        form = node.values.get("format", _SAVES[node.class_type])
        if size and (text := size_problem(size, form)):
            text = f"'images' come from node {shown_id(source)}: {text}"
            problems.append(Problem(key, text, "custom_validation_failed", "images", class_type=node.class_type))
    return problems


def _size(graph: Graph, specs: Mapping[str, OpSpec], key: str) -> tuple[int, int] | None:
    """Width and height in pixels of what a node gives. None: its plain values don't say."""
    for _ in graph.nodes:  # there may be a cycle
        node = graph.nodes.get(key)
        spec = specs.get(node.class_type) if node else None
        if node is None or spec is None or spec.source != BUILTIN:
            return None
        if node.class_type in _GIVES:
            given = {param.name: param.default for param in spec.params} | node.values
            sides = [given["width"], given["height"]]
            if {"width", "height"} & node.links.keys() or not all(isinstance(side, int) and side for side in sides):
                return None
            return sides[0], sides[1]
        through = node.links.get(_KEEPS.get(node.class_type, ""))
        if through is None:
            return None
        key = through[0]
    return None
