"""Text encoders: a prompt to the tensors that a diffusion model is conditioned on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vortex_worker.errors import ExecutionError, ValidationError
from vortex_worker.executor.diffusion import embedding
from vortex_worker.executor.diffusion.prompt import Token, chunks
from vortex_worker.executor.diffusion.t5 import T5
from vortex_worker.executor.diffusion.tokenizer import Tokenizer

LENGTH = 77  # tokens that a CLIP reads at once


@dataclass(frozen=True)
class Tower:
    """One CLIP text transformer.

    Args:
        module: transformers' ``CLIPTextModel`` or ``CLIPTextModelWithProjection``.
        layer: the layer whose output is taken, counted from the end; −1 is the last.
        normed: that output goes through the final norm.
        absent: layers of the original that the file's module doesn't have at its end (diffusers' SD 2.x).
    """

    module: nn.Module
    tokenizer: Tokenizer
    layer: int = -1
    normed: bool = True
    absent: int = 0

    def encode(self, rows: Sequence[Sequence[Token]]) -> tuple[Tensor, Tensor]:
        """Rows of tokens → hidden [1, rows · 77, width], pooled [1, width] of the first row; float32.

        A token's weight moves its output away from, or towards, what the empty prompt gives there.
        """
        tokens = [[token for token, _ in row] for row in rows]
        weights = torch.tensor([[weight for _, weight in row] for row in rows])
        is_weighted = bool((weights != 1).any())
        if is_weighted:
            frame = self.tokenizer
            tokens.append([frame.start, frame.end] + [frame.pad] * (LENGTH - 2))
        hidden, pooled = self._run(tokens)
        if is_weighted:
            empty, hidden = hidden[-1:], hidden[:-1]
            hidden = empty + (hidden - empty) * weights.to(hidden.device)[..., None]
        return hidden.reshape(1, -1, hidden.shape[-1]), pooled[:1]

    @property
    def table(self) -> nn.Embedding:
        """Its tokens' rows."""
        module: Any = self.module
        table: nn.Embedding = getattr(module, "text_model", module).embeddings.token_embedding
        return table

    def _run(self, tokens: Sequence[Sequence[Any]]) -> tuple[Tensor, Tensor]:
        module: Any = self.module
        text: Any = getattr(module, "text_model", module)
        ids = torch.tensor([[0 if isinstance(token, Tensor) else token for token in row] for row in tokens])
        with _rows_in_place(self.table, tokens):
            out = module(input_ids=ids.to(self.table.weight.device), output_hidden_states=True)
        pooled = out.text_embeds if "text_embeds" in out else out.pooler_output
        depth = len(out.hidden_states) - 1
        place = max(-depth, min(-1, self.layer + self.absent))
        if place == -1 and self.normed:
            hidden = out.last_hidden_state
        else:
            hidden = out.hidden_states[place]
            hidden = text.final_layer_norm(hidden) if self.normed else hidden
        return hidden.float(), pooled.float()


@dataclass(frozen=True)
class TextEncoder:
    """What workflows call CLIP: one tower, SDXL's two side by side, or Stable Diffusion 3's, up to three.

    Args:
        joint: for Stable Diffusion 3: the width that cond is filled up to, and T5's tokens put behind; pooled then has
            every tower's. 0: neither.
        empty: how many tokens of zeros are behind where there is no ``t5``.
        t5: the third text encoder.
        beside: widths of the towers that are missing before those that are there, and behind: zeros.
    """

    towers: tuple[Tower, ...]
    joint: int = 0
    empty: int = 0
    t5: T5 | None = None
    beside: tuple[int, int] = (0, 0)

    def encode(self, text: str) -> tuple[Tensor, Tensor]:
        """A prompt, weights and all → cond [1, n · 77, width], pooled [1, width of the last tower]; float32, CPU."""
        return self.encode_each([text] * len(self.towers), text)

    def encode_each(self, texts: Sequence[str], third: str | None = None) -> tuple[Tensor, Tensor]:
        """As ``encode``, with a prompt for each tower; the shorter ones are filled up with empty rows.

        Args:
            third: the T5's prompt; None: the last tower's.

        Raises:
            ExecutionError: they give NaN or infinity.
        """
        rows = [self._rows(place, text) for place, text in enumerate(texts)]
        most = max(map(len, rows), default=0)
        hidden, pooled = [], []
        for place, (tower, own) in enumerate(zip(self.towers, rows, strict=True)):
            own += self._rows(place, "") * (most - len(own))
            given = tower.encode(own)
            hidden.append(given[0].cpu())
            pooled.append(given[1].cpu())
        if not self.joint:
            return _finite(torch.cat(hidden, -1), pooled[-1], texts)
        behind = self.t5.encode(texts[-1] if third is None else third) if self.t5 else None
        return _finite(*self._joined(hidden, pooled, behind), texts)

    def _joined(self, hidden: list[Tensor], pooled: list[Tensor], behind: Tensor | None) -> tuple[Tensor, Tensor]:
        """The towers' outputs as Stable Diffusion 3 takes them, with zeros for what there isn't."""
        behind = torch.zeros(1, self.empty, self.joint) if behind is None else behind
        if hidden:
            cond, before = torch.cat(hidden, -1), self.beside[0]
            left = self.joint - before - cond.shape[-1]
            if left < 0:
                wide = self.joint - left
                raise ValidationError(f"the text encoders don't go together: CLIPs {wide} wide, T5 {self.joint}")
            behind = torch.cat([pad(cond, (before, left)), behind], 1)
        return behind, pad(torch.cat([*pooled, torch.zeros(1, 0)], -1), self.beside)

    def at_layer(self, layer: int) -> TextEncoder:
        """The same with another layer's output, counted from the end: "CLIP skip"."""
        return replace(self, towers=tuple(replace(tower, layer=layer) for tower in self.towers))

    def _rows(self, place: int, text: str) -> list[list[Token]]:
        frame = self.towers[place].tokenizer
        encode = partial(self._tokens, place)
        return chunks(text, encode, start=frame.start, end=frame.end, pad=frame.pad, length=LENGTH)

    def _tokens(self, place: int, word: str) -> Sequence[Any]:
        """A word's tokens for one tower; of an embedding its rows, none where it is for another tower alone."""
        encode = self.towers[place].tokenizer.encode
        if not word.startswith(embedding.MARK):
            return encode(word)
        name, rest = embedding.named(word)
        rows = embedding.rows(name, [tower.table.embedding_dim for tower in self.towers])
        return [*rows.get(place, ()), *(encode(rest) if rest else ())]


def _finite(cond: Tensor, pooled: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    if not (cond.isfinite().all() and pooled.isfinite().all()):
        raise ExecutionError(f"the text encoder gave NaN or infinity for {', '.join(map(repr, texts))[:200]}")
    return cond, pooled


@contextmanager
def _rows_in_place(table: nn.Embedding, tokens: Sequence[Sequence[Any]]) -> Iterator[None]:
    """Meanwhile ``table`` gives the rows that are among ``tokens``, where they are."""
    given = {
        (row, column): token
        for row, line in enumerate(tokens)
        for column, token in enumerate(line)
        if isinstance(token, Tensor)
    }
    if not given:
        yield
        return

    def put(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        for place, token in given.items():
            out[place] = token.to(out)
        return out

    handle = table.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()
