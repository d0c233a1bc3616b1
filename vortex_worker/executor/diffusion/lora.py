"""Low-rank additions (LoRA, Hu et al. 2021) merged into a private copy: W + strength · alpha / rank · up · down.

Files name the weights as kohya's trainer does (``lora_unet_down_blocks_0_…``, with diffusers' or the original
block names) or as diffusers does (``unet.down_blocks.0.….lora_A.weight``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from vortex_worker.errors import ValidationError
from vortex_worker.executor.diffusion.networks import module_of
from vortex_worker.executor.diffusion.parts import shared_copy
from vortex_worker.executor.diffusion.text import TextEncoder
from vortex_worker.executor.diffusion.weights import is_real, shortened
from vortex_worker.executor.nodes.sampling.model import DiffusionModel

_ROLES = {
    "lora_down.weight": "down", "lora_A.weight": "down", "lora_linear_layer.down.weight": "down", "down.weight": "down",
    "lora_up.weight": "up", "lora_B.weight": "up", "lora_linear_layer.up.weight": "up", "up.weight": "up",
    "alpha": "alpha",
}  # fmt: skip
_UNET = ("lora_unet_", "unet.")
#: Text towers by what their names begin with.
_TOWERS = {"lora_te_": 0, "lora_te1_": 0, "text_encoder.": 0, "lora_te2_": 1, "text_encoder_2.": 1}


@dataclass
class Pair:
    """One weight's addition."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None
    names: list[str] = field(default_factory=list)

    def change(self, weight: Tensor) -> Tensor:
        """What is to be added to ``weight``, of its shape, in float32.

        Raises:
            ValidationError: the shapes don't go together, or it is damaged.
        """
        down, up = self.down, self.up
        if down is None or up is None:
            raise ValidationError(f"this LoRA has only half of a pair: {shortened(self.names)}")
        if not is_real(down) or not is_real(up):
            raise ValidationError(
                f"this LoRA is damaged: {shortened(self.names)} of {down.dtype} and {up.dtype}: it takes floats"
            )
        rank = down.shape[0] if down.dim() else 0
        if rank == 0 or up.dim() == 0:
            raise ValidationError(f"this LoRA is damaged: {shortened(self.names)} has rank 0")
        scale = 1.0 if self.alpha is None else self.alpha / rank
        if not math.isfinite(scale):
            raise ValidationError(f"this LoRA is damaged: the alpha of {shortened(self.names)} is {self.alpha}")
        fits = up.shape[0] == weight.shape[0] > 0 and up[0].numel() == rank and down[0].numel() == weight[0].numel()
        if not fits:
            raise ValidationError(
                f"this LoRA is for another model: {shortened(self.names)} of {list(up.shape)} and "
                f"{list(down.shape)} can't be added to a weight {list(weight.shape)}"
            )
        product = up.float().flatten(1).to(weight.device) @ down.float().flatten(1).to(weight.device)
        return product.reshape(weight.shape) * scale


class Lora:
    """The additions of one file, by the part they are for."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.network: dict[str, Pair] = {}
        self.towers: dict[int, dict[str, Pair]] = {}
        self.unknown: list[str] = []
        for name, tensor in tensors.items():
            where, role = _split(name)
            pairs, key = self._place(where)
            if role is None or pairs is None:
                self.unknown.append(name)
                continue
            pair = pairs.setdefault(key, Pair())
            pair.names.append(name)
            if role == "alpha":
                pair.alpha = _number(tensor)
            else:
                setattr(pair, role, tensor)
        if not self.network and not self.towers:
            raise ValidationError(f"it is no LoRA that is supported: it has {shortened(tensors) or 'no tensors'}")

    def _place(self, where: str) -> tuple[dict[str, Pair] | None, str]:
        for prefix in _UNET:
            if where.startswith(prefix):
                return self.network, _flat(where.removeprefix(prefix))
        for prefix, number in _TOWERS.items():
            if where.startswith(prefix):
                return self.towers.setdefault(number, {}), _flat(where.removeprefix(prefix))
        return None, ""

    def on_model(self, model: DiffusionModel, strength: float) -> DiffusionModel:
        """``model`` with the additions; its own weights stay as they are.

        Raises:
            ValidationError: no addition fits, or shapes differ.
        """
        module = module_of(model)
        if module is None:
            raise ValidationError(f"'model' is no diffusers network, but a {type(model.network).__name__}")
        if strength == 0 or not self.network:
            return model
        config: Any = module.config
        layers = config.get("layers_per_block", 0)
        pairs = {_diffusers_name(name, layers): pair for name, pair in self.network.items()}
        merged = _merged(module, pairs, strength, "model")
        network: Any = type(model.network)
        return model.with_network(network(merged))

    def on_text(self, encoder: TextEncoder, strength: float) -> TextEncoder:
        """``encoder`` with the additions; its own weights stay as they are. Raises as ``on_model``."""
        if strength == 0 or not self.towers:
            return encoder
        towers = list(encoder.towers)
        for number, pairs in self.towers.items():
            if number >= len(towers):
                raise ValidationError(f"this LoRA is for a text encoder {number + 1}: 'clip' has {len(towers)}")
            towers[number] = replace(
                towers[number], module=_merged(towers[number].module, pairs, strength, f"text encoder {number + 1}")
            )
        return replace(encoder, towers=tuple(towers))


def _number(tensor: Tensor) -> float | None:
    """Of a tensor of one number; NaN where it is none that can be read."""
    if tensor.numel() != 1:
        return None
    try:
        return float(tensor)
    except RuntimeError:  # complex, or packed
        return math.nan


def _merged(module: nn.Module, pairs: Mapping[str, Pair], strength: float, what: str) -> nn.Module:
    copy = shared_copy(module)
    found = {_flat(name): layer for name, layer in copy.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    found |= {name.removeprefix("text_model_"): layer for name, layer in found.items()}
    left = []
    for name, pair in pairs.items():
        layer = found.get(name) or found.get(name.removeprefix("text_model_"))
        if layer is None:
            left += pair.names
            continue
        weight = layer.weight
        changed = weight.float() + strength * pair.change(weight)
        layer.weight = nn.Parameter(changed.to(weight.dtype), requires_grad=False)
    if len(left) == sum(len(pair.names) for pair in pairs.values()):
        raise ValidationError(f"this LoRA is for another {what}: nothing here is called {shortened(left)}")
    if left:
        print(f"LoRA: {len(left)} tensors fit no weight of the {what}: {shortened(left)}")
    return copy


def _split(name: str) -> tuple[str, str | None]:
    """A tensor's name → the weight's, and its role in the pair."""
    for end, role in _ROLES.items():
        for ending in ("." + end, "_lora." + end):  # the latter: attention processors of old diffusers
            if name.endswith(ending):
                return name.removesuffix(ending), role
    return name, None


def _flat(name: str) -> str:
    """One spelling for a layer: dots are underscores, and attention's ``processor`` of old files is left out."""
    name = name.replace(".processor.", ".").replace(".", "_")
    # Old files name attention's last layer without its place in the list.
    return re.sub(r"_to_out$", "_to_out_0", name)


def _diffusers_name(name: str, layers: int) -> str:
    """Original block names of a U-Net (``input_blocks_4_1_…``) as diffusers counts them, both flat."""
    found = re.match(r"(input|output|middle)_blocks?_(\d+)_(?:(\d+)_)?(.*)$", name)
    if found is None:
        for old, new in _OUTER:
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name
    side, first, second, rest = found[1], int(found[2]), found[3], found[4]
    if side == "middle":
        kind, place = ("attentions", 0) if first == 1 else ("resnets", first // 2)
        return f"mid_block_{kind}_{place}_{_inside(rest if second is None else f'{second}_{rest}')}"
    if side == "input":
        if first == 0:
            return "conv_in"
        block, layer = divmod(first - 1, layers + 1)
        if rest == "op":
            return f"down_blocks_{block}_downsamplers_0_conv"
        head = f"down_blocks_{block}"
    else:
        block, layer = divmod(first, layers + 1)
        if rest == "conv":
            return f"up_blocks_{block}_upsamplers_0_conv"
        head = f"up_blocks_{block}"
    return f"{head}_{'attentions' if second == '1' else 'resnets'}_{layer}_{_inside(rest)}"


def _inside(rest: str) -> str:
    """Layers of a residual block; those of attention have one name."""
    for old, new in _RESIDUAL:
        if rest == old:
            return new
    return rest


_RESIDUAL = (
    ("in_layers_2", "conv1"), ("out_layers_3", "conv2"), ("emb_layers_1", "time_emb_proj"),
    ("skip_connection", "conv_shortcut"),
)  # fmt: skip
_OUTER = (("time_embed_0", "time_embedding_linear_1"), ("time_embed_2", "time_embedding_linear_2"),
    ("label_emb_0_0", "add_embedding_linear_1"), ("label_emb_0_2", "add_embedding_linear_2"), ("out_2", "conv_out"),
)  # fmt: skip
