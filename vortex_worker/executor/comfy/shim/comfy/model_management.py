"""Stands in for ``comfy.model_management``: where to compute, how much memory there is, whether to stop.

Models are not moved about here: a worker has one device, and the fabric drops objects when memory is short.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch

from vortex_worker import device as devices
from vortex_worker.errors import Cancelled
from vortex_worker.executor.comfy import job

#: What stops a node whose job was cancelled. Let it through.
InterruptProcessingException = Cancelled
OOM_EXCEPTION = torch.OutOfMemoryError
XFORMERS_IS_AVAILABLE = False


class CPUState(Enum):
    GPU = 0
    CPU = 1
    MPS = 2


class VRAMState(Enum):
    DISABLED = 0
    NO_VRAM = 1
    LOW_VRAM = 2
    NORMAL_VRAM = 3
    HIGH_VRAM = 4
    SHARED = 5


vram_state = VRAMState.NORMAL_VRAM


def get_torch_device() -> torch.device:
    """Where to compute."""
    return job.context().device


def intermediate_device() -> torch.device:
    """Where results between nodes lie: they are shared memory."""
    return torch.device("cpu")


def vae_device() -> torch.device:
    return get_torch_device()


def text_encoder_device() -> torch.device:
    return get_torch_device()


def unet_offload_device() -> torch.device:
    return get_torch_device()


def vae_offload_device() -> torch.device:
    return get_torch_device()


def text_encoder_offload_device() -> torch.device:
    return get_torch_device()


def is_device_cpu(device: Any) -> bool:
    return torch.device(device).type == "cpu"


def is_device_cuda(device: Any) -> bool:
    return torch.device(device).type == "cuda"


def is_device_mps(device: Any) -> bool:
    return torch.device(device).type == "mps"


def cpu_mode() -> bool:
    return is_device_cpu(get_torch_device())


def mps_mode() -> bool:
    return is_device_mps(get_torch_device())


def get_autocast_device(device: Any) -> str:
    return torch.device(device).type


def should_use_fp16(device: Any = None, *args: Any, **kwargs: Any) -> bool:
    """Not on a CPU, which is slow in it."""
    return not is_device_cpu(device or get_torch_device())


def should_use_bf16(device: Any = None, *args: Any, **kwargs: Any) -> bool:
    device = torch.device(device or get_torch_device())
    return device.type == "cuda" and bool(torch.cuda.is_bf16_supported())


def unet_dtype(device: Any = None, *args: Any, **kwargs: Any) -> torch.dtype:
    return torch.float16 if should_use_fp16(device) else torch.float32


vae_dtype = text_encoder_dtype = unet_dtype


def dtype_size(dtype: torch.dtype) -> int:
    return dtype.itemsize


def module_size(module: torch.nn.Module) -> int:
    """Bytes of a module's tensors."""
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def get_free_memory(device: Any = None, torch_free_too: bool = False) -> Any:
    """Bytes. Of a CPU, a number large enough for whoever asks: the machine's state is not a worker's to see."""
    device = torch.device(device or get_torch_device())
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 8 << 30
    return (free, free) if torch_free_too else free


def get_total_memory(device: Any = None, torch_total_too: bool = False) -> Any:
    """Bytes, as ``get_free_memory``."""
    device = torch.device(device or get_torch_device())
    total = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 16 << 30
    return (total, total) if torch_total_too else total


def soft_empty_cache(force: bool = False) -> None:
    devices.empty_cache()


def load_models_gpu(*args: Any, **kwargs: Any) -> None:
    """Nothing: models are where they are."""


load_model_gpu = free_memory = unload_all_models = cleanup_models = load_models_gpu


def processing_interrupted() -> bool:
    return job.context().cancelled


def throw_exception_if_processing_interrupted() -> None:
    """Raise ``InterruptProcessingException`` when the job was cancelled."""
    job.context().check()
