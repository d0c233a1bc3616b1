"""What our processes see of our environment."""

from __future__ import annotations

import os

#: What of the supervisor's environment a worker may see: where libraries are, how many threads
#: to use, which devices. Never its secrets.
_ENV_NAMES = frozenset({"PATH", "LANG", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV"})
_ENV_PREFIXES = (
    "ASAN_", "ATEN_", "CUDA_", "GOMP_", "KMP_", "LC_", "LSAN_", "MKL_", "NVIDIA_", "OMP_", "ONEDNN_",
    "OPENBLAS_", "PYTHON", "TORCH_", "UBSAN_",
)  # fmt: skip


def environment() -> dict[str, str]:
    """What of our environment our processes see."""
    env = {k: v for k, v in os.environ.items() if k in _ENV_NAMES or k.startswith(_ENV_PREFIXES)}
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    # GNU OpenMP's threads spin for about a millisecond at each barrier before they sleep. Where several workers share
    # the CPUs, one spins away what another needs.
    env.setdefault("GOMP_SPINCOUNT", "1000")
    return env
