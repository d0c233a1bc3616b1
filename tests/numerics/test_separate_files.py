"""Models in files of their own parts: the picture of a whole workflow is that of the checkpoint they were cut from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from pipeline_runs import alike, example, floats, flow_reference, reference
from safetensors.torch import load_file, save_file
from shelf import QUIET
from torch import Tensor

import vortex_worker as vw
from vortex_worker.errors import WorkflowError

pytestmark = QUIET
PREFIX = "model.diffusion_model."
RUN: dict[str, Any] = {"steps": 4, "cfg": 4.5, "seed": 5, "side": 64}
TEXTS = ("a red barn", "grey")
#: Family → its text encoder's node.
TEXT_NODES: dict[str, dict[str, Any]] = {
    "sd1": {"class_type": "CLIPLoader", "inputs": {"clip_name": "sd1_l.safetensors", "type": "stable_diffusion"}},
    "sd2": {"class_type": "CLIPLoader", "inputs": {"clip_name": "sd2_h.safetensors", "type": "stable_diffusion"}},
    "sdxl": {  # in the other order
        "class_type": "DualCLIPLoader",
        "inputs": {"clip_name1": "sdxl_g.safetensors", "clip_name2": "sdxl_l.safetensors", "type": "sdxl"},
    },
    "sd3": {
        "class_type": "DualCLIPLoader",
        "inputs": {"clip_name1": "sd3_l.safetensors", "clip_name2": "sd3_g.safetensors", "type": "sd3"},
    },
}
#: Family → does its diffusion model's file have the checkpoint's prefix?
PREFIXED = {"sd1": False, "sd2": True, "sdxl": False, "sd3": False}


def save(tensors: dict[str, Tensor], path: Path, **said: str) -> None:
    path.parent.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, said or None)


class Parts:
    """Checkpoints, and what they were cut into. Text encoders are as deep as the real ones, which tells them apart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pipelines = {
            "sd1": small_models.sd1(),
            "sd2": small_models.sd2(layers=23),
            "sdxl": small_models.sdxl(layers=32),
            "sd3": small_models.sd3(layers=32, joint=4096),
        }
        (folder / "checkpoints").mkdir()
        for family, pipeline in self.pipelines.items():
            pipeline.set_progress_bar_config(disable=True)
            whole = folder / "checkpoints" / f"{family}.safetensors"
            small_models.save_file(pipeline, whole, {"v_pred": torch.zeros(1)} if family == "sd2" else None)
            self._cut(family, load_file(whole))
            first = small_models.clip_file(pipeline.text_encoder, "clip_l")
            save(first, folder / "text_encoders" / f"{family}_{'h' if family == 'sd2' else 'l'}.safetensors")
            if second := getattr(pipeline, "text_encoder_2", None):
                tensors = small_models.clip_file(second, "clip_g") | {"logit_scale": torch.tensor(4.6)}
                save(tensors, folder / "text_encoders" / f"{family}_g.safetensors")

    def _cut(self, family: str, whole: dict[str, Tensor]) -> None:
        model = {name: tensor for name, tensor in whole.items() if name.startswith((PREFIX, "v_pred"))}
        if not PREFIXED[family]:
            model = {name.removeprefix(PREFIX): tensor for name, tensor in model.items()}
        save(model, self.folder / "diffusion_models" / f"{family}.safetensors")
        head = "first_stage_model."
        vae = {name.removeprefix(head): tensor for name, tensor in whole.items() if name.startswith(head)}
        save(vae, self.folder / "vae" / f"{family}.safetensors")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def fabric(parts: Parts) -> Any:
    with vw.Fabric(1, standby=0, models=parts.folder, lease_size=64 << 20, client_size=64 << 20) as fabric:
        yield fabric.wait_ready(60)


def graph_of(family: str, **values: Any) -> dict[str, Any]:
    graph = example(
        "text-to-image.json", n4__ckpt_name=f"{family}.safetensors", n6__text=TEXTS[0], n7__text=TEXTS[1],
        n5__width=RUN["side"], n5__height=RUN["side"], n3__steps=RUN["steps"], n3__cfg=RUN["cfg"],
        n3__seed=RUN["seed"], n3__sampler_name="euler", n3__scheduler="normal", **values,
    )  # fmt: skip
    if family.startswith("sd3"):
        graph["5"]["class_type"] = "EmptySD3LatentImage"
    return graph


def of_parts(graph: dict[str, Any], family: str, text: dict[str, Any] | None = None) -> dict[str, Any]:
    """The graph with each of the checkpoint's outputs from a loader of its own."""
    name = f"{family}.safetensors"
    graph = {**graph, "unet": {"class_type": "UNETLoader", "inputs": {"unet_name": name, "weight_dtype": "default"}}}
    graph["clip"] = text or TEXT_NODES[family]
    graph["vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": name}}
    del graph["4"]
    for node in graph.values():
        for key, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == "4":
                node["inputs"][key] = [("unet", "clip", "vae")[value[1]], 0]
    return graph


def same(some: Tensor, others: Tensor) -> None:
    torch.testing.assert_close(some, others, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", TEXT_NODES)
def test_parts_draw_what_their_checkpoint_draws(fabric: Any, parts: Parts, family: str) -> None:
    """To float32's last digits: in another file a weight lies at another address, and BLAS sums in another order."""
    drawn = floats(fabric, of_parts(graph_of(family), family))
    same(drawn, floats(fabric, graph_of(family)))
    alike(drawn, (flow_reference if family == "sd3" else reference)(parts.pipelines[family], *TEXTS, **RUN))


@pytest.fixture(scope="module")
def three(parts: Parts) -> Any:
    """Stable Diffusion 3 with its T5."""
    pipeline = small_models.sd3(layers=32, third=small_models.t5(256))
    pipeline.set_progress_bar_config(disable=True)
    model = small_models.mmdit(pipeline.transformer)
    save(model, parts.folder / "diffusion_models" / "sd3t5.safetensors")
    save(small_models.ldm_vae(pipeline.vae), parts.folder / "vae" / "sd3t5.safetensors")
    save(small_models.t5_file(pipeline.text_encoder_3), parts.folder / "text_encoders" / "t5xxl.safetensors")
    small_models.save_file(pipeline, parts.folder / "checkpoints" / "sd3t5.safetensors")
    small_models.save_folder(pipeline, parts.folder / "checkpoints" / "sd3t5")
    return pipeline


TRIPLE = {f"clip_name{place + 1}": f"{name}.safetensors" for place, name in enumerate(("t5xxl", "sd3_l", "sd3_g"))}


def test_stable_diffusion_3_with_its_t5_equals_diffusers(fabric: Any, three: Any) -> None:
    """ComfyUI's 77 tokens for a short prompt, which diffusers gives when it is asked for as many."""
    text = {"class_type": "TripleCLIPLoader", "inputs": TRIPLE}
    # The three files' CLIPs have the same weights: both are seeded.
    drawn = floats(fabric, of_parts(graph_of("sd3t5"), "sd3t5", text))
    graph = graph_of("sd3t5")
    same(drawn, floats(fabric, graph))
    graph["4"]["inputs"]["ckpt_name"] = "sd3t5"
    same(drawn, floats(fabric, graph))
    alike(drawn, flow_reference(three, *TEXTS, **RUN, max_sequence_length=77))
    assert (drawn - flow_reference(three, "a blue boat", TEXTS[1], **RUN, max_sequence_length=77)).abs().max() > 0.05


def encoded(fabric: Any, node: str, text: str, **files: str) -> tuple[Tensor, Tensor]:
    clip = fabric.run(node, params=files)["clip"]
    ((cond, options),) = fabric.run("CLIPTextEncode", {"clip": clip}, {"text": text})["conditioning"]
    return cond.clone(), options["pooled_output"].clone()


def test_weights_in_t5_s_prompt_move_its_tokens_from_the_empty_prompt_s(fabric: Any, three: Any) -> None:
    def theirs(text: str) -> Tensor:
        ids = three.tokenizer_3(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        hidden: Tensor = three.text_encoder_3(ids).last_hidden_state
        return hidden

    cond, pooled = encoded(fabric, "CLIPLoader", "a (barn:1.5)", clip_name="t5xxl.safetensors", type="sd3")
    assert cond.shape == (1, 77, 256)
    assert torch.equal(pooled, torch.zeros(1, 768 + 1280))
    weights = torch.ones(77)
    at = three.tokenizer_3("a").input_ids.index(1), three.tokenizer_3("a barn").input_ids.index(1)
    weights[at[0] : at[1]] = 1.5
    plain, empty = theirs("a barn"), theirs("")
    torch.testing.assert_close(cond, empty + (plain - empty) * weights[None, :, None], rtol=0, atol=1e-4)


def test_what_is_missing_of_stable_diffusion_3_s_three_is_zeros(fabric: Any, parts: Parts) -> None:
    both, pooled = encoded(fabric, "DualCLIPLoader", "a barn", **TEXT_NODES["sd3"]["inputs"])
    assert both.shape == (1, 77 + 256, 4096)
    first, of_first = encoded(fabric, "CLIPLoader", "a barn", clip_name="sd3_l.safetensors", type="sd3")
    second, of_second = encoded(fabric, "CLIPLoader", "a barn", clip_name="sd3_g.safetensors", type="sd3")
    assert torch.equal(first[..., :64], both[..., :64])
    assert torch.equal(of_first, torch.cat([pooled[:, :64], torch.zeros(1, 1280)], 1))
    assert torch.equal(second[..., 768 : 768 + 128], both[..., 64 : 64 + 128])
    assert torch.equal(of_second, torch.cat([torch.zeros(1, 768), pooled[:, 64:]], 1))
    assert first[..., 64:].abs().max() == second[..., :768].abs().max() == 0


def test_a_unet_under_diffusers_names_is_the_same(fabric: Any, parts: Parts) -> None:
    """As few-step models for SDXL are published."""
    for family in ("sd1", "sd2", "sdxl"):
        path = parts.folder / "diffusion_models" / f"{family}_theirs.safetensors"
        said = {"modelspec.prediction_type": "v"} if family == "sd2" else {}
        save(dict(parts.pipelines[family].unet.state_dict()), path, **said)
        graph = of_parts(graph_of(family), family)
        drawn = floats(fabric, graph)
        graph["unet"]["inputs"] = {"unet_name": path.name, "weight_dtype": "default"}
        same(floats(fabric, graph), drawn)


def test_text_encoders_under_openclip_s_names_are_the_same(fabric: Any, parts: Parts) -> None:
    folder = parts.folder / "text_encoders"
    save(small_models.open_clip(parts.pipelines["sdxl"].text_encoder_2), folder / "open_g.safetensors")
    save(small_models.open_clip(parts.pipelines["sd2"].text_encoder, spare=True), folder / "open_h.safetensors")
    for node, theirs, ours in (
        ("DualCLIPLoader", {"clip_name1": "sdxl_l.safetensors", "clip_name2": "open_g.safetensors"}, "sdxl"),
        ("CLIPLoader", {"clip_name": "open_h.safetensors"}, "sd2"),
    ):
        both = encoded(fabric, node, "a barn", **theirs), encoded(fabric, node, "a barn", **TEXT_NODES[ours]["inputs"])
        same(both[0][0], both[1][0])
        same(both[0][1], both[1][1])


@pytest.mark.parametrize(("named", "dtype"), [("fp8_e4m3fn", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)])
def test_weights_rounded_to_float8(fabric: Any, parts: Parts, named: str, dtype: torch.dtype) -> None:
    """As a file of weights that were rounded before."""
    for family in ("sd1", "sd3"):
        tensors = load_file(parts.folder / "diffusion_models" / f"{family}.safetensors")
        rounded = {name: tensor.to(dtype).float() for name, tensor in tensors.items()}
        save(rounded, parts.folder / "diffusion_models" / f"{family}_{named}.safetensors")
        graph = of_parts(graph_of(family), family)
        graph["unet"]["inputs"]["weight_dtype"] = named
        drawn = floats(fabric, graph)
        graph["unet"]["inputs"] = {"unet_name": f"{family}_{named}.safetensors"}
        same(floats(fabric, graph), drawn)


def test_the_weights_are_the_file_s(parts: Parts) -> None:
    """Bit by bit those of the checkpoint, and mapped."""
    from vortex_worker.executor.diffusion import separate, single_file

    cpu, folder, kept = torch.device("cpu"), parts.folder, []
    for family, node in TEXT_NODES.items():
        model, clip, _ = single_file.load(folder / "checkpoints" / f"{family}.safetensors", cpu)
        paths = [folder / "text_encoders" / value for key, value in node["inputs"].items() if "name" in key]
        text = separate.load_text(paths, node["inputs"]["type"], cpu)
        alone = separate.load_model(folder / "diffusion_models" / f"{family}.safetensors", cpu)
        pairs = [(model.network, alone.network), *zip(clip.towers, text.towers, strict=True)]
        for some, others in pairs:
            theirs = others.module.state_dict()  # type: ignore[attr-defined]
            for name, tensor in some.module.state_dict().items():  # type: ignore[attr-defined]
                assert torch.equal(tensor, theirs[name]), (family, name)
        assert (model.parametrization, model.latent_scale) == (alone.parametrization, alone.latent_scale)
        kept.append(alone)
    maps = Path("/proc/self/maps").read_text()
    assert all(f"diffusion_models/{family}.safetensors" in maps for family in TEXT_NODES)


def test_files_that_are_not_there_are_told_before_anything_runs(fabric: Any) -> None:
    workflow = {
        "unet": {"class_type": "UNETLoader", "inputs": {"unet_name": "sd1_l.safetensors"}},
        "clip": {"class_type": "DualCLIPLoader", "inputs": {"clip_name1": "sdxl.sft", "clip_name2": "../sdxl_l.sft"}},
        "flux": {
            "class_type": "DualCLIPLoader",
            "inputs": {"clip_name1": "sd3_l.safetensors", "clip_name2": "t5xxl.safetensors", "type": "flux"},
        },
    }
    with pytest.raises(WorkflowError) as caught:
        fabric.run_workflow(workflow, outputs=list(workflow))
    errors = caught.value.node_errors
    assert {node: [error["extra_info"]["input_name"] for error in errors[node]["errors"]] for node in errors} == {
        "unet": ["unet_name"], "clip": ["clip_name1", "clip_name2"], "flux": ["type"],
    }  # fmt: skip
    told = " ".join(text for _, text in caught.value.problems)
    assert "there is no 'sd1_l.safetensors' in the folders of models" in told
    assert "is no name of a model" in told
    assert "'flux'" in told
