"""Checkpoints that are damaged are told as such when they are loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vortex_worker.errors import ValidationError
from vortex_worker.executor.diffusion import clips, folder, single_file

UNET, CLIP = "model.diffusion_model.", "cond_stage_model.transformer."


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({UNET + "input_blocks.0.0.weight": torch.ones(0, 4)}, "input_blocks.0.0.weight are empty"),
        (
            {UNET + "input_blocks.0.0.weight": torch.ones(4)},
            "the numbers of its layers, or their shapes, make no sense",
        ),
    ],
)
def test_a_damaged_file_is_told_as_such(tmp_path: Path, tensors: dict[str, torch.Tensor], said: str) -> None:
    file = tmp_path / "x.safetensors"
    save_file({CLIP + "text_model.a": torch.ones(1), **tensors}, file)
    with pytest.raises(ValidationError, match=f"x.safetensors is a damaged Stable Diffusion 1 checkpoint: .*{said}"):
        single_file.load(file, torch.device("cpu"))


def test_a_token_embedding_that_is_cut_is_told_when_it_is_loaded() -> None:
    names = {
        "embeddings.token_embedding.weight": torch.ones(10, 8),
        "encoder.layers.0.mlp.fc1.weight": torch.ones(8, 8),
    }
    with pytest.raises(ValidationError, match="token embedding has 10 rows, and the vocabulary 49408"):
        clips.openai(names, torch.device("cpu"))


@pytest.mark.parametrize("rows", [11, 12, 14])
def test_a_folder_whose_vocabulary_is_larger_than_its_token_embedding_is_told_when_it_is_loaded(
    tmp_path: Path, rows: int
) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=rows, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(tmp_path / "text_encoder")
    words = ["<|startoftext|>", "<|endoftext|>", *"abcde", *(f"{letter}</w>" for letter in "abcde")]
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (tmp_path / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    if rows < 12:
        with pytest.raises(ValidationError, match=r"damaged: .* token embedding has 11 rows, and the vocabulary 12"):
            folder._tower(tmp_path, "", torch.device("cpu"))
    else:  # some have more rows than words
        assert folder._tower(tmp_path, "", torch.device("cpu")).table.num_embeddings == rows
