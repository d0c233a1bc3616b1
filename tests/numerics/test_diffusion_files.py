"""Files of models: mapped, never copied; and what is missing or wrong with them, told when they are loaded."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from safetensors.torch import load_file, save_file
from shelf import CHECKPOINT, QUIET, Shelf

import vortex_worker as vw
from vortex_worker.errors import ExecutionError, ObjectLost, ValidationError, WorkerLost, WorkflowError

pytestmark = QUIET


def test_weights_stay_in_the_file(shelf: Shelf) -> None:
    """Two workers on one model hold it once: its pages are the file's, not anybody's own."""
    name = shelf.folder / "checkpoints" / "sdxl.safetensors"
    with vw.Fabric(2, standby=0, models=shelf.folder, lease_size=64 << 20, client_size=64 << 20) as fabric:
        fabric.wait_ready(60)
        jobs = [fabric.submit("CheckpointLoaderSimple", params={"ckpt_name": name.name}) for _ in range(2)]
        held = [job.result() for job in jobs]
        assert len({job.worker for job in jobs}) == 2
        for worker in fabric.workers():
            own = mapped = 0
            for block in Path(f"/proc/{worker['pid']}/smaps").read_text().split("VmFlags")[:-1]:
                if name.name in block:
                    sizes = dict(line.split(":", 1) for line in block.splitlines() if " kB" in line)
                    mapped += int(sizes["Size"].split()[0])
                    own += int(sizes["Anonymous"].split()[0])  # copied on write
            assert mapped >= name.stat().st_size // 1024
            assert own == 0
        del held


def test_models_that_are_not_there_are_told_before_anything_runs(fabric: Any) -> None:
    workflow = {
        "load": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sdxl.ckpt"}},
        "style": {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["load", 0], "lora_name": "../secret.safetensors"},
        },
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "kl-f8.safetensors"}},
    }
    with pytest.raises(WorkflowError) as caught:
        fabric.run_workflow(workflow, outputs=list(workflow))
    told = dict(caught.value.problems)
    assert told["load"].startswith(
        "'ckpt_name': there is no 'sdxl.ckpt' in the folders of models; did you mean 'sdxl.safetensors'"
    )
    assert "There are: sdxl.safetensors, " in told["load"]
    assert "is no name of a model" in told["style"]
    assert "there is no 'kl-f8.safetensors'" in told["vae"]
    errors = caught.value.node_errors
    assert {errors[node]["errors"][0]["type"] for node in workflow} == {"value_not_in_list"}
    assert errors["load"]["errors"][0]["extra_info"] == {"input_name": "ckpt_name", "received_value": "sdxl.ckpt"}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("truncated", "is no sound safetensors file"),
        ("header", "is no sound safetensors file"),
        ("missing", r"the weights are no Stable Diffusion 1 U-Net: it lacks 1 of \d+: conv_out.bias"),
        ("unexpected", r"the weights are no VAE: it has 7 unexpected: .* and 2 more"),
        ("misshapen", r"shapes differ: conv_out.weight \[4, 32, 1, 1\] instead of"),
        ("other", "is no checkpoint: it has a, b"),
        ("pickle", "is a pickle, and loading it would run its code"),
        (
            "absent",
            "there is no 'v1-5-pruned-emaonly.ckpt' in the folders of models; did you mean 'v1-5-pruned-emaonly",
        ),
        ("outside", "is no name of a model"),
    ],
)
def test_bad_checkpoints_are_refused(fabric: Any, shelf: Shelf, damage: str, said: str) -> None:
    good, path = shelf.folder / "checkpoints" / CHECKPOINT, shelf.under("bad") / f"{damage}.safetensors"
    tensors = load_file(good)
    match damage:
        case "truncated":
            path.write_bytes(good.read_bytes()[:-1000])
        case "header":
            path.write_bytes(b"\xff" * 8 + good.read_bytes()[8:4096])
        case "missing":
            del tensors["model.diffusion_model.out.2.bias"]
        case "unexpected":
            tensors |= {f"first_stage_model.encoder.down.0.block.0.extra{i}": torch.zeros(1) for i in range(7)}
        case "misshapen":
            tensors["model.diffusion_model.out.2.weight"] = torch.zeros(4, 32, 1, 1)
        case "other":
            tensors = {"a": torch.zeros(1), "b": torch.zeros(1)}
        case "pickle":
            path = path.with_suffix(".ckpt")
            path.write_bytes(b"\x80\x04.")
    name = {"absent": "v1-5-pruned-emaonly.ckpt", "outside": "../secret.safetensors"}.get(damage, f"bad/{path.name}")
    if damage in ("missing", "unexpected", "misshapen", "other"):
        save_file(tensors, path)
    with pytest.raises(ValidationError, match=said):
        fabric.run("CheckpointLoaderSimple", params={"ckpt_name": name})


def test_a_model_takes_its_own_conditioning(fabric: Any) -> None:
    sd1 = fabric.run("CheckpointLoaderSimple", params={"ckpt_name": CHECKPOINT})
    sdxl = fabric.run("CheckpointLoaderSimple", params={"ckpt_name": "sdxl.safetensors"})
    cond = fabric.run("CLIPTextEncode", {"clip": sd1["clip"]}, {"text": "a cat"})["conditioning"]
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    with pytest.raises(ValidationError, match=r"'positive' is of width 64: this model takes 192"):
        fabric.run("KSampler", {"model": sdxl["model"], "positive": cond, "negative": cond, "latent": latent})
    wrong = {"samples": torch.ones(1, 16, 8, 8)}
    with pytest.raises(ValidationError, match=r"'latent' has 16 channels: it takes 4"):
        fabric.run("KSampler", {"model": sd1["model"], "positive": cond, "negative": cond, "latent": wrong})
    for shape in ((4, 8, 8), (1, 4, 1, 8, 8)):
        flat = {"samples": torch.zeros(shape)}
        with pytest.raises(
            ValidationError, match=r"'latent' is a tensor .*: it takes \[batch, channels, height, width\]"
        ):
            fabric.run("KSampler", {"model": sd1["model"], "positive": cond, "negative": cond, "latent": flat})
    for dtype in (torch.int8, torch.complex64):
        whole = {"samples": torch.ones(1, 4, 8, 8, dtype=dtype)}
        with pytest.raises(ValidationError, match=f"'samples' is of {dtype}: it takes a floating-point tensor"):
            fabric.run("VAEDecode", {"vae": sd1["vae"], "samples": whole})
    large = fabric.run("CLIPTextEncode", {"clip": sdxl["clip"]}, {"text": "a cat"})["conditioning"]
    narrow = [[large[0][0], {"pooled_output": torch.zeros(1, 5)}]]
    with pytest.raises(ValidationError, match="'negative' has a pooled_output of width 5: this model takes 128"):
        fabric.run("KSampler", {"model": sdxl["model"], "positive": large, "negative": narrow, "latent": latent})


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ("text_encoders.", "has no text encoders"),
        ("model.diffusion_model.x_embedder.proj.weight", "damaged Stable Diffusion 3 checkpoint: it lacks"),
        ("model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight", "damaged Stable Diffusion 3|it lacks 1 of"),
        ("first_stage_model.decoder.conv_in.bias", "the weights are no VAE: it lacks 1 of"),
    ],
)
def test_a_damaged_flow_model_is_refused(fabric: Any, flow: Any, shelf: Shelf, without: str, said: str) -> None:
    tensors = load_file(shelf.folder / "checkpoints" / "sd3.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(without)}
    save_file(kept, shelf.under("bad") / "sd3.safetensors")
    with pytest.raises(ValidationError, match=said):
        fabric.run("CheckpointLoaderSimple", params={"ckpt_name": "bad/sd3.safetensors"})


def _load(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"load": {"class_type": class_type, "inputs": inputs}}


def _text(text: Any) -> dict[str, Any]:
    return {
        **_load("CLIPLoader", clip_name="overwritten/clip.safetensors"),
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 0], "text": text}},
    }


@pytest.mark.parametrize(
    ("workflow", "file", "again"),
    [
        (_load("CheckpointLoaderSimple", ckpt_name="overwritten/sd.safetensors"), "sd.safetensors", {"load"}),
        (_load("DiffusersLoader", model_path="overwritten/folder"), "folder/vae/config.json", {"load"}),
        (_load("VAELoader", vae_name="overwritten/vae.safetensors"), "vae.safetensors", {"load"}),
        (_text("a cat"), "clip.safetensors", {"load", "text"}),
        (_text("a (embedding:overwritten/style:1.2), cat"), "style.safetensors", {"text"}),
        (_text("a cat"), "style.safetensors", set()),
    ],
    ids=["checkpoint", "folder", "vae", "text encoder", "embedding", "not named"],
)
@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_file_that_was_overwritten_is_loaded_anew(
    fabric: Any, shelf: Shelf, workflow: dict[str, Any], file: str, again: set[str], how: str
) -> None:
    """Of the same size, and of the same date: by its name alone it would be taken for what it was."""
    folder = shelf.under("overwritten")
    if not (folder / "folder").exists():
        shutil.copytree(shelf.folder / "diffusers" / "sd1", folder / "folder")
        small_models.save_file(shelf.sd1, folder / "sd.safetensors")
        save_file(small_models.clip_file(shelf.sd1.text_encoder, "clip_l"), folder / "clip.safetensors")
        save_file(dict(shelf.sd1.vae.state_dict()), folder / "vae.safetensors")
        save_file({"emb_params": torch.ones(1, 64)}, folder / "style.safetensors")

    def ran() -> set[str]:
        return {node["id"] for node in fabric.run_workflow(workflow).nodes}

    ran()
    assert ran() == set()
    path = folder / file
    before, content = path.stat(), path.read_bytes()
    if how == "replaced":
        path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ran() == again
    assert ran() == set()


def test_where_another_node_names_the_file_any_of_its_kind_counts(fabric: Any, shelf: Shelf) -> None:
    folder = shelf.under("loras") / "styles"
    folder.mkdir()
    tensors = {
        f"unet.down_blocks.1.attentions.0.proj_in.lora_{end}.weight": torch.ones(shape)
        for end, shape in (("A", (1, 32, 1, 1)), ("B", (32, 1, 1, 1)))
    }
    save_file(tensors, folder / "a.safetensors")
    workflow = {
        **_load("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "name": {"class_type": "Identity", "inputs": {"tensor": "styles/a.safetensors"}},
        "style": {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["load", 0], "lora_name": ["name", 0], "strength_model": 1.0},
        },
    }

    def ran() -> set[str]:
        return {node["id"] for node in fabric.run_workflow(workflow).nodes}

    assert ran() == {"load", "name", "style"}
    assert ran() == set()
    save_file(tensors, folder / "b.safetensors")
    assert ran() == {"style"}
    assert ran() == set()


@pytest.mark.parametrize(
    ("tensor", "value", "said"),
    [
        ("model.diffusion_model.out.2.bias", "nan", r"the model gave NaN or infinity at step 1 of 2"),
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.weight",
            "nan",
            r"the text encoder gave NaN or infinity for 'a cat'$",
        ),
        ("first_stage_model.decoder.conv_out.bias", "nan", r"the VAE gave NaN or infinity for picture 1 of 1"),
        ("first_stage_model.decoder.conv_out.bias", "inf", r"the VAE gave NaN or infinity for picture 1 of 1"),
        ("first_stage_model.encoder.conv_in.bias", "nan", r"the VAE gave NaN or infinity for picture 1 of 1"),
    ],
    ids=["model", "text", "decoder", "infinite", "encoder"],
)
@pytest.mark.parametrize("tiled", ["", "Tiled"])
def test_a_part_that_gives_nan_is_told_as_that(
    fabric: Any, shelf: Shelf, tmp_path: Path, tensor: str, value: str, said: str, tiled: str
) -> None:
    """And no black picture is saved."""
    tensors = load_file(shelf.folder / "checkpoints" / CHECKPOINT)
    tensors[tensor] = torch.full_like(tensors[tensor], float(value))
    save_file(tensors, shelf.under("bad") / "nan.safetensors")
    graph = {
        **_load("CheckpointLoaderSimple", ckpt_name="bad/nan.safetensors"),
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": "a cat"}},
        "image": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64}},
        "encode": {"class_type": "VAEEncode" + tiled, "inputs": {"vae": ["load", 2], "pixels": ["image", 0]}},
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["load", 0], "positive": ["text", 0], "negative": ["text", 0], "latent_image": ["encode", 0],
                "steps": 2,
            },
        },
        "decode": {"class_type": "VAEDecode" + tiled, "inputs": {"vae": ["load", 2], "samples": ["sample", 0]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0]}},
    }  # fmt: skip
    with pytest.raises(ExecutionError, match=said):
        fabric.run_workflow(graph, output_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_cut_while_its_model_is_in_use_is_told(fabric: Any, shelf: Shelf) -> None:
    """Its weights are the file's pages: where there are none any more, the kernel ends who reads them."""
    good, path = shelf.folder / "checkpoints" / CHECKPOINT, shelf.under("bad") / "cut.safetensors"
    shutil.copy(good, path)
    clip = fabric.run("CheckpointLoaderSimple", params={"ckpt_name": "bad/cut.safetensors"})["clip"]

    def encode() -> Any:
        return fabric.run("CLIPTextEncode", {"clip": clip}, {"text": "a cat"}, retries=0)

    assert encode()
    os.truncate(path, 4096)
    with pytest.raises(
        WorkerLost, match=r"killed by SIGBUS: .* a file that was mapped, a model's say, has become shorter"
    ):
        encode()
    with pytest.raises(ObjectLost, match=r"could not be made again: .*cut.safetensors is no sound safetensors file"):
        encode()
    shutil.copy(good, path)
    assert encode()
