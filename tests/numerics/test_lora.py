"""What a LoRA leaves as it is."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")
import small_models

from vortex_worker.executor.diffusion.lora import Lora
from vortex_worker.executor.diffusion.text import TextEncoder, Tower
from vortex_worker.executor.diffusion.tokenizer import shipped


def test_a_text_encoder_stays_of_its_family() -> None:
    encoder = TextEncoder((Tower(small_models.clip(64, 2, 3), shipped()),), joint=96, empty=5)  # as of SD 3
    layer = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    lora = Lora({f"{layer}.lora_down.weight": torch.zeros(4, 64), f"{layer}.lora_up.weight": torch.zeros(128, 4)})
    for ours, theirs in zip(lora.on_text(encoder, 1.0).encode("a cat"), encoder.encode("a cat"), strict=True):
        torch.testing.assert_close(ours, theirs)
