"""What a node's outputs depend on, as 32 bytes: two runs of one signature give the same.

Of each node: its type, its plain values, the contents of files it reads, what it answers when asked
whether it has changed, and the signatures of the nodes that it is linked to.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from typing import Any

from vortex_worker.supervisor.graph import Graph


class Unsigned(Exception):
    """A value that nothing can be told of for next time."""


def signatures(graph: Graph, own: Mapping[str, Any]) -> dict[str, bytes]:
    """The signature of each node of ``own``, which says what beside its links the node depends on.

    ``graph`` has been checked. What can't be signed (NaN, a tensor) makes it, and all that depends on it,
    different from every other.
    """
    signed: dict[str, bytes] = {}
    for key in graph.in_order(own):
        node = graph.nodes[key]
        links = {name: [signed[source], slot] for name, (source, slot) in node.links.items()}
        signed[key] = _digest([node.class_type, own[key], links])
    return signed


def _digest(value: Any) -> bytes:
    digest = hashlib.sha256()
    try:
        _feed(digest, value, 0)
    except Unsigned:
        return os.urandom(32)
    return digest.digest()


def _feed(digest: Any, value: Any, depth: int) -> None:
    """Add a value, with its type and length, so that no two values are the same bytes."""
    if depth > 64:
        raise Unsigned
    if isinstance(value, Mapping):
        digest.update(b"{%d" % len(value))
        for key in sorted(value, key=str):
            _feed(digest, str(key), depth + 1)
            _feed(digest, value[key], depth + 1)
        return
    if isinstance(value, list | tuple):
        digest.update(b"[%d" % len(value))
        for item in value:
            _feed(digest, item, depth + 1)
        return
    if isinstance(value, float) and math.isnan(value):
        raise Unsigned
    if isinstance(value, bytes):
        data = value
    elif value is None or isinstance(value, bool | int | float | str):
        data = repr(value).encode("utf-8", "backslashreplace")
    else:
        raise Unsigned
    digest.update(b"%s%d:" % (type(value).__name__.encode(), len(data)))
    digest.update(data)
