"""What plain values give away before anything runs, beyond the bounds that each has for itself: texts that can't be
sent or are too long, steps that no schedule has, sizes that no worker has memory for.

Nodes say the same of themselves once they run. By then a checkpoint may have been loaded for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from vortex_worker.errors import Problem
from vortex_worker.executor.ports import BUILTIN, OpSpec
from vortex_worker.supervisor.graph import Graph, Node

# What the nodes' own modules say, which come with torch; a test compares.
MAX_LENGTH = 20_000  # characters of a prompt
MAX_STEPS = 1_000_000  # of a whole schedule, of which ``denoise`` has the last run

_LARGER = "--lease-size or Fabric's lease_size= gives them more"
_PROMPTS = {"CLIPTextEncode": ("text",), "CLIPTextEncodeSDXL": ("text_g", "text_l")}
#: By node, pixels along a side of one place of its tensor, and bytes of a place: 4 for each channel.
_PLACES = {"EmptyLatentImage": (8, 4 * 4), "EmptySD3LatentImage": (8, 4 * 16), "EmptyImage": (1, 4 * 3)}
_SIZES = ("width", "height", "batch_size", "amount", "scale_by")  # params by which outputs grow


def literal_problems(graph: Graph, specs: Mapping[str, OpSpec], keys: Iterable[str], room: int) -> list[Problem]:
    """Problems of ``keys``, nodes that ``check`` has passed; ``room`` is the bytes for one worker's outputs."""
    problems = []
    for key in keys:
        node = graph.nodes[key]
        spec = specs[node.class_type]
        for name, text in _problems(node, spec, room):
            problems.append(Problem(key, text, "custom_validation_failed", name, node.values.get(name), spec.name))
    return problems


def _problems(node: Node, spec: OpSpec, room: int) -> Iterator[tuple[str, str]]:
    """A param's name and a sentence for each problem."""
    for name, value in node.values.items():
        if isinstance(value, str) and (place := _half_character(value)) is not None:
            code = f"U+{ord(value[place]):04X}"
            yield name, f"{name!r} has half a character, {code}, at {place}: it takes text that UTF-8 can write"
    if spec.source != BUILTIN:
        return
    for name in _PROMPTS.get(spec.name, ()):
        length = len(node.values.get(name, ""))
        if length > MAX_LENGTH:
            yield name, f"{name!r} has {length} characters: it takes {MAX_LENGTH}"
    values = {param.name: param.default for param in spec.params} | node.values
    if spec.name == "KSampler" and not {"steps", "denoise"} & node.links.keys():
        steps, denoise = values["steps"], values["denoise"]
        if 0 < denoise * MAX_STEPS < steps:
            least = steps / MAX_STEPS
            yield "denoise", f"'denoise' is {denoise:g}: with {steps} steps it takes 0, or at least {least:g}"
    if spec.name in _PLACES and not {"width", "height", "batch_size"} & node.links.keys():
        side, each = _PLACES[spec.name]
        width, height, count = values["width"], values["height"], values["batch_size"]
        wanted = count * (height // side) * (width // side) * each
        if wanted > room:
            text = f"'width' {width}, 'height' {height} and 'batch_size' {count} take {wanted} bytes"
            yield "width", f"{text}: a worker's outputs have {room} bytes, and {_LARGER}"


def sizes_of(node: Node) -> str:
    """The end of an error of a node that had no room: in what it may have been asked too much, and how it gets more."""
    given = ", ".join(f"{name!r} is {node.values[name]!r:.20}" for name in _SIZES if name in node.values)
    return f"; {given}" * bool(given) + f"; the bytes are for a worker's outputs, and {_LARGER}"


def _half_character(text: str) -> int | None:
    """Where half of a surrogate pair stands, which JSON and Python can hold and UTF-8 can't."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None
