"""NVIDIA GPUs through torch."""

from __future__ import annotations

import os
import sys

from vortex_worker.device import Device, message_of
from vortex_worker.errors import ConfigError

_HOST_REGISTER_DEFAULT = 0  # cudaHostRegisterDefault

#: Errors after which every call on the context fails, as the CUDA documentation has them.
_STICKY = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "misaligned address",
    "illegal instruction",
    "illegal address space",
    "invalid program counter",
    "hardware stack error",
    "launch timed out",
    "uncorrectable ECC",
    "uncorrectable NVLink",
)


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
    """Make the context, run the first kernels, and load every library that others would load in a job.

    Before lockdown: after it, no device file can be opened and no library be mapped.
    """
    import torch

    # What it compiles is kept in memory: there is no home to write it to.
    os.environ["CUDA_CACHE_DISABLE"] = "1"
    os.environ["USE_PYTORCH_KERNEL_CACHE"] = "0"
    torch.cuda.set_device(device.torch_device)
    torch.cuda.seed_all()
    with torch.inference_mode():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            square = torch.ones(128, 128, device=device.torch_device, dtype=dtype)
            _ = square @ square  # cuBLAS
            image = torch.ones(1, 8, 16, 16, device=device.torch_device, dtype=dtype)
            _ = torch.nn.functional.conv2d(image, torch.ones(8, 8, 3, 3, device=device.torch_device, dtype=dtype))
            heads = torch.ones(1, 2, 64, 64, device=device.torch_device, dtype=dtype)
            _ = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
        square = torch.eye(8, device=device.torch_device)
        _ = torch.linalg.inv(square)  # cuSOLVER, in a library of its own
        _ = torch.fft.fft2(square)
    torch.cuda.synchronize(device.torch_device)


def pin(address: int, nbytes: int) -> None:
    """Register host memory with CUDA until the process ends (cudaHostRegister of its runtime API).

    Results then leave the card at the bus's speed. Takes all of its pages at once and keeps them in memory.

    Raises:
        ConfigError: CUDA refused, mostly because there is not so much memory.
    """
    import torch

    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    status = int(cudart.cudaHostRegister(address, nbytes, _HOST_REGISTER_DEFAULT))
    if status != 0:
        raise ConfigError(
            f"lease_size is {nbytes}, and CUDA can't pin so much memory (error {status}): "
            "a smaller one, or device='cpu', may do"
        )


def empty_cache() -> None:
    """Give the caching allocator's unused memory back."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def is_oom(error: BaseException) -> bool:
    """The caching allocator's error; the driver's own; cuBLAS and cuDNN short of their workspace."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        sign in message_of(error)
        for sign in ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    )


def is_device_error(error: BaseException) -> bool:
    """torch raises AcceleratorError since 2.8, and before it RuntimeErrors whose message begins so."""
    torch = sys.modules.get("torch")
    kind = getattr(torch, "AcceleratorError", None)
    if kind is not None and isinstance(error, kind):
        return True
    return isinstance(error, RuntimeError) and message_of(error).startswith(
        ("CUDA error", "CUDA driver error", "cuDNN error")
    )


def is_sticky(error: BaseException) -> bool:
    """Whether the context is lost with it."""
    return any(sign in message_of(error) for sign in _STICKY)
