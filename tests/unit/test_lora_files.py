"""LoRA files that are damaged are refused by what is wrong with them."""

from __future__ import annotations

import pytest
import torch

from vortex_worker.errors import ValidationError
from vortex_worker.executor.diffusion.lora import Lora, Pair


def test_a_sound_pair_is_added() -> None:
    change = Pair(torch.ones(2, 3), torch.ones(4, 2), 1.0, ["a"]).change(torch.zeros(4, 3))
    assert torch.equal(change, torch.ones(4, 3))


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (Pair(torch.ones(0, 3), torch.ones(4, 0), None, ["a"]), "a has rank 0"),
        (Pair(torch.tensor(1.0), torch.tensor(1.0), None, ["a"]), "a has rank 0"),
        (Pair(torch.ones(2, 3), torch.ones(4, 2), float("nan"), ["a"]), "the alpha of a is nan"),
        (Pair(torch.ones(2, 3).char(), torch.ones(4, 2), None, ["a"]), "a of torch.int8"),
        (Pair(torch.ones(2, 3), torch.ones(4, 2).bool(), None, ["a"]), "and torch.bool"),
    ],
)
def test_a_damaged_pair_is_refused(pair: Pair, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        pair.change(torch.zeros(4, 3))


@pytest.mark.parametrize(
    "alpha", [torch.zeros(1, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), torch.tensor(1 + 1j)]
)
def test_an_alpha_that_is_no_number_is_refused(alpha: torch.Tensor) -> None:
    pair = {"lora_down.weight": torch.ones(2, 3), "lora_up.weight": torch.ones(4, 2), "alpha": alpha}
    lora = Lora({f"lora_unet_a.{name}": tensor for name, tensor in pair.items()})
    with pytest.raises(ValidationError, match=r"the alpha of lora_unet_a.alpha, .* is nan"):
        lora.network["a"].change(torch.zeros(4, 3))
