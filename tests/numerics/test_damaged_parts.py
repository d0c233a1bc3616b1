"""Parts in files of their own that are damaged, or not what they are taken for: told by name, with what is accepted."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vortex_worker.errors import ValidationError

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
import small_models
from safetensors.torch import save_file

from vortex_worker.executor.diffusion import checkpoint, controlnets, folder, parts, separate, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]
CPU = torch.device("cpu")
T5_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
FC1 = "text_model.encoder.layers.0.mlp.fc1.weight"


@functools.cache
def sound(kind: str) -> dict[str, Tensor]:
    match kind:
        case "sd1":
            return small_models.ldm_unet(small_models.sd1().unet)
        case "theirs":
            return dict(small_models.sd1().unet.state_dict())
        case "sdxl":
            return small_models.ldm_unet(small_models.sdxl().unet)
        case "control":
            return dict(small_models.controlnet(small_models.sd1().unet).state_dict())
        case "vae":
            return small_models.ldm_vae(small_models.vae())
        case "sd3":
            return small_models.mmdit(small_models.sd3().transformer)
        case "l":
            return small_models.clip_file(small_models.clip(64, 2, 3), "clip_l")
        case "h":
            return small_models.clip_file(small_models.clip(64, 23, 3), "clip_h")
        case "g":
            return small_models.clip_file(small_models.clip(64, 32, 3, projected=64), "clip_g")
    return small_models.t5_file(small_models.t5(64))


def written(folder: Path, kind: str, **changes: Tensor | None) -> Path:
    """A sound file but for ``changes``; None: without it."""
    tensors = {**sound(kind), **changes}
    kept = {name: tensor.contiguous().clone() for name, tensor in tensors.items() if tensor is not None}
    path = folder / f"{kind}.safetensors"
    save_file(kept, path)
    return path


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("sd1", {"out.2.bias": None}, r"the weights are no Stable Diffusion 1 U-Net: it lacks 1 of \d+: conv_out.bias"),
        ("theirs", {"conv_out.bias": None}, "no Stable Diffusion 1 U-Net: it lacks 1 of .*: conv_out.bias"),
        ("theirs", {"a\nnode 1: fine": torch.ones(1)}, "it has 1 unexpected: a node 1: fine$"),
        ("theirs", {"extra": torch.ones(1)}, "no Stable Diffusion 1 U-Net: it has 1 unexpected: extra"),
        (
            "sdxl",
            {"label_emb.0.2.weight": torch.ones(3, 3)},
            r"no Stable Diffusion XL U-Net: shapes differ: .*\[3, 3\]",
        ),
        ("sd3", {"final_layer.linear.bias": None}, "damaged Stable Diffusion 3 model: it lacks 'final_layer"),
        ("sd1", {"input_blocks.0.0.weight": None}, "sd1.safetensors is a damaged U-Net: it lacks 'input_blocks.0.0"),
        ("sd1", {"out.2.weight": torch.ones(0, 4)}, "sd1.safetensors is a damaged U-Net: out.2.weight are empty"),
        ("sd1", {"out.2.weight": torch.tensor(1.0)}, "the numbers of its layers, or their shapes, make no sense"),
        (
            "sd3",
            {"joint_blocks.0.x_block.attn.qkv.bias": torch.tensor(1.0)},
            "the numbers of its layers, or their shapes",
        ),
        ("sd1", {"out.2.bias": torch.ones(4, dtype=torch.int64)}, "U-Net: no real numbers: conv_out.bias torch.int64$"),
        ("sd1", {"out.2.bias": torch.ones(4, dtype=torch.bool)}, "U-Net: no real numbers: conv_out.bias torch.bool$"),
        ("sd1", {"out.2.bias": torch.ones(4, dtype=torch.cfloat)}, "no real numbers: conv_out.bias torch.complex64$"),
        ("sd3", {"pos_embed": torch.ones(4)}, "damaged Stable Diffusion 3 model: the numbers of its layers, or their"),
        ("sd1", {"input_blocks.9999999.0.op.weight": torch.ones(1)}, "it has 1 unexpected: input_blocks.9999999"),
        ("sd1", {"input_blocks.0.0.weight": torch.ones(32, 9, 3, 3)}, "takes 9 channels: inpainting"),
        ("l", {}, "l.safetensors is no diffusion model of Stable Diffusion: it has text_model"),
    ],
)
def test_a_diffusion_model_alone(tmp_path: Path, kind: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        separate.load_model(written(tmp_path, kind, **changes), CPU)


@pytest.mark.parametrize(
    ("kind", "family", "changes", "said"),
    [
        ("l", "stable_diffusion", {FC1: None}, f"l.safetensors is a damaged text encoder: it lacks '{FC1[11:]}'"),
        (
            "l",
            "stable_diffusion",
            {"text_model.final_layer_norm.bias": None},
            "are no CLIP text encoder: it lacks 1 of",
        ),
        ("l", "sd3", {"text_model.more": torch.ones(1)}, "are no CLIP text encoder: it has 1 unexpected: more"),
        ("l", "sd3", {FC1: torch.ones(128, 3)}, r"shapes differ: .*fc1.weight \[128, 3\] instead of \[128, 64\]"),
        ("l", "sd3", {FC1: torch.tensor(1.0)}, "the numbers of its layers, or their shapes, make no sense"),
        ("l", "sd3", {FC1: torch.ones(0)}, "l.safetensors is a damaged text encoder: .*fc1.weight are empty"),
        ("l", "sd3", {"text_model.embeddings.token_embedding.weight": torch.ones(9, 64)}, "embedding has 9 rows"),
        ("h", "stable_diffusion", {"text_model.encoder.layers.22.mlp.fc1.bias": None}, "it lacks 1 of"),
        ("g", "sd3", {"text_projection.weight": None}, "a damaged text encoder: it lacks 'text_projection.weight'"),
        ("t5", "sd3", {"encoder.final_layer_norm.weight": None}, "are no T5 encoder: it lacks 1 of"),
        ("t5", "sd3", {"shared.weight": torch.ones(9, 64)}, "token embedding has 9 rows, and the vocabulary 32100"),
        ("t5", "sd3", {T5_BIAS: torch.ones(1, 2)}, "this T5 tells 1 distances apart: it takes 4 to 511"),
        ("t5", "sd3", {T5_BIAS: torch.ones(512, 2)}, "this T5 tells 512 distances apart: it takes 4 to 511"),
        ("t5", "sd3", {"shared.weight": None}, "it lacks 'shared.weight'"),
        ("t5", "sd3", {"encoder.block.0.layer.1.DenseReluDense.wi_0.weight": None}, "lacks '.*wi_0.weight'"),
        (
            "t5",
            "stable_diffusion",
            {},
            re.escape("t5.safetensors is a T5 (t5xxl): type 'stable_diffusion' takes clip_l"),
        ),
        ("g", "stable_diffusion", {}, "g.safetensors is OpenCLIP's ViT-bigG .*: type 'stable_diffusion' takes clip_l"),
        ("sd1", "sd3", {}, "sd1.safetensors is no text encoder of Stable Diffusion: it has input_blocks"),
    ],
)
def test_a_text_encoder_alone(tmp_path: Path, kind: str, family: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        separate.load_text([written(tmp_path, kind, **changes)], family, CPU)


def test_text_encoders_that_make_no_pair(tmp_path: Path) -> None:
    first, h, third = (written(tmp_path, kind) for kind in ("l", "h", "t5"))
    with pytest.raises(ValidationError, match=r"l.safetensors and l.safetensors are both OpenAI's CLIP"):
        separate.load_text([first, first], "sdxl", CPU)
    with pytest.raises(ValidationError, match=r"and t5.safetensors is a T5 .*: type 'sdxl' takes clip_l and clip_g"):
        separate.load_text([first, third], "sdxl", CPU)
    with pytest.raises(ValidationError, match=r"h.safetensors is OpenCLIP's ViT-H .*: type 'sd3' takes any of clip_l"):
        separate.load_text([first, h], "sd3", CPU)


@pytest.mark.parametrize("damage", ["truncated", "header", "pickle", "folder"])
def test_what_is_no_safetensors_file(tmp_path: Path, damage: str) -> None:
    whole = written(tmp_path, "l").read_bytes()
    path = tmp_path / ("x.bin" if damage == "pickle" else "x.safetensors")
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes({"truncated": whole[:-1000], "header": b"\xff" * 8 + whole[8:]}.get(damage, b"\x80\x04."))
    said = {"pickle": "is a pickle", "folder": "can't be read: it is a folder"}.get(
        damage, "is no sound safetensors file"
    )
    for load in (lambda: separate.load_model(path, CPU), lambda: separate.load_text([path], "sd3", CPU)):
        with pytest.raises(ValidationError, match=said):
            load()


def test_other_unets_are_told_by_their_widths(tmp_path: Path) -> None:
    from vortex_worker.executor.diffusion import unets

    for (width, added), what in unets._OTHERS.items():
        tensors = dict(sound("sdxl"))
        for name, tensor in sound("sdxl").items():
            if name.endswith("attn2.to_k.weight"):
                tensors[name] = torch.ones(tensor.shape[0], width)
        tensors["label_emb.0.0.weight"] = torch.ones(128, added)
        path = tmp_path / "other.safetensors"
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
        with pytest.raises(ValidationError, match=f"this U-Net is {what}: it takes one of Stable Diffusion 1, 2 or XL"):
            separate.load_model(path, CPU)


@pytest.fixture
def made() -> Iterator[list[str]]:
    """The modules that are put into others from here on, by name."""
    names: list[str] = []
    handle = torch.nn.modules.module.register_module_module_registration_hook(lambda _, name, part: names.append(name))
    yield names
    handle.remove()


LOADS: dict[str, Callable[[Path], Any]] = {
    "sd1": lambda path: separate.load_model(path, CPU), "theirs": lambda path: separate.load_model(path, CPU),
    "sd3": lambda path: separate.load_model(path, CPU), "control": lambda path: controlnets.load(path, CPU),
    "vae": lambda path: checkpoint.load_vae(path, CPU), "l": lambda path: separate.load_text([path], "sd3", CPU),
    "g": lambda path: separate.load_text([path], "sd3", CPU), "t5": lambda path: separate.load_text([path], "sd3", CPU),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "layers", "place"),
    [
        ("sd1", "input_blocks.{}.0.out_layers.3.weight", "input_blocks.100"),
        ("sd1", "output_blocks.{}.0.x", "output_blocks.100"),
        ("sd1", "output_blocks.x{}.0.x", "output_blocks"),
        ("sd1", "middle_block.1.transformer_blocks.{}.x", "middle_block.1.transformer_blocks.100"),
        ("theirs", "down_blocks.1.attentions.0.transformer_blocks.{}.x", "attentions.0.transformer_blocks.100"),
        ("theirs", "down_blocks.0.resnets.{}.conv2.weight", "down_blocks.0.resnets.100"),
        ("control", "controlnet_cond_embedding.blocks.{}.x", "controlnet_cond_embedding.blocks.100"),
        ("vae", "encoder.down.0.block.{}.x", "encoder.down.0.block.100"),
        ("vae", "decoder.up.{}.x", "decoder.up.100"),
        ("l", "text_model.encoder.layers.{}.x", "encoder.layers.100"),
        ("g", "text_model.encoder.layers.{}.x", "encoder.layers.100"),
        ("t5", "encoder.block.{}.x", "encoder.block.100"),
        ("sd3", "joint_blocks.{}.x", "joint_blocks.100"),
    ],
)
def test_more_layers_than_any_model_has_are_refused_before_one_is_made(
    tmp_path: Path, made: list[str], kind: str, layers: str, place: str
) -> None:
    """They kept a worker busy for half a minute."""
    path = written(tmp_path, kind, **{layers.format(number): torch.ones(1) for number in range(40, 9000)})
    made.clear()
    with pytest.raises(ValidationError, match=rf"{re.escape(place)}.* at most 100 layers in one place"):
        LOADS[kind](path)
    assert made == []


def test_a_layer_of_a_number_that_no_model_has_is_refused(tmp_path: Path, made: list[str]) -> None:
    path = written(tmp_path, "sd1", **{"input_blocks.9999.0.op.weight": torch.ones(1)})
    made.clear()
    with pytest.raises(
        ValidationError, match=r"the file has input_blocks.9999: there are at most 100 layers in one place"
    ):
        separate.load_model(path, CPU)
    assert made == []


def test_a_product_of_layers_is_refused_when_it_is_too_large(tmp_path: Path, made: list[str]) -> None:
    many = {
        f"down_blocks.{level}.attentions.{layer}.transformer_blocks.{depth}.x": torch.ones(1)
        for level in range(3) for layer in range(90) for depth in range(40)
    } | {
        f"down_blocks.{level}.resnets.{layer}.conv2.weight": torch.ones(32, 32, 3, 3)
        for level in range(3) for layer in range(90)
    } | {f"mid_block.attentions.0.transformer_blocks.{depth}.x": torch.ones(1) for depth in range(40)}  # fmt: skip
    path = written(tmp_path, "theirs", **{name: tensor for name, tensor in many.items() if name not in sound("theirs")})
    made.clear()
    with pytest.raises(ValidationError, match=r"no Stable Diffusion 1 U-Net: it would have more than 5000 modules"):
        separate.load_model(path, CPU)
    assert len(made) <= 5001


def test_a_folder_that_asks_for_too_many_layers_is_refused(tmp_path: Path, made: list[str]) -> None:
    small_models.save_folder(small_models.sd1(), tmp_path / "sd1")
    for part, name in (
        ("text_encoder", "num_hidden_layers"),
        ("vae", "layers_per_block"),
        ("unet", "layers_per_block"),
    ):
        path = tmp_path / "sd1" / part / "config.json"
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | {name: 1_000_000_000}))
        made.clear()
        with pytest.raises(ValidationError, match="it would have more than 5000 modules"):
            folder.load(tmp_path / "sd1", CPU)
        assert len(made) <= 10_000  # of a part before it, too
        path.write_text(before)


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": ["epsilon"]},
            r"predicts \['epsilon'\]: it takes epsilon",
        ),
        ("scheduler/scheduler_config.json", {"prediction_type": {}}, r"the scheduler predicts {}: it takes epsilon"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": True}, "the scheduler has True steps"),
        ("vae/config.json", {"scaling_factor": "x"}, "the VAE's scaling_factor is 'x': it takes a number, not 0"),
        ("vae/config.json", {"scaling_factor": 0}, "the VAE's scaling_factor is 0: it takes a number, not 0"),
        ("vae/config.json", {"scaling_factor": float("nan")}, "the VAE's scaling_factor is nan: it takes a number"),
        ("vae/config.json", {"scaling_factor": None}, "the VAE's scaling_factor is None: it takes a number"),
        ("vae/config.json", {"scaling_factor": 10**400}, r"the VAE's scaling_factor is 1000\d+: it takes a number"),
        ("vae/config.json", {"shift_factor": []}, r"the VAE's shift_factor is \[\]: it takes a number"),
        ("vae/config.json", {"shift_factor": float("inf")}, "the VAE's shift_factor is inf: it takes a number"),
    ],
    ids=lambda value: "",
)
def test_a_folder_whose_settings_make_no_sense_is_refused(
    tmp_path: Path, part: str, changes: dict[str, Any], said: str
) -> None:
    path = small_models.save_folder(small_models.sd1(), tmp_path / "sd1") / part
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValidationError, match=said):
        folder.load(tmp_path / "sd1", CPU)


def test_more_tensors_than_any_model_has_are_not_read(tmp_path: Path) -> None:
    save_file({f"a{number}": torch.ones(1) for number in range(20_001)}, tmp_path / "x.safetensors")
    with pytest.raises(ValidationError, match=r"x.safetensors has 20001 tensors: at most 20000 are read"):
        weights.read(tmp_path / "x.safetensors")


def test_the_largest_models_are_far_below_these_bounds(made: list[str]) -> None:
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel
    from transformers import T5Config, T5EncoderModel

    kinds = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    sdxl = {
        "down_block_types": kinds, "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10), "block_out_channels": (320, 640, 1280),
    }  # fmt: skip
    makes: list[Callable[[], Any]] = [
        lambda: UNet2DConditionModel(**sdxl),
        lambda: SD3Transformer2DModel(num_layers=38, num_attention_heads=38, qk_norm="rms_norm"),
        lambda: T5EncoderModel(T5Config(num_layers=24, feed_forward_proj="gated-gelu")),
    ]
    for make in makes:
        made.clear()
        with torch.device("meta"):
            make()
        assert len(made) < parts.MOST_MODULES / 2
