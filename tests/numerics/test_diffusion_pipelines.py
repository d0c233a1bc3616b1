"""Workflows as people have them, in sandboxed workers, against diffusers' pipelines on the same weights and noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
import torch
from PIL import Image
from pipeline_runs import CLOSE, alike, example, floats, flow_reference, noise, reference, sigmas
from safetensors.torch import save_file
from shelf import CHECKPOINT, QUIET, Shelf, picture
from torch import Tensor

from vortex_worker.errors import ValidationError
from vortex_worker.executor.nodes.sampling.model import DiffusionModel, stable_diffusion_sigmas, zero_terminal
from vortex_worker.executor.nodes.sampling.schedules import sigmas_for

pytestmark = QUIET


def test_text_to_image_unmodified_equals_diffusers(fabric: Any, shelf: Shelf, tmp_path: Path) -> None:
    graph = example("text-to-image.json")
    drawn = picture(fabric, graph, tmp_path)
    sampler = graph["3"]["inputs"]
    texts = graph["6"]["inputs"]["text"], graph["7"]["inputs"]["text"]
    theirs = reference(shelf.sd1, *texts, steps=20, cfg=8, seed=sampler["seed"], side=512)
    assert theirs.std() > 0.05
    torch.testing.assert_close(drawn, theirs, rtol=0, atol=0.5 / 255 + CLOSE)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("sd1", CHECKPOINT), ("sd1", "diffusers/sd1"), ("sd2", "sd2.safetensors"), ("sd2", "diffusers/sd2"),
        ("sdxl", "sdxl.safetensors"), ("sdxl", "diffusers/sdxl"),
    ],
)  # fmt: skip
def test_every_family_equals_diffusers(fabric: Any, shelf: Shelf, family: str, name: str) -> None:
    graph = example(
        "text-to-image.json", n4__ckpt_name=name, n5__width=64, n5__height=64, n3__steps=6, n3__cfg=4.5, n3__seed=5
    )
    texts = graph["6"]["inputs"]["text"], graph["7"]["inputs"]["text"]
    alike(floats(fabric, graph), reference(getattr(shelf, family), *texts, steps=6, cfg=4.5, seed=5, side=64))


def erased(folder: Path) -> tuple[Tensor, Tensor]:
    """A picture, and the mask of the corner that is clear in it; both saved as the examples want them."""
    y, x = np.mgrid[0:64, 0:64] / 64
    pixels = (np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x * y)], -1) * 255).round().astype(np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[16:48, 32:64] = True
    Image.fromarray(pixels).save(folder / "picture.png")
    alpha = (~mask * 255).astype(np.uint8)
    Image.fromarray(np.concatenate([pixels, alpha[..., None]], -1)).save(folder / "erased.png")
    return torch.from_numpy(pixels.astype(np.float32) / 255)[None], torch.from_numpy(mask).float()[None, None]


def encoded(pipeline: Any, image: Tensor) -> Tensor:
    latent: Tensor = pipeline.vae.encode(image.movedim(-1, 1) * 2 - 1).latent_dist.mode()
    return latent * pipeline.vae.config.scaling_factor


def placed(graph: dict[str, Any], folder: Path) -> Path:
    """The graph as a file beside its pictures."""
    path = folder / "workflow.json"
    path.write_text(json.dumps(graph))
    return path


def test_image_to_image_equals_diffusers(fabric: Any, shelf: Shelf, tmp_path: Path) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    image, _ = erased(tmp_path)
    values = {"n6__sampler_name": "euler", "n6__steps": 5, "n6__denoise": 0.5, "n4__text": "an oil painting"}
    result = fabric.run_workflow(placed(example("image-to-image.json", **values), tmp_path), output_dir=tmp_path)
    drawn = torch.from_numpy(np.asarray(Image.open(result.files[0]), np.float32) / 255)[None]

    pipeline = StableDiffusionImg2ImgPipeline(**shelf.sd1.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        "an oil painting", negative_prompt="photograph", image=encoded(shelf.sd1, image), strength=0.5,
        output_type="pt", guidance_scale=8.0, sigmas=sigmas(10), num_inference_steps=10,
        generator=torch.Generator().manual_seed(280823642470253),
    ).images.movedim(1, -1)  # fmt: skip
    assert theirs.std() > 0.05
    torch.testing.assert_close(drawn, theirs, rtol=0, atol=0.5 / 255 + CLOSE)


def test_inpainting_equals_diffusers(fabric: Any, shelf: Shelf, tmp_path: Path) -> None:
    """The pipeline blends latents after each step, the workflow around each: the same for euler."""
    from diffusers import StableDiffusionInpaintPipeline

    image, mask = erased(tmp_path)
    graph = example("inpaint.json", n6__steps=5, n6__denoise=0.5, n3__vae=["1", 2])
    graph["3"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["2", 0], "vae": ["1", 2]}}
    graph["9"] = {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["3", 0], "mask": ["2", 1]}}
    graph["6"]["inputs"]["latent_image"] = ["9", 0]
    result = fabric.run_workflow(placed(graph, tmp_path), output_dir=tmp_path)
    drawn = torch.from_numpy(np.asarray(Image.open(result.files[0]), np.float32) / 255)[None]

    pipeline = StableDiffusionInpaintPipeline(**shelf.sd1.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    latent = encoded(shelf.sd1, image)
    theirs = pipeline(
        "a cat on a bench", negative_prompt="watermark, text", image=latent, mask_image=mask,
        masked_image_latents=latent, height=64, width=64, strength=0.5, output_type="pt", guidance_scale=8.0,
        sigmas=sigmas(10),
        num_inference_steps=10, generator=torch.Generator().manual_seed(1040111309094545),
    ).images.movedim(1, -1)  # fmt: skip
    assert theirs.std() > 0.05
    torch.testing.assert_close(drawn, theirs, rtol=0, atol=0.5 / 255 + CLOSE)


def test_inpainting_keeps_what_the_mask_leaves(fabric: Any, shelf: Shelf, tmp_path: Path) -> None:
    erased(tmp_path)
    graph = example("inpaint.json", n6__steps=4)
    del graph["7"], graph["8"]
    sampled = fabric.run_workflow(placed(graph, tmp_path)).values["6"]["latent"]
    del graph["6"]
    graph = {key: graph[key] for key in ("1", "2", "3")}
    given = fabric.run_workflow(placed(graph, tmp_path)).values["3"]["latent"]
    kept = given["noise_mask"][:, :, 3::8, 3::8] == 0
    assert kept.any()
    assert not kept.all()
    changed = (sampled["samples"] - given["samples"]).abs().amax(1, keepdim=True)
    assert changed[kept].max() < 1e-4
    assert changed[given["noise_mask"][:, :, 4::8, 4::8] == 1].min() > 1e-3


def lora_of(pipeline: Any, spelling: str) -> tuple[dict[str, Tensor], dict[str, tuple[Any, Tensor]]]:
    """A LoRA in a trainer's spelling, and what it adds: weight's name → (layer, change)."""
    generator = torch.Generator().manual_seed(9)
    chosen = {
        "unet": ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "conv_in",
                 "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0", "up_blocks.1.resnets.1.conv1"),
        "text_encoder": ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc2"),
    }  # fmt: skip
    tensors, changes = {}, {}
    for part, names in chosen.items():
        for name in names:
            layer = getattr(pipeline, part).get_submodule(name)
            weight, rank = layer.weight, 3
            down = torch.randn(rank, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
            up = torch.randn(weight.shape[0], rank, *[1] * (weight.dim() - 2), generator=generator) / rank**0.5
            change = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
            full = name if part == "unet" else "text_model." + name
            if spelling == "diffusers":
                tensors |= {f"{part}.{full}.lora_A.weight": down, f"{part}.{full}.lora_B.weight": up}
            else:
                prefix = "lora_unet_" if part == "unet" else "lora_te_"
                if spelling == "original" and part == "unet":
                    full = small_models._ldm_unet_name(name + ".weight", 1).removesuffix(".weight")
                key = prefix + full.replace(".", "_")
                alpha = torch.tensor(1.5)
                tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": alpha}
                change = change * 1.5 / rank
            changes[f"{part}.{name}"] = (layer, change)
    return tensors, changes


@pytest.mark.parametrize("spelling", ["kohya", "original", "diffusers"])
def test_lora_equals_weights_merged_by_hand(fabric: Any, shelf: Shelf, spelling: str) -> None:
    from safetensors.torch import save_file

    tensors, changes = lora_of(shelf.sd1, spelling)
    save_file(tensors, shelf.under("loras") / f"{spelling}.safetensors")
    values = {"n2__lora_name": f"{spelling}.safetensors", "n6__steps": 4, "n3__width": 64, "n3__height": 64}
    graph = example("lora.json", **values)
    styled = floats(fabric, graph)
    run = {"steps": 4, "cfg": 8.0, "seed": graph["6"]["inputs"]["seed"], "side": 64}
    texts = graph["4"]["inputs"]["text"], graph["5"]["inputs"]["text"]
    plain = reference(shelf.sd1, *texts, **run)
    for name, (layer, change) in changes.items():
        layer.weight += change * (0.8 if name.startswith("unet") else 1.0)
    try:
        alike(styled, reference(shelf.sd1, *texts, **run))
    finally:
        for name, (layer, change) in changes.items():
            layer.weight -= change * (0.8 if name.startswith("unet") else 1.0)
    assert (styled - plain).abs().max() > 0.05, "the LoRA changed nothing"
    del graph["2"]
    graph["6"]["inputs"]["model"], graph["4"]["inputs"]["clip"], graph["5"]["inputs"]["clip"] = (
        ["1", 0],
        ["1", 1],
        ["1", 1],
    )
    alike(floats(fabric, graph), plain)  # the model that it was added to is as it was


def test_a_long_weighted_prompt(fabric: Any, shelf: Shelf) -> None:
    """Rows of 77 tokens one after the other; a weighted token is moved away from the empty prompt's."""
    clip = fabric.run("CheckpointLoaderSimple", params={"ckpt_name": CHECKPOINT})["clip"]

    def encode(text: str) -> Tensor:
        cond: Tensor = fabric.run("CLIPTextEncode", {"clip": clip}, {"text": text})["conditioning"][0][0].clone()
        return cond

    def theirs(text: str) -> Tensor:
        ids = shelf.sd1.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        hidden: Tensor = shelf.sd1.text_encoder(ids).last_hidden_state
        return hidden

    long = "one two three four five six seven eight nine ten " * 10  # 100 tokens
    first, second = (
        "one two three four five six seven eight nine ten " * 7 + "one two three four five",
        long.split()[75:],
    )
    expected = torch.cat([theirs(first), theirs(" ".join(second))], 1)
    torch.testing.assert_close(encode(long), expected, rtol=0, atol=1e-5)

    plain, empty = theirs("a red cat"), theirs("")
    weights = torch.ones(77)
    weights[2] = 1.3
    torch.testing.assert_close(
        encode("a (red:1.3) cat"), empty + (plain - empty) * weights[None, :, None], rtol=0, atol=1e-5
    )
    torch.testing.assert_close(encode("a \\(red\\) cat"), theirs("a (red) cat"), rtol=0, atol=1e-5)


def test_a_prompt_names_an_embedding(fabric: Any, shelf: Shelf) -> None:
    """Its rows are those of "red cat", so it means that; read in the sandbox, pickled or not."""
    ids = shelf.sd1.tokenizer("red cat").input_ids[1:-1]
    rows = shelf.sd1.text_encoder.get_input_embeddings().weight[ids].clone()
    folder = shelf.under("embeddings")
    save_file({"emb_params": rows}, folder / "animal.safetensors")
    torch.save({"string_to_param": {"*": torch.nn.Parameter(rows)}, "step": 3}, folder / "learned.pt")
    clip = fabric.run("CheckpointLoaderSimple", params={"ckpt_name": CHECKPOINT})["clip"]

    def encode(text: str) -> Tensor:
        cond: Tensor = fabric.run("CLIPTextEncode", {"clip": clip}, {"text": text})["conditioning"][0][0].clone()
        return cond

    for name in ("animal", "learned.pt"):
        torch.testing.assert_close(encode(f"a (embedding:{name}:1.2), wet"), encode("a (red cat:1.2), wet"))
    with pytest.raises(ValidationError, match="there is no 'animals' in the folders of models; did you mean 'animal"):
        encode("a embedding:animals")


def test_prompts_for_a_part_of_the_way_run_as_a_workflow(fabric: Any) -> None:
    """One prompt for its first half and the same for its second say what it says throughout."""
    graph = example("text-to-image.json", n5__width=128, n5__height=128, n3__steps=6)
    plain = floats(fabric, graph)

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    graph |= {
        "strong": node("ConditioningSetAreaStrength", conditioning=["6", 0], strength=3),
        "early": node("ConditioningSetTimestepRange", conditioning=["6", 0], start="0.0", end=0.5),
        "late": node("ConditioningSetTimestepRange", conditioning=["strong", 0], start=0.5, end="1"),
        "both": node("ConditioningCombine", conditioning_1=["early", 0], conditioning_2=["late", 0]),
    }
    graph["3"]["inputs"]["positive"] = ["both", 0]
    alike(floats(fabric, graph), plain)
    graph["corner"] = node("ConditioningSetArea", conditioning=["6", 0], width=64, height=64, x=10**4, y=0)
    graph["3"]["inputs"]["positive"] = ["corner", 0]
    with pytest.raises(ValidationError, match="'positive' has an area that lies outside"):
        floats(fabric, graph)


def test_clip_skip(fabric: Any, shelf: Shelf) -> None:
    clip = fabric.run("CheckpointLoaderSimple", params={"ckpt_name": CHECKPOINT})["clip"]
    skipped = fabric.run("CLIPSetLastLayer", {"clip": clip}, {"stop_at_clip_layer": -2})["clip"]
    cond = fabric.run("CLIPTextEncode", {"clip": skipped}, {"text": "a cat"})["conditioning"][0][0]
    ids = shelf.sd1.tokenizer("a cat", padding="max_length", max_length=77, return_tensors="pt").input_ids
    encoder = shelf.sd1.text_encoder
    theirs = encoder.final_layer_norm(encoder(ids, output_hidden_states=True).hidden_states[-2])
    torch.testing.assert_close(cond.clone(), theirs, rtol=0, atol=1e-5)


def test_tiles_equal_the_whole_but_for_what_reaches_across(fabric: Any, shelf: Shelf) -> None:
    vae = fabric.run("VAELoader", params={"vae_name": "diffusers/sd1/vae"})["vae"]
    samples = torch.nn.functional.interpolate(noise(3, 64), scale_factor=4, mode="bicubic")
    whole = fabric.run("VAEDecode", {"vae": vae, "samples": {"samples": samples}})["image"]
    one = {"tile_size": 512, "overlap": 64}
    tiled = fabric.run("VAEDecodeTiled", {"vae": vae, "samples": {"samples": samples}}, one)["image"]
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
    tiled = fabric.run(
        "VAEDecodeTiled", {"vae": vae, "samples": {"samples": samples}}, {"tile_size": 128, "overlap": 64}
    )
    assert tiled["image"].shape == whole.shape == (1, 256, 256, 3)
    # Norms and the middle's attention see a whole tile, so tiles differ; but less than a shuffled picture would.
    difference = (tiled["image"] - whole).abs().mean()
    assert 0 < difference < 0.5 * (whole.roll(64, 2) - whole).abs().mean()


@pytest.mark.parametrize("name", ["sd3.safetensors", "diffusers/sd3"])
def test_a_flow_model_equals_diffusers(fabric: Any, flow: Any, name: str) -> None:
    texts = ("a red (barn:1.0)", "grey")
    graph = example(
        "text-to-image.json", n4__ckpt_name=name, n6__text=texts[0], n7__text=texts[1], n5__width=64, n5__height=64,
        n3__steps=5, n3__cfg=4.0, n3__seed=11, n3__sampler_name="euler", n3__scheduler="normal",
    )  # fmt: skip
    graph["5"]["class_type"] = "EmptySD3LatentImage"
    alike(floats(fabric, graph), flow_reference(flow, "a red barn", texts[1], steps=5, cfg=4.0, seed=11, side=64))


def test_a_flow_s_shift_equals_diffusers(fabric: Any, flow: Any) -> None:
    graph = example(
        "text-to-image.json", n4__ckpt_name="sd3.safetensors", n6__text="a red barn", n7__text="grey", n5__width=64,
        n5__height=64, n3__steps=5, n3__cfg=4.0, n3__seed=11, n3__sampler_name="euler", n3__scheduler="normal",
    )  # fmt: skip
    graph["5"]["class_type"] = "EmptySD3LatentImage"
    graph["shift"] = {"class_type": "ModelSamplingSD3", "inputs": {"model": ["4", 0], "shift": 1.5}}
    graph["3"]["inputs"]["model"] = ["shift", 0]
    run = {"steps": 5, "cfg": 4.0, "seed": 11, "side": 64}
    drawn = floats(fabric, graph)
    alike(drawn, flow_reference(flow, "a red barn", "grey", shift=1.5, **run))
    assert (drawn - flow_reference(flow, "a red barn", "grey", **run)).abs().max() > 0.02


def test_zero_terminal_velocity_equals_diffusers(fabric: Any, shelf: Shelf) -> None:
    """Said by the node, by the file, and by a folder's scheduler."""
    from diffusers import EulerDiscreteScheduler
    from safetensors.torch import load_file

    whole = load_file(shelf.folder / "checkpoints" / "sdxl.safetensors")
    signs = {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}
    save_file({**whole, **signs}, shelf.folder / "checkpoints" / "sdxl_v.safetensors")
    kept = shelf.sdxl.scheduler
    shelf.sdxl.scheduler = EulerDiscreteScheduler.from_config(
        kept.config, prediction_type="v_prediction", rescale_betas_zero_snr=True
    )
    small_models.save_folder(shelf.sdxl, shelf.folder / "diffusers" / "sdxl_v")
    model = DiffusionModel(lambda *_: None, sigmas=zero_terminal(stable_diffusion_sigmas()))  # type: ignore[arg-type,return-value]
    try:
        run = {"steps": 6, "cfg": 4.5, "seed": 5, "side": 64}
        texts = "a red barn", "grey"
        theirs = reference(shelf.sdxl, *texts, **run, levels=sigmas_for(model, "normal", 6))
    finally:
        shelf.sdxl.scheduler = kept
    for name in ("sdxl.safetensors", "sdxl_v.safetensors", "diffusers/sdxl_v"):
        graph = example(
            "text-to-image.json", n4__ckpt_name=name, n6__text=texts[0], n7__text=texts[1], n5__width=64,
            n5__height=64, n3__steps=6, n3__cfg=4.5, n3__seed=5,
        )  # fmt: skip
        if name == "sdxl.safetensors":
            inputs = {"model": ["4", 0], "sampling": "v_prediction", "zsnr": True}
            graph["v"] = {"class_type": "ModelSamplingDiscrete", "inputs": inputs}
            graph["3"]["inputs"]["model"] = ["v", 0]
        alike(floats(fabric, graph), theirs)


def test_a_consistency_model_equals_diffusers(fabric: Any, shelf: Shelf) -> None:
    """The same times: LCM's own are those of the schedule ``simple``. Noise is added between its steps."""
    from diffusers import LCMScheduler

    graph = example(
        "text-to-image.json", n6__text="a red barn", n7__text="grey", n5__width=64, n5__height=64, n3__steps=4,
        n3__cfg=1.5, n3__seed=5, n3__sampler_name="lcm", n3__scheduler="simple",
    )  # fmt: skip
    graph["lcm"] = {"class_type": "ModelSamplingDiscrete", "inputs": {"model": ["4", 0], "sampling": "lcm"}}
    graph["3"]["inputs"]["model"] = ["lcm", 0]
    kept = shelf.sd1.scheduler
    shelf.sd1.scheduler = LCMScheduler()  # its defaults are Stable Diffusion's
    try:
        theirs = shelf.sd1(
            "a red barn", negative_prompt="grey", guidance_scale=1.5, latents=noise(5, 64), output_type="pt",
            num_inference_steps=4, height=64, width=64, generator=torch.Generator().manual_seed(6),
        ).images.movedim(1, -1)  # fmt: skip
    finally:
        shelf.sd1.scheduler = kept
    alike(floats(fabric, graph), theirs)
