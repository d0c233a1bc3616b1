"""ControlNets in workflows against diffusers' pipelines on the same weights, picture, noise and sigmas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from pipeline_runs import alike, example, noise, sigmas
from safetensors.torch import save_file
from shelf import QUIET
from torch import Tensor

import vortex_worker as vw
from vortex_worker.errors import ValidationError
from vortex_worker.executor.diffusion import controlnets
from vortex_worker.executor.nodes.controlnet import ControlNetApply, ControlNetApplyAdvanced

diffusers = pytest.importorskip("diffusers")
pytestmark = QUIET
TEXTS, STEPS, CFG, SEED, SIDE = ("a red barn", "grey"), 4, 4.5, 5, 64
CPU = torch.device("cpu")


def written(tensors: dict[str, Tensor], path: Path, prefix: str = "") -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({prefix + name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


class Shelf:
    """Three families, and for each its ControlNet under three spellings; for the first a second one, too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pipelines = {"sd1": small_models.sd1(), "sd2": small_models.sd2(), "sdxl": small_models.sdxl()}
        self.nets = {}
        (folder / "checkpoints").mkdir()
        for family, pipeline in self.pipelines.items():
            sign = {"v_pred": torch.zeros(1)} if family == "sd2" else None
            small_models.save_file(pipeline, folder / "checkpoints" / f"{family}.safetensors", sign)
            net = self.nets[family] = small_models.controlnet(pipeline.unet)
            written(net.state_dict(), folder / "controlnet" / f"{family}_theirs.safetensors")
            written(small_models.ldm_controlnet(net), folder / "controlnet" / f"{family}_bare.safetensors")
            names = small_models.ldm_controlnet(net)
            written(names, folder / "controlnet" / f"{family}_control.safetensors", "control_model.")
        narrow = small_models.unet(cross_attention_dim=64, attention_head_dim=8, block_out_channels=(32, 32, 32))
        written(small_models.controlnet(narrow).state_dict(), folder / "controlnet" / "narrow.safetensors")
        self.nets["second"] = small_models.controlnet(self.pipelines["sd1"].unet, seed=12)
        written(self.nets["second"].state_dict(), folder / "controlnet" / "second.safetensors")

    def reference(self, family: str, nets: Any, images: Any, **more: Any) -> Tensor:
        """diffusers' picture, [1, height, width, 3]."""
        parts = {**self.pipelines[family].components, "controlnet": nets}
        more = {"controlnet_conditioning_scale": 0.8, **more}
        if family == "sdxl":
            pipeline = diffusers.StableDiffusionXLControlNetPipeline(**parts)
        else:
            pipeline = diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        out: Tensor = pipeline(
            TEXTS[0], negative_prompt=TEXTS[1], image=images, guidance_scale=CFG, latents=noise(SEED, SIDE),
            output_type="pt", sigmas=sigmas(STEPS), num_inference_steps=STEPS, height=SIDE, width=SIDE, **more,
        ).images  # fmt: skip
        return out.movedim(1, -1)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def fabric(shelf: Shelf) -> Any:
    with vw.Fabric(1, standby=0, models=shelf.folder, lease_size=64 << 20, client_size=64 << 20) as fabric:
        yield fabric.wait_ready(60)


def picture(colour: int) -> tuple[dict[str, Any], Tensor]:
    """A node that gives it, and the same for diffusers."""
    node = {"class_type": "EmptyImage", "inputs": {"width": SIDE, "height": SIDE, "batch_size": 1, "color": colour}}
    channels = torch.tensor([colour >> 16, (colour >> 8) & 255, colour & 255]) / 255
    return node, channels.reshape(1, 3, 1, 1).expand(1, 3, SIDE, SIDE).contiguous()


def drawn(fabric: Any, family: str, *nets: tuple[str, int, dict[str, Any]], simple: bool = False) -> Tensor:
    """A run with ControlNets one after the other: file, colour of the picture, settings."""
    graph = example(
        "text-to-image.json", n4__ckpt_name=f"{family}.safetensors", n6__text=TEXTS[0], n7__text=TEXTS[1],
        n5__width=SIDE, n5__height=SIDE, n3__steps=STEPS, n3__cfg=CFG, n3__seed=SEED,
    )  # fmt: skip
    sampler = graph["3"]["inputs"]
    for place, (file, colour, settings) in enumerate(nets):
        graph[f"net{place}"] = {"class_type": "ControlNetLoader", "inputs": {"control_net_name": file}}
        graph[f"image{place}"] = picture(colour)[0]
        inputs = {"control_net": [f"net{place}", 0], "image": [f"image{place}", 0], "strength": 0.8, **settings}
        if simple:
            inputs["conditioning"] = sampler["positive"]
            graph[f"apply{place}"] = {"class_type": "ControlNetApply", "inputs": inputs}
            sampler["positive"] = [f"apply{place}", 0]
        else:
            inputs |= {"positive": sampler["positive"], "negative": sampler["negative"]}
            graph[f"apply{place}"] = {"class_type": "ControlNetApplyAdvanced", "inputs": inputs}
            sampler["positive"], sampler["negative"] = [f"apply{place}", 0], [f"apply{place}", 1]
    (save,) = (key for key, node in graph.items() if node["class_type"] == "SaveImage")
    del graph[save]
    image: Tensor = fabric.run_workflow(graph, outputs=["8"]).values["8"]["image"].clone()
    return image


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("spelling", ["theirs", "bare", "control"])
def test_a_controlnet_equals_diffusers(fabric: Any, shelf: Shelf, family: str, spelling: str) -> None:
    image = drawn(fabric, family, (f"{family}_{spelling}.safetensors", 0xFF8020, {}))
    alike(image, shelf.reference(family, shelf.nets[family], picture(0xFF8020)[1]))
    assert (image - drawn(fabric, family)).abs().max() > 0.05, "the ControlNet changed nothing"


def test_the_simple_node_asks_the_negative_with_it_too(fabric: Any, shelf: Shelf) -> None:
    image = drawn(fabric, "sd1", ("sd1_theirs.safetensors", 0xFF8020, {}), simple=True)
    alike(image, shelf.reference("sd1", shelf.nets["sd1"], picture(0xFF8020)[1]))


def test_two_of_them_add_up(fabric: Any, shelf: Shelf) -> None:
    nets = [("sd1_theirs.safetensors", 0xFF8020, {}), ("second.safetensors", 0x2040FF, {"strength": 0.3})]
    theirs = shelf.reference(
        "sd1", [shelf.nets["sd1"], shelf.nets["second"]], [picture(0xFF8020)[1], picture(0x2040FF)[1]],
        controlnet_conditioning_scale=[0.8, 0.3],
    )  # fmt: skip
    alike(drawn(fabric, "sd1", *nets), theirs)
    alike(drawn(fabric, "sd1", *nets, simple=True), theirs)


def test_one_twice_is_one_of_twice_the_strength(fabric: Any) -> None:
    twice = drawn(fabric, "sd1", *[("second.safetensors", 0x2040FF, {"strength": 0.25})] * 2)
    once = drawn(fabric, "sd1", ("second.safetensors", 0x2040FF, {"strength": 0.5}))
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-4)


def test_a_part_of_the_way(fabric: Any, shelf: Shelf) -> None:
    """Of four steps diffusers keeps it for the second and third; here the way is the table's: 999, 666, 333, 0."""
    settings = {"start_percent": 0.2, "end_percent": 0.7}
    theirs = shelf.reference(
        "sd1", shelf.nets["sd1"], picture(0xFF8020)[1], control_guidance_start=0.25, control_guidance_end=0.75
    )  # fmt: skip
    image = drawn(fabric, "sd1", ("sd1_theirs.safetensors", 0xFF8020, settings))
    alike(image, theirs)
    off = drawn(fabric, "sd1", ("sd1_theirs.safetensors", 0xFF8020, {"strength": 0.0}))
    assert torch.equal(off, drawn(fabric, "sd1"))


def test_one_of_another_family_is_refused(fabric: Any) -> None:
    with pytest.raises(ValidationError, match="'positive' has a ControlNet of another family, for text of width 192"):
        drawn(fabric, "sd1", ("sdxl_theirs.safetensors", 0, {}))


def test_one_for_another_unet_of_the_family_is_refused(fabric: Any) -> None:
    with pytest.raises(ValidationError, match=r"'positive' has a ControlNet for another U-Net: .*\(32, 32, 32\)"):
        drawn(fabric, "sd1", ("narrow.safetensors", 0, {}))


def test_one_whose_picture_gets_no_latents_size_is_refused(tmp_path: Path, shelf: Shelf) -> None:
    theirs = diffusers.ControlNetModel.from_unet(
        shelf.pipelines["sd1"].unet, load_weights_from_unet=False, conditioning_embedding_out_channels=(16, 32)
    )
    path = written(theirs.state_dict(), tmp_path / "controlnet" / "hint.safetensors")
    with pytest.raises(ValidationError, match="makes its picture 2 times smaller: it takes one for latents, of 8"):
        controlnets.load(path, CPU)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"zero_convs.0.0.bias": None},
            r"no Stable Diffusion 1 ControlNet: it lacks 1 of \d+: controlnet_down_blocks.0",
        ),
        ({"input_hint_block.0.weight": None}, "is a damaged ControlNet: it lacks"),
        ({"more": torch.ones(1)}, "it has 1 unexpected: more"),
        ({"time_embed.0.weight": torch.ones(3, 3)}, r"shapes differ: .*\[3, 3\]"),
        ({"middle_block_out.0.weight": torch.ones(0)}, "is a damaged ControlNet: middle_block_out.0.weight are empty"),
        ({"lora_controlnet": torch.ones(1)}, "is a control LoRA, which isn't supported"),
        ({"task_embedding": torch.ones(1)}, "is a union of ControlNets, which isn't supported"),
    ],
)
def test_damaged_ones_are_refused(tmp_path: Path, shelf: Shelf, changes: dict[str, Any], said: str) -> None:
    tensors = {**small_models.ldm_controlnet(shelf.nets["sd1"]), **changes}
    path = written({k: v for k, v in tensors.items() if v is not None}, tmp_path / "x.safetensors")
    with pytest.raises(ValidationError, match=said):
        controlnets.load(path, CPU)


def test_what_is_no_controlnet(tmp_path: Path, shelf: Shelf) -> None:
    path = written(small_models.ldm_unet(shelf.pipelines["sd1"].unet), tmp_path / "unet.safetensors")
    with pytest.raises(ValidationError, match=r"unet.safetensors is no ControlNet: it has input_blocks"):
        controlnets.load(path, CPU)
    path.write_bytes(path.read_bytes()[:-999])
    with pytest.raises(ValidationError, match="is no sound safetensors file"):
        controlnets.load(path, CPU)


def test_conditionings_that_were_made_up_are_refused(shelf: Shelf) -> None:
    """As a custom node may give them."""
    from vortex_worker.executor.diffusion import single_file
    from vortex_worker.executor.nodes.sampling.conditioning import problem_of
    from vortex_worker.executor.nodes.sampling.control import control
    from vortex_worker.executor.nodes.sampling.model import DiffusionModel

    model, clip, _ = single_file.load(shelf.folder / "checkpoints" / "sd1.safetensors", CPU)
    net = controlnets.load(shelf.folder / "controlnet" / "sd1_theirs.safetensors", CPU)
    cond, pooled = clip.encode("a barn")
    good, like = control(net, torch.ones(1, 3, 8, 8), 1.0), torch.zeros(2, 4, 8, 8)

    def said(given: Any, model: DiffusionModel = model) -> str | None:
        return problem_of(model, [[cond, {"pooled_output": pooled, "control": given}]], "positive", like)

    assert said([good]) is None
    for bad in (
        "x",
        None,
        0,
        {},
        [1],
        good,
        [{}],
        [{**good, "more": 1}],
        [{key: good[key] for key in ("network", "hint")}],
    ):
        assert "has a bad control: it takes a list of" in (said(bad) or "")
    for hint in ("x", torch.ones(3, 8, 8), torch.ones(3, 3, 8, 8), torch.ones(1, 1, 8, 8), torch.ones(1, 3, 0, 8)):
        assert "with a bad picture: it takes [1 or 2, 3, height, width]" in (said([{**good, "hint": hint}]) or "")
    many = [[cond, {"pooled_output": pooled, "control": [{**good, "hint": torch.ones(3, 3, 8, 8)}]}]]
    told = problem_of(model, many, "positive", like[:1])
    assert told == "'positive' has a ControlNet with a bad picture: it takes [1, 3, height, width]; it has 3 pictures"
    for key, value in (("strength", float("nan")), ("start", "x"), ("end", None)):
        assert "is no finite number" in (said([{**good, key: value}]) or "")
    assert "of another family" in (said([{**good, "network": object()}]) or "")
    flow = DiffusionModel(lambda *_: None, parametrization="flow")  # type: ignore[arg-type,return-value]
    assert "are for U-Nets: this model has none" in (said([good], flow) or "")


@pytest.mark.parametrize("bad", [0, None, "x", {}])
def test_a_made_up_control_is_given_no_other(shelf: Shelf, bad: Any) -> None:
    net = controlnets.load(shelf.folder / "controlnet" / "sd1_theirs.safetensors", CPU)
    fine, made_up = ([[torch.ones(1, 77, 64), options]] for options in ({}, {"control": bad}))
    inputs = {"control_net": net, "image": torch.ones(1, 8, 8, 3)}
    said = "has a bad control: it takes a list"
    (told,) = ControlNetApply().validate({**inputs, "conditioning": made_up}, {})
    assert f"'conditioning' {said}" in told
    (told,) = ControlNetApplyAdvanced().validate({**inputs, "positive": fine, "negative": made_up}, {})
    assert f"'negative' {said}" in told


def test_a_picture_of_another_shape_is_cut_and_resized(shelf: Shelf) -> None:
    """Around the middle, to the nearest pixel, as ComfyUI does."""
    net = controlnets.load(shelf.folder / "controlnet" / "sd1_theirs.safetensors", CPU)
    wide = torch.rand(1, 3, 32, 96, generator=torch.Generator().manual_seed(0))
    fitted = wide[..., 32:64].repeat_interleave(2, -1).repeat_interleave(2, -2)
    x, t, cond = torch.ones(1, 4, 8, 8), torch.tensor([500.0]), torch.ones(1, 77, 64)
    for ours, theirs in zip(net(x, t, cond, wide), net(x, t, cond, fitted), strict=True):
        assert torch.equal(ours, theirs)
