"""Which files of the folders of models a name means, and what is said of one that means none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vortex_worker.errors import ValidationError
from vortex_worker.executor import model_files


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Path]:
    before = model_files.folders()
    for sub in ("checkpoints", "loras"):
        (tmp_path / "models" / sub).mkdir(parents=True)
    model_files.use([str(tmp_path / "models")])
    yield tmp_path / "models"
    model_files.use(before)


@pytest.mark.parametrize("kind", ["checkpoints", "loras", "vae", "embeddings"])
def test_a_pipe_is_no_model(models: Path, kind: str) -> None:
    os.mkfifo(models / "pipe.safetensors")
    with pytest.raises(ValidationError, match=r"'pipe.safetensors' is no regular file"):
        model_files.find(kind, "pipe.safetensors")


def test_a_link_to_nowhere_is_called_that(models: Path) -> None:
    (models / "checkpoints" / "link.safetensors").symlink_to(models.parent / "absent.safetensors")
    with pytest.raises(ValidationError, match=r"'link.safetensors' is a link to what isn't there"):
        model_files.find("checkpoints", "link.safetensors")


def test_what_is_offered_is_of_the_kind_and_once(models: Path) -> None:
    for name in ("checkpoints/style_1.safetensors", "loras/style.safetensors", "style_2.safetensors"):
        (models / name).touch()
    assert model_files.listed("checkpoints") == ["style_1.safetensors", "style_2.safetensors"]
    assert model_files.listed("loras") == ["style.safetensors", "style_2.safetensors"]


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 5000 + "b"])
def test_a_name_longer_than_any_is_there_no_more_than_another(models: Path, name: str) -> None:
    with pytest.raises(ValidationError, match=r"there is no 'xxx|there is no 'a/a/"):
        model_files.find("checkpoints", name)
