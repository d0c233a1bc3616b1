"""Nodes that load models: checkpoints, their parts, LoRAs. What they give stays in the worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vortex_worker.errors import ValidationError
from vortex_worker.executor import model_files
from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.ports import Param, Port

_PARTS = (Port("model", "MODEL"), Port("clip", "CLIP"), Port("vae", "VAE"))
#: ComfyUI's fast ones compute in fp8, too, where the GPU can; here they don't.
_DTYPES = ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")
_DEVICE = Param("device", "CHOICE", default="default", choices=("default", "cpu"), doc="where it runs")
_STRENGTH: dict[str, Any] = {"default": 1.0, "minimum": -100.0, "maximum": 100.0}


def _text_file(name: str) -> Param:
    return Param(name, "STRING", doc="below the folders of models, or their text_encoders/ or clip/")


class Loader(AbstractExecutor):
    """Says before a workflow runs that there is no such file, and when another has taken a file's place."""

    kind: ClassVar[str]  # of file
    files: ClassVar[tuple[str, ...]]  # the params that name them

    def precheck(self, params: dict[str, Any]) -> Sequence[str | Mapping[str, str]]:
        problems = []
        for param in self.files:
            if param not in params:  # another node gives it
                continue
            try:
                model_files.find(self.kind, params[param])
            except ValidationError as error:
                problems.append({"text": f"{param!r}: {error.message}", "input": param, "type": "value_not_in_list"})
        return problems

    def changed(self, params: dict[str, Any]) -> Any:
        return model_files.stamp(self.kind, [params.get(param) for param in self.files])

    def found(self, name: str) -> Path:
        """The file of that name. Raises ValidationError: there is none."""
        return model_files.find(self.kind, name)


class CheckpointLoaderSimple(Loader):
    """Load a checkpoint: a safetensors file or a diffusers folder of Stable Diffusion 1, 2, XL or 3."""

    op_type = "CheckpointLoaderSimple"
    kind = "checkpoints"
    files = ("ckpt_name",)
    output_ports = _PARTS
    params = (Param("ckpt_name", "STRING", doc="below the folders of models, or their checkpoints/"),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from vortex_worker.executor.diffusion import checkpoint

        path = self.found(params["ckpt_name"])
        model, clip, vae = checkpoint.load(path, self.context.device)
        return {"model": model, "clip": clip, "vae": vae}


class DiffusersLoader(Loader):
    """Load a diffusers folder."""

    op_type = "DiffusersLoader"
    kind = "diffusers"
    files = ("model_path",)
    output_ports = _PARTS
    params = (Param("model_path", "STRING", doc="below the folders of models, or their diffusers/"),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from vortex_worker.executor.diffusion import checkpoint

        path = self.found(params["model_path"])
        model, clip, vae = checkpoint.load(path, self.context.device)
        return {"model": model, "clip": clip, "vae": vae}


class VAELoader(Loader):
    """Load a VAE by itself: a safetensors file or a diffusers folder."""

    op_type = "VAELoader"
    kind = "vae"
    files = ("vae_name",)
    output_ports = (Port("vae", "VAE"),)
    params = (Param("vae_name", "STRING", doc="below the folders of models, or their vae/"),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from vortex_worker.executor.diffusion import checkpoint

        return {"vae": checkpoint.load_vae(self.found(params["vae_name"]), self.context.device)}


class UNETLoader(Loader):
    """Load a diffusion model by itself: a safetensors file of Stable Diffusion 1, 2, XL or 3."""

    op_type = "UNETLoader"
    kind = "diffusion_models"
    files = ("unet_name",)
    output_ports = (Port("model", "MODEL"),)
    params = (
        Param("unet_name", "STRING", doc="below the folders of models, or their diffusion_models/ or unet/"),
        Param("weight_dtype", "CHOICE", default="default", choices=_DTYPES, doc="round the weights to it"),
    )

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        import torch

        from vortex_worker.executor.diffusion import checkpoint

        named = params["weight_dtype"].removesuffix("_fast")
        rounded = {"fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}.get(named)
        path = self.found(params["unet_name"])
        return {"model": checkpoint.load_model(path, self.context.device, rounded)}


class _TextLoader(Loader):
    """Base of loaders of text encoders: a file for each part, in any order."""

    kind = "text_encoders"
    output_ports = (Port("clip", "CLIP"),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        import torch

        from vortex_worker.executor.diffusion import checkpoint

        device = torch.device("cpu") if params["device"] == "cpu" else self.context.device
        paths = [self.found(params[name]) for name in self.files]
        return {"clip": checkpoint.load_text(paths, params.get("type", "sd3"), device)}


class CLIPLoader(_TextLoader):
    """Load a text encoder by itself: Stable Diffusion 1's or 2's, or a part of 3's."""

    op_type = "CLIPLoader"
    files = ("clip_name",)
    params = (
        _text_file("clip_name"),
        Param("type", "CHOICE", default="stable_diffusion", choices=("stable_diffusion", "sd3")),
        _DEVICE,
    )


class DualCLIPLoader(_TextLoader):
    """Load a text encoder of two files, in any order: SDXL's (clip_l, clip_g), or two parts of Stable Diffusion 3's."""

    op_type = "DualCLIPLoader"
    files = ("clip_name1", "clip_name2")
    params = (*map(_text_file, files), Param("type", "CHOICE", default="sdxl", choices=("sdxl", "sd3")), _DEVICE)


class TripleCLIPLoader(_TextLoader):
    """Load Stable Diffusion 3's text encoder of its three files, in any order: clip_l, clip_g, t5xxl."""

    op_type = "TripleCLIPLoader"
    files = ("clip_name1", "clip_name2", "clip_name3")
    params = (*map(_text_file, files), _DEVICE)


class LoraLoader(Loader):
    """Add a LoRA to a model and its text encoder. Both are copies; unchanged weights are shared."""

    op_type = "LoraLoader"
    kind = "loras"
    files = ("lora_name",)
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


class LoraLoaderModelOnly(Loader):
    """Add a LoRA to a model. It is a copy; unchanged weights are shared."""

    op_type = "LoraLoaderModelOnly"
    kind = "loras"
    files = ("lora_name",)
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


EXECUTORS = (
    CheckpointLoaderSimple,
    DiffusersLoader,
    UNETLoader,
    CLIPLoader,
    DualCLIPLoader,
    TripleCLIPLoader,
    VAELoader,
    LoraLoader,
    LoraLoaderModelOnly,
)
