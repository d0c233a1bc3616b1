"""What numerics are tested with: one thread, and small models on disk with a worker that may read them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the library that asks a hub

if TYPE_CHECKING:
    from shelf import Shelf


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """For tensors as small as these: on several they are slower, and on a busy machine very much so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    from shelf import Shelf

    return Shelf(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def fabric(shelf: Shelf) -> Any:
    """A worker that may read the shelf."""
    import vortex_worker as vw

    with vw.Fabric(1, standby=0, models=shelf.folder, lease_size=256 << 20, client_size=64 << 20) as fabric:
        yield fabric.wait_ready(60)


@pytest.fixture(scope="module")
def flow(shelf: Shelf) -> Any:
    """A flow model's pipeline, which is on the shelf, too."""
    import small_models

    pipeline = small_models.sd3()
    pipeline.set_progress_bar_config(disable=True)
    small_models.save_file(pipeline, shelf.folder / "checkpoints" / "sd3.safetensors")
    small_models.save_folder(pipeline, shelf.folder / "diffusers" / "sd3")
    return pipeline
