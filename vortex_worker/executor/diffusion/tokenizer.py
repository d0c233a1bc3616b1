"""A word's tokens: CLIP's, from a diffusers folder's vocabulary or the package's own; T5's from the latter."""

from __future__ import annotations

import functools
import gzip
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vortex_worker.errors import ValidationError
from vortex_worker.executor.diffusion.weights import read_json

#: Libraries look for networks at import otherwise. There is none here.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

_START, _END = "<|startoftext|>", "<|endoftext|>"
_MERGES = Path(__file__).parent / "clip_merges.txt.gz"
_PIECES = Path(__file__).parent / "t5_pieces.tsv.gz"
_UNKNOWN = 2  # T5's number for what has no piece
CLIP_VOCABULARY = 49408
T5_VOCABULARY = 32100


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """``encode`` gives the tokens of one word, all below ``size``; ``start``, ``end`` and ``pad`` frame a prompt."""

    encode: Callable[[str], Sequence[int]]
    start: int
    end: int
    pad: int
    size: int

    def check(self, rows: int) -> None:
        """See that each token has a row in a text encoder's embedding of so many. There may be more: some are made so.

        Raises:
            ValidationError: it has not.
        """
        if rows < self.size:
            raise ValidationError(
                f"this checkpoint is damaged: its text encoder's token embedding has {rows} rows, "
                f"and the vocabulary {self.size}"
            )


def shipped(pad: int | None = None) -> Tokenizer:
    """OpenAI's vocabulary, which every CLIP of Stable Diffusion has. ``pad``: None is the end token."""
    words, vocabulary = _shipped()
    return _of(words, vocabulary, pad)


@functools.cache
def _shipped() -> tuple[Callable[[str], Sequence[int]], dict[str, int]]:
    with gzip.open(_MERGES, "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    merges = [tuple(line.split()) for line in lines]
    letters = _byte_letters()
    names = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), _START, _END]
    vocabulary = {name: number for number, name in enumerate(names)}
    return _words(vocabulary, merges), vocabulary


def from_folder(folder: Path) -> Tokenizer:
    """The tokenizer of a diffusers folder: ``vocab.json`` and ``merges.txt``, or ``tokenizer.json``.

    Raises:
        ValidationError: files are missing or malformed.
    """
    if (folder / "vocab.json").exists():
        vocabulary: Any = read_json(folder / "vocab.json")
        try:
            lines = (folder / "merges.txt").read_text("utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise ValidationError(f"{folder.name}/merges.txt can't be read: {error}") from None
        merges: Any = [line for line in lines if line and not line.startswith("#version")]
    else:
        model = read_json(folder / "tokenizer.json").get("model")
        vocabulary, merges = (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (None, None)
    try:
        words = _words(vocabulary, [tuple(pair.split() if isinstance(pair, str) else pair) for pair in merges])
    except Exception as error:  # the library raises bare exceptions
        raise ValidationError(f"{folder.name}: its vocabulary and merges make no tokenizer: {error}") from None
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    pad = settings.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    return _of(words, vocabulary, vocabulary.get(pad) if isinstance(pad, str) else None)


@functools.cache
def t5_words() -> Callable[[str], Sequence[int]]:
    """T5's tokens of one word, without the end token: a unigram model (Kudo 2018) on text in form NFKC."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import Unigram

    with gzip.open(_PIECES, "rt", encoding="utf-8", newline="\n") as file:
        pairs = [line.rstrip("\n").split("\t") for line in file]
    model = Tokenizer(Unigram([(piece, float(score)) for piece, score in pairs], _UNKNOWN, byte_fallback=False))
    model.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")

    def encode(word: str) -> Sequence[int]:
        found: list[int] = model.encode(word).ids
        return found

    return encode


def _of(words: Callable[[str], Sequence[int]], vocabulary: dict[str, int], pad: int | None) -> Tokenizer:
    if _START not in vocabulary or _END not in vocabulary:
        raise ValidationError(f"the tokenizer's vocabulary lacks {_START} or {_END}")
    end = vocabulary[_END]
    return Tokenizer(words, vocabulary[_START], end, end if pad is None else pad, max(vocabulary.values()) + 1)


def _words(vocabulary: dict[str, int], merges: list[Any]) -> Callable[[str], Sequence[int]]:
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges)

    def encode(word: str) -> Sequence[int]:
        found: list[int] = tokenizer(word, add_special_tokens=False)["input_ids"]
        return found

    return encode


def _byte_letters() -> list[str]:
    """A printable letter for each byte, in the vocabulary's order: printable Latin-1 first, as itself."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]
