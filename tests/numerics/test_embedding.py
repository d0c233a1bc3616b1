"""Textual inversions in prompts: a row does what a word does whose row in the text encoder's table it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vortex_worker.errors import ValidationError
from vortex_worker.executor import model_files

pytest.importorskip("transformers")
import small_models
from safetensors.torch import save_file

from vortex_worker.executor.diffusion.text import TextEncoder, Tower
from vortex_worker.executor.diffusion.tokenizer import shipped

WORDS = "zebra lemon"  # whose rows stand in for the embedding's
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    before = model_files.folders()
    model_files.use([str(tmp_path)])
    (tmp_path / "embeddings").mkdir()
    yield tmp_path / "embeddings"
    model_files.use(before)


def tower(width: int = 64, seed: int = 3) -> Tower:
    return Tower(small_models.clip(width, 2, seed), shipped())


def taught(given: Tower, rows: Tensor) -> Tower:
    """The same, that has these rows for the tokens of ``WORDS`` in its table."""
    module: Any = copy.deepcopy(given.module)
    tokens = [token for word in WORDS.split() for token in given.tokenizer.encode(word)]
    assert len(tokens) == len(rows)
    table: Any = getattr(module, "text_model", module).embeddings.token_embedding
    table.weight[tokens] = rows
    return Tower(module, given.tokenizer)


def random_rows(width: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(2, width, generator=torch.Generator().manual_seed(seed))


def save_all(folder: Path, rows: Tensor) -> list[str]:
    """As programs write them, and how workflows name each."""
    parameter = torch.nn.Parameter(rows)
    save_file({"emb_params": rows}, folder / "plain.safetensors")
    torch.save(
        {"string_to_token": {"*": 265}, "string_to_param": {"*": parameter}, "name": "a", "step": 5}, folder / "auto.pt"
    )
    torch.save({"<concept>": parameter}, folder / "learned.bin")
    (folder / "styles").mkdir()
    save_file({"emb_params": rows.half()}, folder / "styles" / "half.safetensors")
    return ["plain", "plain.safetensors", "auto", "auto.pt", "learned"]


def test_it_stands_for_words(folder: Path) -> None:
    given, rows = tower(), random_rows()
    names = save_all(folder, rows)
    other = TextEncoder((taught(given, rows),))
    for text in ("a photo of {}, blue", "({}:1.4) on a table", "{}", "a " * 75 + "{}"):
        wanted = other.encode(text.format(WORDS))
        for name in names:
            found = TextEncoder((given,)).encode(text.format(f"embedding:{name}"))
            for ours, theirs in zip(found, wanted, strict=True):
                torch.testing.assert_close(ours, theirs, **CLOSE)
    half = TextEncoder((given,)).encode("embedding:styles/half")
    torch.testing.assert_close(half[0], other.encode(WORDS)[0], rtol=0, atol=1e-2)
    # and it leaves no trace
    fresh = TextEncoder((tower(),)).encode("a photo of " + WORDS)
    assert torch.equal(TextEncoder((given,)).encode("a photo of " + WORDS)[0], fresh[0])


def test_each_text_encoder_takes_its_own_part(folder: Path) -> None:
    first, second = tower(64, 3), tower(64, 4)  # of one width: told apart by name
    parts = {"clip_g": random_rows(seed=1), "clip_l": random_rows(seed=2)}
    save_file(parts, folder / "both.safetensors")
    cond, _ = TextEncoder((first, second)).encode("a embedding:both")
    wanted, _ = TextEncoder((taught(first, parts["clip_l"]), taught(second, parts["clip_g"]))).encode(f"a {WORDS}")
    torch.testing.assert_close(cond, wanted, **CLOSE)


def test_a_text_encoder_goes_without_what_is_for_the_other(folder: Path) -> None:
    first, second, rows = tower(64, 3), tower(128, 4), random_rows()
    save_file({"emb_params": rows}, folder / "one.safetensors")
    cond, _ = TextEncoder((first, second)).encode("a embedding:one b")
    wanted, _ = TextEncoder((taught(first, rows), second)).encode_each([f"a {WORDS} b", "a b"])
    torch.testing.assert_close(cond, wanted, **CLOSE)


class Trap:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('its code ran')",)


def test_what_is_no_embedding_is_refused(folder: Path) -> None:
    save_file({"emb_params": torch.zeros(2, 32)}, folder / "narrow.safetensors")
    save_file({"emb_params": torch.zeros(2000, 64)}, folder / "long.safetensors")
    save_file({"emb_params": torch.full((1, 64), float("nan"))}, folder / "nan.safetensors")
    torch.save({"*": torch.zeros(1, 64), "trap": Trap()}, folder / "trap.pt")
    torch.save([torch.zeros(1, 64)], folder / "list.pt")
    (folder / "cut.pt").write_bytes((folder / "list.pt").read_bytes()[:300])
    (folder / "cut.safetensors").write_bytes(b"\xff" * 20)
    (folder / "folder.pt").mkdir()
    with (folder / "huge.safetensors").open("wb") as file:
        file.truncate(65 << 20)
    for name, said in {
        "narow": "there is no 'narow' in the folders of models; did you mean 'narrow.safetensors'",
        "../x": "no name of a model",
        "": "no name of a model",
        "narrow": r"has \[2, 32\]: this text encoder takes rows of 64",
        "long": "has 2000 rows: it takes 1 to 1024",
        "nan": "finite",
        "trap": "trap.pt is no pickle of plain tensors",
        "list": "holds a list",
        "cut.pt": "cut.pt is no pickle of plain tensors",
        "cut": "no sound safetensors file",
        "folder": "folder.pt",
        "huge": "an embedding has at most",
    }.items():
        with pytest.raises(ValidationError, match=said):
            TextEncoder((tower(),)).encode(f"a embedding:{name}, b")
