"""Checkpoints that are damaged are told as such when they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vortex_worker.errors import ValidationError
from vortex_worker.executor.diffusion import clips, single_file

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
