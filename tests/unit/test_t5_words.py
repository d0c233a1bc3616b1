"""T5's tokens of words: the vocabulary that comes with the package is T5's."""

from __future__ import annotations

import pytest

pytest.importorskip("tokenizers")
from vortex_worker.executor.diffusion.tokenizer import T5_VOCABULARY, t5_words


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        # the sentences of transformers' own examples for T5, without the end token
        ("translate English to German: The house is wonderful.", [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5]),
        ("~", [3, 2]),  # none of its pieces
    ],
)
def test_words_have_the_published_tokens(text: str, tokens: list[int]) -> None:
    found = [token for word in text.split() for token in t5_words()(word)]
    assert found == tokens


def test_numbers_stay_in_the_vocabulary() -> None:
    for text in ("", "</s>", "<extra_id_0>", "\0", "é" * 1000, "\U0010ffff"):
        assert all(0 <= token < T5_VOCABULARY for token in t5_words()(text))


def test_a_ligature_is_its_letters() -> None:
    assert t5_words()("\ufb01ne") == t5_words()("fine")
