"""Small models with random weights, written to disk as the real ones are: diffusers folders and single files.

The names of single files' tensors are made here by rules of their own, the other way round than diffusers'
converters, which the package uses.
"""

from __future__ import annotations

import functools
import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WORDS = 49408  # CLIP's
UNET = {"block_out_channels": (32, 32, 64), "layers_per_block": 1, "norm_num_groups": 32, "sample_size": 8}
VAE = {"block_out_channels": (32, 32, 32, 64), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 32}


def unet(**config: Any) -> nn.Module:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    kinds = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return _lively(UNet2DConditionModel(**{**UNET, **kinds, **config}))


def controlnet(network: Any, seed: int = 11) -> Any:
    from diffusers import ControlNetModel

    torch.manual_seed(seed)
    return _lively(ControlNetModel.from_unet(network, load_weights_from_unet=False))


def vae(scale: float = 0.18215, **config: Any) -> nn.Module:
    from diffusers import AutoencoderKL

    torch.manual_seed(2)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return _lively(AutoencoderKL(**{**VAE, **kinds, "scaling_factor": scale, **config}))


def clip(width: int, layers: int, seed: int, *, act: str = "quick_gelu", projected: int = 0) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=WORDS, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64), max_position_embeddings=77, hidden_act=act,
        projection_dim=projected or 512,
        bos_token_id=WORDS - 2, eos_token_id=WORDS - 1, pad_token_id=WORDS - 1,
    )  # fmt: skip
    return _lively((CLIPTextModelWithProjection if projected else CLIPTextModel)(config))


def _lively(module: nn.Module) -> nn.Module:
    """Weights that neither vanish nor blow up: initial ones of large models would, in small ones."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1 and "embedding" not in name:
            nn.init.normal_(parameter, std=0.8 / parameter[0].numel() ** 0.5)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.02)
        elif parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.5)
    return module.eval().requires_grad_(False)


@functools.cache
def tokenizer(pad: str = "<|endoftext|>") -> Any:
    from transformers import CLIPTokenizer

    from vortex_worker.executor.diffusion import tokenizer as ours

    _, vocabulary = ours._shipped()
    lines = ours.gzip.open(ours._MERGES, "rt", encoding="utf-8").read().splitlines()
    return CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(line.split()) for line in lines], pad_token=pad, model_max_length=77
    )


def scheduler(prediction: str = "epsilon") -> Any:
    from diffusers import EulerDiscreteScheduler

    # "leading": starts as ComfyUI does, at the root of sigma² + 1
    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction,
        timestep_spacing="leading", steps_offset=1,
    )  # fmt: skip


def sd1(**config: Any) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        unet=unet(cross_attention_dim=64, attention_head_dim=8, **config), vae=vae(), text_encoder=clip(64, 2, 3),
        tokenizer=tokenizer(), scheduler=scheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def sd2(layers: int = 2) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        unet=unet(cross_attention_dim=64, attention_head_dim=(1, 1, 1), use_linear_projection=True),
        vae=vae(),
        text_encoder=clip(64, layers, 4, act="gelu"), tokenizer=tokenizer("!"), scheduler=scheduler("v_prediction"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl(layers: int = 3) -> Any:
    from diffusers import StableDiffusionXLPipeline

    network = unet(
        cross_attention_dim=192, attention_head_dim=(1, 1), use_linear_projection=True, block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=6 * 256 + 128,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        unet=network, vae=vae(0.13025), text_encoder=clip(64, 2, 5), tokenizer=tokenizer(),
        text_encoder_2=clip(128, layers, 6, act="gelu", projected=128), tokenizer_2=tokenizer("!"),
        scheduler=scheduler(), add_watermarker=False,
    )  # fmt: skip


def t5(width: int) -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(10)
    config = T5Config(
        vocab_size=32128, d_model=width, d_kv=32, d_ff=2 * width, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", use_cache=False,
    )  # fmt: skip
    return _lively(T5EncoderModel(config))


def t5_file(module: nn.Module) -> dict[str, Tensor]:
    """Its tensors as ``t5xxl.safetensors`` has them: the table once."""
    return {name: tensor for name, tensor in module.state_dict().items() if name != "encoder.embed_tokens.weight"}


@functools.cache
def t5_tokenizer() -> Any:
    from tokenizers import normalizers
    from transformers import T5Tokenizer

    from vortex_worker.executor.diffusion import tokenizer as ours

    lines = ours.gzip.open(ours._PIECES, "rt", encoding="utf-8", newline="\n").read().split("\n")[:-1]
    pieces = [(piece, float(score)) for piece, score in (line.split("\t") for line in lines)]
    theirs = T5Tokenizer(vocab=pieces)
    theirs.backend_tokenizer.normalizer = normalizers.NFKC()
    return theirs


def sd3(layers: int = 3, joint: int = 256, third: nn.Module | None = None) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(7)
    first = clip(64, 2, 8, projected=64)
    nn.init.eye_(first.text_projection.weight)  # the family was trained without
    transformer = SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=64, num_attention_heads=2,
        joint_attention_dim=joint, caption_projection_dim=128, pooled_projection_dim=64 + 128, out_channels=16,
        pos_embed_max_size=32, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=_lively(transformer), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(1.5305, latent_channels=16, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=first, tokenizer=tokenizer(),
        text_encoder_2=clip(128, layers, 9, act="gelu", projected=128), tokenizer_2=tokenizer("!"),
        text_encoder_3=third, tokenizer_3=third and t5_tokenizer(),
    )  # fmt: skip


def save_folder(pipeline: Any, folder: Path) -> Path:
    """As diffusers saves it; and the tokenizers' two files, which the installed library writes as one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.save_pretrained(folder)
    for place in folder.glob("tokenizer*"):
        whole = json.loads((place / "tokenizer.json").read_text())["model"]
        if "merges" not in whole:  # T5's
            continue
        (place / "vocab.json").write_text(json.dumps(whole["vocab"]))
        merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in whole["merges"])
        (place / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        (place / "tokenizer.json").unlink()
    return folder


def save_file(pipeline: Any, path: Path, extra: dict[str, Tensor] | None = None) -> Path:
    """As one file under the original names."""
    from safetensors.torch import save_file

    if hasattr(pipeline, "transformer"):
        tensors = {"model.diffusion_model." + k: v for k, v in mmdit(pipeline.transformer).items()}
        tensors |= {"first_stage_model." + k: v for k, v in ldm_vae(pipeline.vae).items()}
        for name, tower in (("clip_l", pipeline.text_encoder), ("clip_g", pipeline.text_encoder_2)):
            tensors |= {f"text_encoders.{name}.transformer.{k}": v for k, v in clip_file(tower, name).items()}
        if pipeline.text_encoder_3:
            tensors |= {f"text_encoders.t5xxl.transformer.{k}": v for k, v in t5_file(pipeline.text_encoder_3).items()}
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
        return path
    tensors = {"model.diffusion_model." + k: v for k, v in ldm_unet(pipeline.unet).items()}
    tensors |= {"first_stage_model." + k: v for k, v in ldm_vae(pipeline.vae).items()}
    if hasattr(pipeline, "text_encoder_2"):
        first, second = _clip_names(pipeline.text_encoder), open_clip(pipeline.text_encoder_2)
        tensors |= {"conditioner.embedders.0.transformer." + k: v for k, v in first.items()}
        tensors |= {"conditioner.embedders.1.model." + k: v for k, v in second.items()}
    elif pipeline.tokenizer.pad_token == "!":
        tensors |= {"cond_stage_model.model." + k: v for k, v in open_clip(pipeline.text_encoder, spare=True).items()}
    else:
        tensors |= {"cond_stage_model.transformer." + k: v for k, v in _clip_names(pipeline.text_encoder).items()}
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file({name: tensor.contiguous().clone() for name, tensor in (tensors | (extra or {})).items()}, path)
    return path


def clip_file(module: nn.Module, name: str) -> dict[str, Tensor]:
    """A text tower's tensors as ``clip_l.safetensors`` has them, without projection, or ``clip_g.safetensors``."""
    tensors = {k if k.startswith("text_projection.") else "text_model." + k: v for k, v in _bare(module).items()}
    if name == "clip_l":
        tensors.pop("text_projection.weight", None)
    return tensors


def _bare(module: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("text_model."): tensor for name, tensor in module.state_dict().items()}


def _clip_names(module: nn.Module) -> dict[str, Tensor]:
    return {"text_model." + name.removeprefix("text_model."): tensor for name, tensor in module.state_dict().items()}


def ldm_unet(module: Any) -> dict[str, Tensor]:
    """A U-Net's tensors under CompVis's names."""
    layers = module.config.layers_per_block
    renamed = {_ldm_unet_name(name, layers): tensor for name, tensor in module.state_dict().items()}
    for name in [name for name in renamed if ".UP." in name]:  # behind the attention, where there is one
        head, rest = name.split("UP.")
        place = 2 if head + "1.proj_in.weight" in renamed else 1
        renamed[f"{head}{place}.{rest}"] = renamed.pop(name)
    return renamed


def _ldm_unet_name(name: str, layers: int) -> str:
    outer = {
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    }  # fmt: skip
    for theirs, original in outer.items():
        if name.startswith(theirs + "."):
            return original + name.removeprefix(theirs)
    side, rest = name.split(".", 1)
    if side == "mid_block":
        kind, place, rest = rest.split(".", 2)
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(place)}.{_residual(rest)}"
    block, kind, place, rest = rest.split(".", 3)
    block, place = int(block), int(place)
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{1 + block * (layers + 1) + place}.{int(kind == 'attentions')}.{_residual(rest)}"
    if kind == "upsamplers":
        return f"output_blocks.{block * (layers + 1) + layers}.UP.{rest}"
    return f"output_blocks.{block * (layers + 1) + place}.{int(kind == 'attentions')}.{_residual(rest)}"


def ldm_controlnet(module: Any) -> dict[str, Tensor]:
    """A ControlNet's tensors under its authors' names."""
    layers, out = module.config.layers_per_block, {}
    for name, tensor in module.state_dict().items():
        head, _, rest = name.partition(".")
        if head == "controlnet_down_blocks":
            place, _, kind = rest.partition(".")
            original = f"zero_convs.{place}.0.{kind}"
        elif head == "controlnet_mid_block":
            original = f"middle_block_out.0.{rest}"
        elif head == "controlnet_cond_embedding":
            rest = rest.replace("conv_in.", "0.").replace("conv_out.", "14.")
            found = re.match(r"blocks\.(\d+)\.", rest)
            original = "input_hint_block." + (f"{2 * int(found[1]) + 2}.{rest[found.end() :]}" if found else rest)
        else:
            original = _ldm_unet_name(name, layers)
        out[original] = tensor
    return out


def _residual(rest: str) -> str:
    inner = {
        "norm1.": "in_layers.0.", "conv1.": "in_layers.2.", "norm2.": "out_layers.0.", "conv2.": "out_layers.3.",
        "time_emb_proj.": "emb_layers.1.", "conv_shortcut.": "skip_connection.",
    }  # fmt: skip
    for theirs, original in inner.items():
        if rest.startswith(theirs):
            return original + rest.removeprefix(theirs)
    return rest


def ldm_vae(module: Any) -> dict[str, Tensor]:
    """A VAE's tensors under CompVis's names: attention as 1 × 1 convolutions, the decoder's levels from below."""
    levels = len(module.config.block_out_channels)
    renamed = {}
    for name, tensor in module.state_dict().items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
        up = re.search(r"up_blocks\.(\d+)\.", name)
        if up:
            level = levels - 1 - int(up[1])
            name = name.replace(up[0] + "resnets.", f"up.{level}.block.")
            name = name.replace(up[0] + "upsamplers.0.", f"up.{level}.upsample.")
        name = name.replace("mid_block.resnets.0.", "mid.block_1.").replace("mid_block.resnets.1.", "mid.block_2.")
        name = name.replace("conv_norm_out.", "norm_out.").replace("conv_shortcut.", "nin_shortcut.")
        if "mid_block.attentions.0." in name:
            name = name.replace("mid_block.attentions.0.", "mid.attn_1.").replace("group_norm.", "norm.")
            for theirs, original in {"to_q.": "q.", "to_k.": "k.", "to_v.": "v.", "to_out.0.": "proj_out."}.items():
                name = name.replace(theirs, original)
            tensor = tensor[..., None, None] if tensor.dim() == 2 else tensor
        renamed[name] = tensor
    return renamed


def open_clip(module: Any, *, spare: bool = False) -> dict[str, Tensor]:
    """A text tower's tensors under OpenCLIP's names. ``spare``: with the last layer that SD 2.x doesn't use."""
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in module.state_dict().items()}
    out = {
        "token_embedding.weight": tensors["embeddings.token_embedding.weight"],
        "positional_embedding": tensors["embeddings.position_embedding.weight"],
        "ln_final.weight": tensors["final_layer_norm.weight"],
        "ln_final.bias": tensors["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6),
    }
    width = out["ln_final.bias"].shape[0]
    out["text_projection"] = (
        tensors["text_projection.weight"].T if "text_projection.weight" in tensors else torch.eye(width)
    )
    names = {
        "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }  # fmt: skip
    layers = module.config.num_hidden_layers
    for layer in range(layers):
        for kind in ("weight", "bias"):
            head, original = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
            for theirs, its in names.items():
                out[f"{original}{its}.{kind}"] = tensors[f"{head}{theirs}.{kind}"]
            out[f"{original}attn.in_proj_{kind}"] = torch.cat(
                [tensors[f"{head}self_attn.{which}_proj.{kind}"] for which in "qkv"]
            )
    if spare:
        last = f"transformer.resblocks.{layers - 1}."
        out |= {
            name.replace(last, f"transformer.resblocks.{layers}."): -v
            for name, v in out.items()
            if name.startswith(last)
        }
    return out


def mmdit(module: Any) -> dict[str, Tensor]:
    """A Stable Diffusion 3 transformer's tensors under Stability AI's names."""
    given = dict(module.state_dict())
    last = module.config.num_layers - 1
    plain = {
        "pos_embed.proj": "x_embedder.proj", "context_embedder": "context_embedder", "proj_out": "final_layer.linear",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    }  # fmt: skip
    out = {"pos_embed": given["pos_embed.pos_embed"]}
    for kind in ("weight", "bias"):
        out |= {f"{its}.{kind}": given[f"{theirs}.{kind}"] for theirs, its in plain.items()}
        out[f"final_layer.adaLN_modulation.1.{kind}"] = _swapped(given[f"norm_out.linear.{kind}"])
    for number in range(last + 1):
        theirs, its = f"transformer_blocks.{number}.", f"joint_blocks.{number}."
        for kind in ("weight", "bias"):
            for group, names in {
                "x_block.attn.qkv": [f"attn.to_{n}" for n in "qkv"],
                "x_block.attn2.qkv": [f"attn2.to_{n}" for n in "qkv"],
                "context_block.attn.qkv": [f"attn.add_{n}_proj" for n in "qkv"],
                "x_block.attn.proj": ["attn.to_out.0"], "x_block.attn2.proj": ["attn2.to_out.0"],
                "context_block.attn.proj": ["attn.to_add_out"],
                "x_block.mlp.fc1": ["ff.net.0.proj"], "x_block.mlp.fc2": ["ff.net.2"],
                "context_block.mlp.fc1": ["ff_context.net.0.proj"], "context_block.mlp.fc2": ["ff_context.net.2"],
                "x_block.adaLN_modulation.1": ["norm1.linear"],
                "context_block.adaLN_modulation.1": ["norm1_context.linear"],
                "x_block.attn.ln_q": ["attn.norm_q"], "x_block.attn.ln_k": ["attn.norm_k"],
                "x_block.attn2.ln_q": ["attn2.norm_q"], "x_block.attn2.ln_k": ["attn2.norm_k"],
                "context_block.attn.ln_q": ["attn.norm_added_q"], "context_block.attn.ln_k": ["attn.norm_added_k"],
            }.items():  # fmt: skip
                if f"{theirs}{names[0]}.{kind}" in given:
                    out[f"{its}{group}.{kind}"] = torch.cat([given[f"{theirs}{name}.{kind}"] for name in names])
    for kind in ("weight", "bias"):  # the last block's is another kind of norm
        name = f"joint_blocks.{last}.context_block.adaLN_modulation.1.{kind}"
        out[name] = _swapped(out[name])
    return out


def _swapped(tensor: Tensor) -> Tensor:
    """Scale and shift in the other order."""
    return torch.cat(tensor.chunk(2)[::-1])
