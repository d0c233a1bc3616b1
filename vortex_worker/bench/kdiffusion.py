"""k-diffusion's ``sampling`` and ``external`` modules, unchanged, without what the package imports for training.

``import k_diffusion`` wants some fifteen packages (wandb, clip, kornia, torchvision, …). These two modules need
torchdiffeq, torchsde, tqdm and scipy; torchvision is named at the top of ``utils`` for reading images only.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any


def load() -> tuple[Any, Any]:
    """``(k_diffusion.sampling, k_diffusion.external)``.

    Raises:
        ImportError: k-diffusion, or one of the four, is not installed.
    """
    if "k_diffusion.external" not in sys.modules:
        for needed in ("k_diffusion", "torchdiffeq", "torchsde", "tqdm"):
            if importlib.util.find_spec(needed) is None:
                raise ImportError(f"{needed} is not installed")
        spec = importlib.util.find_spec("k_diffusion")
        assert spec is not None
        package = ModuleType("k_diffusion")  # instead of its __init__, which imports everything
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["k_diffusion"] = package
        stood_in = []
        if importlib.util.find_spec("torchvision") is None:
            transforms: Any = ModuleType("torchvision.transforms")
            transforms.functional = None
            stood_in = [ModuleType("torchvision"), transforms]
        sys.modules.update({module.__name__: module for module in stood_in})
        try:
            importlib.import_module("k_diffusion.external")
        finally:
            for module in stood_in:
                del sys.modules[module.__name__]
    return sys.modules["k_diffusion.sampling"], sys.modules["k_diffusion.external"]
