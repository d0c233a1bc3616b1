"""Nodes that load models: checkpoints, VAEs, LoRAs. What they give stays in the worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from vortex_worker.errors import ValidationError
from vortex_worker.executor import model_files
from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.ports import Param, Port

_PARTS = (Port("model", "MODEL"), Port("clip", "CLIP"), Port("vae", "VAE"))
_STRENGTH: dict[str, Any] = {"default": 1.0, "minimum": -100.0, "maximum": 100.0}


class _Loader(AbstractExecutor):
    """Says before a workflow runs that there is no such file."""

    file: ClassVar[tuple[str, str]]  # the param that names it, and its kind

    def precheck(self, params: dict[str, Any]) -> Sequence[str | Mapping[str, str]]:
        param, kind = self.file
        if param not in params:  # another node gives it
            return []
        try:
            model_files.find(kind, params[param])
        except ValidationError as error:
            return [{"text": f"{param!r}: {error.message}", "input": param, "type": "value_not_in_list"}]
        return []


class CheckpointLoaderSimple(_Loader):
    """Load a checkpoint: a safetensors file or a diffusers folder of Stable Diffusion 1, 2 or XL."""

    op_type = "CheckpointLoaderSimple"
    file = ("ckpt_name", "checkpoints")
    output_ports = _PARTS
    params = (Param("ckpt_name", "STRING", doc="below the folders of models, or their checkpoints/"),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from vortex_worker.executor.diffusion import checkpoint

        path = model_files.find("checkpoints", params["ckpt_name"])
        model, clip, vae = checkpoint.load(path, self.context.device)
        return {"model": model, "clip": clip, "vae": vae}


class DiffusersLoader(_Loader):
    """Load a diffusers folder."""

    op_type = "DiffusersLoader"
    file = ("model_path", "diffusers")
    output_ports = _PARTS
    params = (Param("model_path", "STRING", doc="below the folders of models, or their diffusers/"),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from vortex_worker.executor.diffusion import checkpoint

        path = model_files.find("diffusers", params["model_path"])
        model, clip, vae = checkpoint.load(path, self.context.device)
        return {"model": model, "clip": clip, "vae": vae}


class VAELoader(_Loader):
    """Load a VAE by itself: a safetensors file or a diffusers folder."""

    op_type = "VAELoader"
    file = ("vae_name", "vae")
    output_ports = (Port("vae", "VAE"),)
    params = (Param("vae_name", "STRING", doc="below the folders of models, or their vae/"),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from vortex_worker.executor.diffusion import checkpoint

        return {"vae": checkpoint.load_vae(model_files.find("vae", params["vae_name"]), self.context.device)}


class LoraLoader(_Loader):
    """Add a LoRA to a model and its text encoder. Both are copies; unchanged weights are shared."""

    op_type = "LoraLoader"
    file = ("lora_name", "loras")
    input_ports = (Port("model", "MODEL"), Port("clip", "CLIP"))
    output_ports = (Port("model", "MODEL"), Port("clip", "CLIP"))
    params = (
        Param("lora_name", "STRING", doc="below the folders of models, or their loras/"),
        Param("strength_model", "FLOAT", **_STRENGTH),
        Param("strength_clip", "FLOAT", **_STRENGTH),
    )

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        lora = _lora(params["lora_name"])
        return {
            "model": lora.on_model(inputs["model"], params["strength_model"]),
            "clip": lora.on_text(inputs["clip"], params["strength_clip"]),
        }


class LoraLoaderModelOnly(_Loader):
    """Add a LoRA to a model. It is a copy; unchanged weights are shared."""

    op_type = "LoraLoaderModelOnly"
    file = ("lora_name", "loras")
    input_ports = (Port("model", "MODEL"),)
    output_ports = (Port("model", "MODEL"),)
    params = (
        Param("lora_name", "STRING", doc="below the folders of models, or their loras/"),
        Param("strength_model", "FLOAT", **_STRENGTH),
    )

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"model": _lora(params["lora_name"]).on_model(inputs["model"], params["strength_model"])}


def _lora(name: str) -> Any:
    from vortex_worker.executor.diffusion.lora import Lora
    from vortex_worker.executor.diffusion.weights import read

    return Lora(read(model_files.find("loras", name)).tensors)


EXECUTORS = (CheckpointLoaderSimple, DiffusersLoader, VAELoader, LoraLoader, LoraLoaderModelOnly)
