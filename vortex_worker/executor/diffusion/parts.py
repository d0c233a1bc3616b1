"""A module and its weights: built empty, then given the tensors of the file themselves."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from vortex_worker.errors import ValidationError
from vortex_worker.executor.diffusion.weights import is_real, shortened

#: Buffers that old files hold and new modules make themselves.
_IGNORED = ("position_ids",)
MOST_MODULES = 5000  # of one network, in one another: SDXL's U-Net has 1929, and this many are made in half a second


def build(make: Callable[[], nn.Module], weights: Mapping[str, Tensor], what: str, device: torch.device) -> nn.Module:
    """A module that holds ``weights``, for inference on ``device``.

    On the CPU, in the dtype of the file, nothing is copied. float16 and float8 are widened to float32
    there: the CPU is slow in the one and can't compute in the other.

    Args:
        make: makes the module; called where tensors have no memory.
        what: which part it is, for messages.

    Raises:
        ValidationError: names, shapes or dtypes don't fit: missing and unexpected ones are listed, shortened.
    """
    try:
        with torch.device("meta"), _bounded(what):
            module = make()
    except ValidationError:
        raise
    except Exception as error:  # a configuration from a stranger's file: whatever the library stumbles over
        raise ValidationError(f"the {what}'s configuration makes no module: {type(error).__name__}: {error}") from None
    wanted = module.state_dict()
    given = _renamed(weights, wanted)
    problems = []
    if missing := wanted.keys() - given.keys():
        problems.append(f"it lacks {len(missing)} of {len(wanted)}: {shortened(missing)}")
    if unexpected := {name for name in given.keys() - wanted.keys() if not name.endswith(_IGNORED)}:
        problems.append(f"it has {len(unexpected)} unexpected: {shortened(unexpected)}")
    if misfits := {
        f"{name} {list(given[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    }:
        problems.append(f"shapes differ: {shortened(misfits)}")
    if unreal := {
        f"{name} {given[name].dtype}"
        for name, _ in module.named_parameters()
        if name in given and not is_real(given[name])
    }:
        problems.append(f"no real numbers: {shortened(unreal)}")
    if problems:
        raise ValidationError(f"the weights are no {what}: " + "; ".join(problems), problems=problems)
    dtype = _dtype(given.values(), device)
    module.load_state_dict({name: _fitting(given[name], dtype, device) for name in wanted}, assign=True)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:  # not in the file, for it holds nothing learned
            _refill(module, name, device)
    return module.eval().requires_grad_(False)


@contextmanager
def _bounded(what: str) -> Iterator[None]:
    """Making a module ends as soon as it has more parts than any that there is."""
    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1
        if count > MOST_MODULES:
            raise ValidationError(f"the weights are no {what}: it would have more than {MOST_MODULES} modules")

    handle = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


def shared_copy(module: nn.Module) -> nn.Module:
    """A copy whose tensors are the same ones: what is replaced in it stays its own."""
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def _renamed(weights: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    """With or without ``text_model.`` before the names, as the installed transformers has it."""
    prefix = "text_model."
    if not any(name.startswith(prefix) for name in wanted):
        return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    inner = {name.removeprefix(prefix) for name in wanted if name.startswith(prefix)}
    return {prefix + name if name in inner else name: tensor for name, tensor in weights.items()}


def _dtype(tensors: Any, device: torch.device) -> torch.dtype:
    counted = Counter(tensor.dtype for tensor in tensors if tensor.is_floating_point())
    if not counted:
        return torch.float32
    most: torch.dtype = counted.most_common(1)[0][0]
    if most in (torch.float32, torch.bfloat16):
        return most
    if device.type == "cpu" or most == torch.float64:
        return torch.float32
    return torch.float16


def _fitting(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)


def _refill(module: nn.Module, name: str, device: torch.device) -> None:
    owner, _, leaf = name.rpartition(".")
    buffer = module.get_buffer(name)
    if leaf != "position_ids":
        raise ValidationError(f"the module has a buffer {name} that the file doesn't fill")
    module.get_submodule(owner).register_buffer(
        leaf, torch.arange(buffer.shape[-1], device=device).expand(buffer.shape), persistent=False
    )
