"""Stable Diffusion 3's third text encoder: the encoder of T5 1.1 (Raffel et al. 2020, arXiv 1910.10683)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vortex_worker.errors import ValidationError
from vortex_worker.executor.diffusion import embedding
from vortex_worker.executor.diffusion.names import Tensors, check_layers, count
from vortex_worker.executor.diffusion.parts import build
from vortex_worker.executor.diffusion.prompt import weighted
from vortex_worker.executor.diffusion.tokenizer import T5_VOCABULARY, t5_words

MARK = "encoder.block.0.layer.0.SelfAttention."  # what a file's names begin with
_TABLES = ("shared.weight", "encoder.embed_tokens.weight")  # one table of tokens by two names
_BIAS = MARK + "relative_attention_bias.weight"
_BUCKETS = 4, 511  # of distances between tokens: where the logarithms that they are told by are defined
_END, _PAD = 1, 0
_LEAST, _MOST = 77, 2048  # tokens; attention's memory grows with their square


class T5:
    """transformers' ``T5EncoderModel`` as prompts ask it. Padding is seen, as the family was trained."""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        config: Any = module.config
        self.width: int = config.d_model
        self._words: Callable[[str], Sequence[int]] = t5_words()

    def encode(self, text: str) -> Tensor:
        """A prompt → [1, 77 tokens or more, width], float32, on the CPU. Weights count as in a CLIP's ``Tower``.

        Raises:
            ValidationError: it has too many tokens.
        """
        pairs = [
            (token, weight)
            for piece, weight in weighted(text)
            for word in piece.split()
            for token in self._tokens(word)
        ]
        if len(pairs) >= _MOST:
            raise ValidationError(f"the prompt has {len(pairs)} tokens: T5 takes fewer than {_MOST}")
        pairs.append((_END, 1.0))
        pairs += [(_PAD, 1.0)] * (_LEAST - len(pairs))
        rows = [[token for token, _ in pairs]]
        weights = torch.tensor([weight for _, weight in pairs])
        is_weighted = bool((weights != 1).any())
        if is_weighted:
            rows.append([_END] + [_PAD] * (len(pairs) - 1))
        ids = torch.tensor(rows, device=self.module.shared.weight.device)
        hidden: Tensor = self.module(input_ids=ids).last_hidden_state.float().cpu()
        if not is_weighted:
            return hidden
        return hidden[1:] + (hidden[:1] - hidden[1:]) * weights[:, None]

    def _tokens(self, word: str) -> Sequence[int]:
        """A word's tokens. An embedding is for CLIPs: of its word what follows the name is left."""
        if word.startswith(embedding.MARK):
            word = embedding.named(word)[1]
        return self._words(word) if word else ()


def from_tensors(tensors: Tensors, device: torch.device) -> T5:
    """The encoder of a file, under transformers' names. A decoder beside it is passed over.

    Raises:
        ValidationError: weights are missing, unexpected or misshapen. KeyError: one that its shape is read from.
    """
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(("decoder.", "lm_head."))}
    check_layers(own)
    table = own[next((name for name in _TABLES if name in own), _TABLES[0])]
    if table.shape[0] < T5_VOCABULARY:
        raise ValidationError(
            f"this T5's token embedding has {table.shape[0]} rows, and the vocabulary {T5_VOCABULARY}"
        )
    buckets, heads = own[_BIAS].shape
    if not _BUCKETS[0] <= buckets <= _BUCKETS[1]:
        raise ValidationError(f"this T5 tells {buckets} distances apart: it takes {_BUCKETS[0]} to {_BUCKETS[1]}")
    config = T5Config(
        vocab_size=table.shape[0],
        d_model=table.shape[1],
        d_kv=own[MARK + "q.weight"].shape[0] // max(1, heads),
        d_ff=own["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0],
        num_layers=count(own, "encoder.block."),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
        use_cache=False,
    )
    return T5(build(lambda: T5EncoderModel(config), {**own, **dict.fromkeys(_TABLES, table)}, "T5 encoder", device))
