"""Workflows and files: pictures, masks and latents read and written, and every problem with them told first."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NODES
from PIL import Image
from safetensors.torch import load_file, save_file

import vortex_worker as vw
from vortex_worker.errors import ValidationError, WorkflowError

PACKS = Path(__file__).parent / "packs"


@pytest.fixture(scope="module")
def fabric():
    with vw.Fabric(1, custom_nodes=[PACKS, NODES], threads=1, lease_size=64 << 20, client_size=64 << 20) as fabric:
        yield fabric.wait_ready(60)


def ran(result):
    return {node["id"] for node in result.nodes}


PICTURE = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "in.png", "upload": "image"}},
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "sub/x"}},
}


def picture(folder, workflow=PICTURE, value=10):
    Image.new("RGB", (6, 4), (value, 20, 30)).save(folder / "in.png")
    path = folder / "w.json"
    path.write_text(json.dumps(workflow))
    return path


def test_a_picture_has_its_workflow_inside_and_runs_from_it(fabric, tmp_path):
    request = tmp_path / "request.json"
    picture(tmp_path)
    request.write_text(json.dumps({"prompt": PICTURE, "extra_data": {"extra_pnginfo": {"workflow": {"nodes": [1]}}}}))
    result = fabric.run_workflow(request, output_dir=tmp_path / "out")
    (file,) = result.files
    assert file == str(tmp_path / "out" / "sub" / "x_00001.png")
    with Image.open(file) as image:
        assert json.loads(image.text["prompt"]) == PICTURE
        assert json.loads(image.text["workflow"]) == {"nodes": [1]}
        assert image.getpixel((0, 0)) == (245, 235, 225)
    made = tmp_path / "made.png"
    made.write_bytes(Path(file).read_bytes())
    again = fabric.run_workflow(made, output_dir=tmp_path / "again")
    assert Path(again.files[0]).read_bytes() == Path(file).read_bytes()


def test_a_file_is_read_anew_when_it_has_changed_and_written_only_then(fabric, tmp_path):
    path = picture(tmp_path, value=50)
    first = fabric.run_workflow(path, output_dir=tmp_path / "out")
    assert ran(first) == {"1", "2", "3"}
    unchanged = fabric.run_workflow(path, output_dir=tmp_path / "out")
    assert ran(unchanged) == set()
    assert unchanged.files == first.files
    picture(tmp_path, value=51)
    assert ran(fabric.run_workflow(path, output_dir=tmp_path / "out")) == {"1", "2", "3"}
    assert len(list((tmp_path / "out" / "sub").iterdir())) == 2
    for file in first.files:
        Path(file).unlink()
    picture(tmp_path, value=50)
    assert ran(fabric.run_workflow(path, output_dir=tmp_path / "out")) == {"3"}  # what it wrote is gone


@pytest.mark.parametrize(("form", "kind"), [("webp", "WEBP"), ("jpeg", "JPEG")])
def test_other_forms_of_picture_have_the_workflow_too(fabric, tmp_path, form, kind):
    path = picture(tmp_path)
    result = fabric.run_workflow(path, output_dir=tmp_path, settings={"3.format": form})
    with Image.open(result.files[0]) as image:
        assert image.format == kind
        assert max(abs(np.asarray(image.convert("RGB"))[0, 0].astype(int) - (245, 235, 225))) < 12
        assert json.loads(image.getexif()[0x0110].removeprefix("prompt:"))["3"]["inputs"]["format"] == form


def test_an_animated_picture(fabric, tmp_path):
    workflow = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "in.png"}},
        "2": {"class_type": "PackBrighten", "inputs": {"image": ["1", 0], "amount": 0.5}},
        "3": {"class_type": "ImageStack", "inputs": {"a": ["1", 0], "b": ["2", 0]}},
        "4": {"class_type": "SaveAnimatedWEBP", "inputs": {"images": ["3", 0], "fps": 10.0, "method": "fastest"}},
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    result = fabric.run_workflow(picture(tmp_path, workflow), output_dir=tmp_path / "out")
    files = {Path(file).relative_to(tmp_path / "out").as_posix() for file in result.files}
    assert files == {"vortex_00001.webp", "preview/image_00001.png"}
    with Image.open(tmp_path / "out" / "vortex_00001.webp") as image:
        assert image.n_frames == 2


def test_masks_from_files(fabric, tmp_path):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 51, 0, 0))
    image.save(tmp_path / "m.png")
    workflow = {"1": {"class_type": "LoadImageMask", "inputs": {"image": "m.png [input]", "channel": "alpha"}}}
    path = tmp_path / "w.json"
    path.write_text(json.dumps(workflow))
    assert fabric.run_workflow(path).values["1"]["mask"].tolist() == [[[0.0, 1.0]]]
    green = fabric.run_workflow(path, settings={"1.channel": "green"})
    assert torch.allclose(green.values["1"]["mask"], torch.tensor([[[0.0, 0.2]]]))


def test_latents_go_to_files_and_back(fabric, tmp_path):
    save = {
        "1": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 32}},
        "2": {"class_type": "SaveLatent", "inputs": {"samples": ["1", 0], "filename_prefix": "latents/x"}},
    }
    (file,) = fabric.run_workflow(save, output_dir=tmp_path).files
    assert file.endswith("latents/x_00001.latent")
    assert set(load_file(file)) == {"latent_tensor", "latent_format_version_0"}  # ComfyUI's names
    samples = torch.randn(1, 4, 2, 3)
    save_file({"latent_tensor": samples, "latent_format_version_0": torch.zeros(0)}, tmp_path / "new.latent")
    save_file({"latent_tensor": samples}, tmp_path / "old.latent")
    load = tmp_path / "w.json"
    load.write_text(json.dumps({"1": {"class_type": "LoadLatent", "inputs": {"latent": "new.latent"}}}))
    assert torch.equal(fabric.run_workflow(load).values["1"]["latent"]["samples"], samples)
    old = fabric.run_workflow(load, settings={"1.latent": "old.latent"}).values["1"]["latent"]["samples"]
    assert torch.allclose(old, samples / 0.18215)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"no tensors", "no sound safetensors file"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "no sound safetensors file"),
        (
            b"\x4e" + bytes(7) + b'{"latent_tensor":{"dtype":"F32","shape":[1,4,9,9],"data_offsets":[0,16]}}     ',
            "no sound",
        ),
        (
            b"\x4a"
            + bytes(7)
            + b'{"latent_tensor":{"dtype":"F4","shape":[1,4,2,2],"data_offsets":[0,8]}}   '
            + bytes(8),
            "'data' has a tensor of dtype 'F4': it takes floats",
        ),
    ],
)
def test_a_latent_file_that_lies_is_refused(fabric, data, said):
    with pytest.raises(ValidationError, match=said):
        fabric.run("LoadLatent", params={"data": data})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("secret.txt", "no image's"), (".hidden.png", "hidden"), (".dot/in.png", "hidden"), ("way/in.png", "hidden"),
        ("fifo", "no regular file"), ("sub", "Is a directory"), ("../in.png", "under"), (".", "under"), ("", "under"),
        ("a\0b", "such a name"), ("\ud800", "such a name"), ("a" * 5000, "can't be read"),
    ],
)  # fmt: skip
def test_no_other_file_is_sent_to_a_worker(fabric, tmp_path, name, said):
    path = picture(tmp_path)
    (tmp_path / "secret.txt").write_text("BM secret")
    for folder in (".dot", "sub"):
        (tmp_path / folder).mkdir()
    for copy in (".hidden.png", ".dot/in.png"):
        (tmp_path / copy).write_bytes((tmp_path / "in.png").read_bytes())
    (tmp_path / "way").symlink_to(".dot")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(WorkflowError, match=said):
        fabric.run_workflow(path, output_dir=tmp_path / "out", settings={"1.image": name})


def test_a_file_that_can_not_be_decoded_is_named(fabric, tmp_path):
    path = picture(tmp_path)
    (tmp_path / "half.png").write_bytes((tmp_path / "in.png").read_bytes()[:30])
    with pytest.raises(ValidationError, match=r"'half\.png': 'data' is 30 bytes of no image") as caught:
        fabric.run_workflow(path, output_dir=tmp_path / "out", settings={"1.image": "half.png"})
    assert caught.value.details["file"] == "half.png"


def test_files_that_a_list_names_are_read_one_by_one(tmp_path):
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "names.py").write_text(
        "from vortex_worker.executor import AbstractExecutor, Param, Port\n"
        "class Names(AbstractExecutor):\n"
        "    op_type, output_ports = 'Names', (Port('names', 'STRING', is_list=True),)\n"
        "    params = (Param('count', 'INT', default=2),)\n"
        "    def execute(self, inputs, params): return {'names': [f'{n}.png' for n in range(params['count'])]}\n"
    )
    for name in ("0.png", "1.png"):
        Image.new("RGB", (6, 4)).save(tmp_path / name)
    workflow = {
        "names": {"class_type": "Names", "inputs": {}},
        "files": {"class_type": "LoadImage", "inputs": {"image": ["names", 0]}},
    }
    path = tmp_path / "w.json"
    path.write_text(json.dumps(workflow))
    with vw.Fabric(1, standby=0, custom_nodes=tmp_path / "nodes") as fabric:
        for count in (0, 2):
            result = fabric.run_workflow(path, settings={"names.count": count})
            assert len(result.values["files"]["image"]) == count
        with pytest.raises(
            ValidationError, match=r"image is '2.png': there is no such file in .*: 1.png, 0.png"
        ) as caught:
            fabric.run_workflow(path, settings={"names.count": 1000})
        assert caught.value.details["node"] == "files"
        (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes()[:30])
        with pytest.raises(ValidationError, match=r"'2.png': 'data' is 30 bytes of no image"):
            fabric.run_workflow(path, settings={"names.count": 3})


def test_only_a_safetensors_file_is_sent_as_a_latent(fabric, tmp_path):
    (tmp_path / "w.json").write_text(json.dumps({"1": {"class_type": "LoadLatent", "inputs": {"latent": "x"}}}))
    for data in (b"", b"secret of some length", (9).to_bytes(8, "little") + b"{}", (4).to_bytes(8, "little") + b"{:1}"):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(WorkflowError, match="no latent's"):
            fabric.run_workflow(tmp_path / "w.json")


@pytest.mark.parametrize("value", [5, ["a"], {"a": 1}, None])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("LoadImage", "image"), ("LoadImageMask", "channel"), ("LoadLatent", "latent"), ("SaveLatent", "samples"),
        ("SaveImage", "images"), ("SaveImage", "filename_prefix"), ("SaveImage", "format"), ("SaveImage", "quality"),
        ("SaveAnimatedWEBP", "fps"), ("PreviewImage", "images"),
    ],
)  # fmt: skip
def test_what_a_node_gives_for_a_file_is_checked(fabric, tmp_path, kind, name, value):
    value = 5000 if name in ("quality", "fps") and value == 5 else value
    inputs = {"images": ["1", 0]} if kind in ("SaveImage", "SaveAnimatedWEBP") else {}
    inputs |= {"image": "in.png"} if kind == "LoadImageMask" else {}
    workflow = {
        "1": PICTURE["1"],
        "2": {"class_type": "PackSwitch", "inputs": {"yes": value, "no": value}},
        "3": {"class_type": kind, "inputs": inputs | {name: ["2", 0]}},
    }
    with pytest.raises(ValidationError, match=f"{kind}: (input|parameter) '{name}' is ") as caught:
        fabric.run_workflow(picture(tmp_path, workflow), output_dir=tmp_path / "out", outputs=["3"])
    assert caught.value.details["node"] == "3"
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_there_are_told_with_every_other_problem(fabric, tmp_path):
    """Found by first users: each came alone, when its node ran."""
    for name in ("kat.png", "dog.JPG", "notes.txt", ".cat.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "taken").write_text("a file")
    workflow = {
        "picture": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}},
        "mask": {"class_type": "LoadImageMask", "inputs": {"image": "none/of/them.png"}},
        "latent": {"class_type": "LoadLatent", "inputs": {"latent": "x.latent"}},
        "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
        "style": {
            "class_type": "LoraLoader",
            "inputs": {"lora_name": "s", "model": ["model", 0], "clip": ["model", 1]},
        },
        "save": {"class_type": "SaveImage", "inputs": {"images": ["picture", 0], "filename_prefix": "../up"}},
        "keep": {"class_type": "SaveLatent", "inputs": {"samples": ["latent", 0], "filename_prefix": "x"}},
        "other": {"class_type": "EmptyLatentImage", "inputs": {"width": 1}},
    }
    (tmp_path / "w.json").write_text(json.dumps(workflow))
    with pytest.raises(WorkflowError) as caught:
        fabric.run_workflow(tmp_path / "w.json", output_dir=tmp_path / "taken" / "out", outputs=list(workflow))
    told = dict(caught.value.problems)
    assert told.keys() == workflow.keys()
    assert told["picture"].endswith(f"'cat.png': there is no such file in {tmp_path}; there are: kat.png, dog.JPG")
    assert "'x.latent'" in told["latent"]
    assert told["model"].startswith("'ckpt_name': there is no model 'sd15.safetensors'")
    assert "'../up': it takes letters" in told["save"]
    assert told["keep"].endswith("taken/out' can't be made: Not a directory")
    kinds = {node: (e["errors"][0]["type"], e["errors"][0]["details"]) for node, e in caught.value.node_errors.items()}
    assert kinds["picture"] == ("value_not_in_list", "image")
    assert kinds["model"] == ("value_not_in_list", "ckpt_name")
    assert kinds["save"] == ("custom_validation_failed", "filename_prefix")
    assert sorted(os.listdir(tmp_path)) == [".cat.png", "dog.JPG", "kat.png", "notes.txt", "taken", "w.json"]


EXPORTED = {
    "1": {
        "inputs": {"image": "in.png", "upload": "image", "speak_and_recognation": {"__value__": [False, True]}},
        "class_type": "LoadImage",
        "_meta": {"title": "Load Image"},
    },
    "2": {
        "inputs": {"image": ["1", 0], "stale": ["17", 0], "control_after_generate": "randomize"},
        "class_type": "ImageInvert",
        "_meta": {"title": "Invert Image"},
    },
    "3": {"inputs": {"images": ["2", 0]}, "class_type": "PreviewImage", "_meta": {"title": "Preview Image"}},
}


def test_inputs_that_an_editor_s_extensions_left_are_passed_over_and_told_once(fabric, tmp_path, caplog):
    """As ComfyUI does: exported workflows have such, and links that lead nowhere among them."""
    path = picture(tmp_path, EXPORTED, value=33)
    for run in range(2):
        result = fabric.run_workflow(path, output_dir=tmp_path / f"out{run}")
        assert result.warnings == [
            "node 1 (LoadImage) has no input 'speak_and_recognation': passed over",
            "node 2 (ImageInvert) has no input 'control_after_generate', 'stale': passed over",
        ]
    assert [record.message for record in caplog.records if "passed over" in record.message] == result.warnings
    assert json.loads(Image.open(result.files[0]).text["prompt"])["2"]["inputs"]["stale"] == ["17", 0]  # as it was


def test_what_somebody_has_just_typed_in_is_not_passed_over(fabric, tmp_path):
    path = picture(tmp_path, EXPORTED)
    with pytest.raises(WorkflowError, match="no input 'imag'; did you mean 'image'") as caught:
        fabric.run_workflow(path, settings={"1.imag": "x.png"})
    assert len(caught.value.problems) == 1
    with pytest.raises(ValidationError, match="ImageInvert: it has no parameter 'stale'"):
        fabric.run("ImageInvert", {"image": torch.ones(1, 2, 2, 3)}, {"stale": 1})


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_every_form_of_picture_is_read(fabric, tmp_path, form):
    path = picture(tmp_path)
    Image.new("RGB", (6, 4)).save(tmp_path / "any", format=form)
    assert fabric.run_workflow(path, outputs=["1"], settings={"1.image": "any"}).values["1"]["image"].shape[1] == 4


@pytest.mark.parametrize("prefix", ["../x", "/tmp/x", "a//b", ".hidden", "a/../../b", "x\0y", ""])
def test_pictures_are_written_below_the_output_folder_only(fabric, tmp_path, prefix):
    path = picture(tmp_path, value=70)
    with pytest.raises(WorkflowError, match="filename_prefix"):
        fabric.run_workflow(path, output_dir=tmp_path / "out", settings={"3.filename_prefix": prefix})


@pytest.mark.parametrize("elsewhere", ["elsewhere", "out-too"])
@pytest.mark.parametrize("prefix", ["sub/x", "sub/new/x"])
def test_a_link_in_the_output_folder_leads_nowhere(fabric, tmp_path, elsewhere, prefix):
    (tmp_path / "out").mkdir()
    (tmp_path / elsewhere).mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / elsewhere)
    path = picture(tmp_path, value=71)
    with pytest.raises(WorkflowError, match="leads out of"):
        fabric.run_workflow(path, output_dir=tmp_path / "out", settings={"3.filename_prefix": prefix})
    assert list((tmp_path / elsewhere).iterdir()) == []


def test_gigantic_dimensions_are_refused_and_the_worker_lives_on(fabric):
    pids = {worker["pid"] for worker in fabric.workers()}
    vast = {"a": {"class_type": "EmptyLatentImage", "inputs": {"width": 16384, "height": 16384, "batch_size": 4096}}}
    with pytest.raises(WorkflowError, match="node a: 'width' 16384, 'height' 16384 and 'batch_size' 4096 take"):
        fabric.run_workflow(vast)
    with pytest.raises(vw.errors.OutOfArena):
        fabric.run("EmptyLatentImage", params=vast["a"]["inputs"])
    with pytest.raises(WorkflowError, match="'width' is 1000000: it takes a whole number, 16 to 16384"):
        fabric.run_workflow(vast, settings={"a.width": 1_000_000})
    assert {worker["pid"] for worker in fabric.workers()} == pids


def test_the_example_runs(tmp_path):
    folder = Path(__file__).parents[2] / "examples" / "comfyui"
    with vw.Fabric(1, standby=0, custom_nodes=folder / "packs", threads=1) as fabric:
        first = fabric.run_workflow(folder / "workflow.json", output_dir=tmp_path)
        assert len(first.files) == 3
        again = fabric.run_workflow(folder / "workflow.json", output_dir=tmp_path, settings={"3.text": "other"})
        assert (ran(again), set(again.cached)) == ({"3", "4"}, {"2"})
