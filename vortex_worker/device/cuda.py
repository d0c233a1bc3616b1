"""NVIDIA GPUs through torch. Written to torch's documentation; not run on hardware yet."""

from __future__ import annotations

import sys

from vortex_worker.device import Device


def devices() -> list[Device]:
    """Every CUDA device."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(Device("cuda", index, properties.name, properties.total_memory))
    return found


def warm_up(device: Device) -> None:
    """Make the context and run the first kernels."""
    import torch

    square = torch.ones(128, 128, device=device.torch_device)
    _ = square @ square
    torch.cuda.synchronize(device.torch_device)


def empty_cache() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def is_oom(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def is_device_error(error: BaseException) -> bool:
    """torch raises AcceleratorError since 2.8, and RuntimeErrors that begin so before."""
    torch = sys.modules.get("torch")
    kind = getattr(torch, "AcceleratorError", None)
    if kind is not None and isinstance(error, kind):
        return True
    return isinstance(error, RuntimeError) and str(error).startswith(("CUDA error", "CUDA driver error"))


def is_sticky(error: BaseException) -> bool:
    """Errors after which every call on the context fails, as the CUDA documentation lists them."""
    text = str(error)
    return any(
        sign in text
        for sign in ("illegal memory access", "device-side assert", "unspecified launch failure", "misaligned address",
                     "illegal instruction", "launch timed out", "uncorrectable ECC")
    )  # fmt: skip
