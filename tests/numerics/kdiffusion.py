"""k-diffusion, for tests: where it isn't installed they are skipped."""

from __future__ import annotations

from typing import Any

import pytest

from vortex_worker.bench import kdiffusion


def load() -> tuple[Any, Any]:
    """``(k_diffusion.sampling, k_diffusion.external)``; skips the test where k-diffusion isn't installed."""
    try:
        return kdiffusion.load()
    except ImportError as error:
        pytest.skip(str(error), allow_module_level=True)
