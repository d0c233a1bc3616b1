r"""ComfyUI's prompt syntax: ``(word)`` weighs 1.1 times as much, ``(word:1.2)`` weighs 1.2, ``\(`` is a parenthesis.

Plain Python: no tensors, no tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vortex_worker.errors import ValidationError

MAX_LENGTH = 20_000  # characters of a prompt
MAX_WEIGHT = 1e6  # beyond it, what a text encoder gives has no room left for anything else
_LONG = 8  # tokens: a word of as many is broken where a chunk ends
_OPEN, _CLOSE = "\0\1", "\0\2"  # stand for escaped parentheses while others are matched

Token = tuple[Any, float]  # a number of the vocabulary, or a row that stands for one; and its weight


def weighted(text: str) -> list[tuple[str, float]]:
    """Pieces of a prompt with their weights, in order. Parentheses that don't match are text.

    Raises:
        ValidationError: a weight is beyond ``MAX_WEIGHT``.
    """
    text = text.replace("\\(", _OPEN).replace("\\)", _CLOSE)
    pieces = []
    todo = [(text, 1.0, False)]
    while todo:
        text, weight, is_plain = todo.pop()
        if is_plain:
            if abs(weight) > MAX_WEIGHT:
                piece = text.replace(_OPEN, "(").replace(_CLOSE, ")")
                raise ValidationError(
                    f"the prompt gives {piece[:40]!r} a weight of {weight:g}: it takes up to {MAX_WEIGHT:g}"
                )
            pieces.append((text.replace(_OPEN, "(").replace(_CLOSE, ")"), weight))
            continue
        for part in reversed(list(_split(text))):
            if len(part) >= 2 and part[0] == "(" and part[-1] == ")":
                todo.append((*_weight(part[1:-1], weight * 1.1), False))
            else:
                todo.append((part, weight, True))
    return pieces


def _split(text: str) -> Iterator[str]:
    """Cut at the outermost parentheses, which stay with what they hold."""
    depth, begun = 0, 0
    for place, character in enumerate(text):
        if character == "(":
            if depth == 0 and place > begun:
                yield text[begun:place]
                begun = place
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                yield text[begun : place + 1]
                begun = place + 1
    if begun < len(text):
        yield text[begun:]


def _weight(text: str, otherwise: float) -> tuple[str, float]:
    head, colon, tail = text.rpartition(":")
    if colon and head:
        try:
            weight = float(tail)
        except ValueError:
            return text, otherwise
        if math.isfinite(weight):
            return head, weight
    return text, otherwise


def chunks(
    text: str, encode: Callable[[str], Sequence[Any]], *, start: int, end: int, pad: int, length: int = 77
) -> list[list[Token]]:
    """A prompt as rows of ``length`` tokens with their weights: start, words, end, padding.

    A word that doesn't fit a row begins the next, unless it is long.

    Args:
        encode: the tokens of one word.
    """
    rows: list[list[Token]] = [[(start, 1.0)]]
    room = length - 2
    for piece, weight in weighted(text):
        for word in piece.split():
            tokens = [(token, weight) for token in encode(word)]
            is_long = len(tokens) >= _LONG
            while tokens:
                free = room - (len(rows[-1]) - 1)
                if len(tokens) > free and not (is_long and free):
                    rows.append([(start, 1.0)])
                    continue
                rows[-1] += tokens[:free]
                tokens = tokens[free:]
    for row in rows:
        row.append((end, 1.0))
        row += [(pad, 1.0)] * (length - len(row))
    return rows
