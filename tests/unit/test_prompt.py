"""ComfyUI's prompt syntax: weights, escapes, and rows of 77 tokens."""

from __future__ import annotations

import re

import pytest

from vortex_worker.errors import ValidationError
from vortex_worker.executor.diffusion.prompt import chunks, weighted


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (red) cat", [("a ", 1.0), ("red", 1.1), (" cat", 1.0)]),
        ("(red:1.3)", [("red", 1.3)]),
        ("((red))", [("red", 1.1 * 1.1)]),
        ("(a (b:1.5) c:0.5)", [("a ", 0.5), ("b", 1.5), (" c", 0.5)]),
        ("(a (b) c:0.5)", [("a ", 0.5), ("b", 0.5 * 1.1), (" c", 0.5)]),
        (r"\(plain\) (\(kept\):2)", [("(plain) ", 1.0), ("(kept)", 2.0)]),
        ("(red:-1)", [("red", -1.0)]),
        ("(red:much)", [("red:much", 1.1)]),
        ("(red:nan)", [("red:nan", 1.1)]),
        ("(red:inf)", [("red:inf", 1.1)]),
        ("(:2)", [(":2", 1.1)]),
        ("(unclosed", [("(unclosed", 1.0)]),
        ("closed) (b)", [("closed) (b)", 1.0)]),
        ("()", []),
        ("", []),
    ],
)
def test_weights(text: str, pieces: list[tuple[str, float]]) -> None:
    found = weighted(text)
    assert [piece for piece, _ in found] == [piece for piece, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces])


def test_deep_nesting_is_no_recursion() -> None:
    ((piece, weight),) = weighted("(" * 2000 + "a" + ":1.5)" + ")" * 1999)
    assert (piece, weight) == ("a", 1.5)


def rows(text: str, length: int = 12) -> list[str]:
    """Each word is as many tokens as it has letters; "<", ">" and "." are start, end and padding."""
    found = chunks(text, lambda word: [ord(letter) for letter in word], start=60, end=62, pad=46, length=length)
    return ["".join(chr(token) for token, _ in row) for row in found]


def test_rows() -> None:
    assert rows("") == ["<>.........."]
    assert rows("ab cd") == ["<abcd>......"]
    assert rows("abcdefg hij") == ["<abcdefghij>"]
    assert rows("abcdefg hijk") == ["<abcdefg>...", "<hijk>......"]  # a word that doesn't fit begins the next row
    assert rows("abc defghijkl") == ["<abcdefghij>", "<kl>........"]  # a long one, of 8 tokens or more, is broken
    assert rows("abcdefghij klmnopqrstuvw") == ["<abcdefghij>", "<klmnopqrst>", "<uvw>......."]
    assert rows("a\nb\t c") == ["<abc>......."]


def test_weights_stay_with_their_tokens() -> None:
    (row,) = chunks("a (bc:1.5)", lambda word: list(word.encode()), start=0, end=1, pad=2, length=6)
    assert row == [(0, 1.0), (97, 1.0), (98, 1.5), (99, 1.5), (1, 1.0), (2, 1.0)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(" * 9999 + "cat" + ")" * 9999, "'cat' a weight of inf"),
        ("((cat:9e307):9e307)", "'cat' a weight of 9e+307"),
        ("a (cat:-1e7)", "'cat' a weight of -1e+07"),
    ],
)
def test_a_weight_beyond_all_bounds_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        weighted(text)
