"""Workflows: what runs again and what doesn't, lists, lazy inputs, chosen outputs, branches side by side, files."""

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NODES, gone, until
from PIL import Image
from safetensors.torch import load_file, save_file

import vortex_worker as vw
from vortex_worker.errors import ExecutionError, ValidationError, WorkflowError

PACKS = Path(__file__).parent / "packs"


@pytest.fixture(scope="module")
def fabric():
    with vw.Fabric(
        2, custom_nodes=[PACKS, NODES], threads=1, grace=0.3, lease_size=64 << 20, client_size=64 << 20
    ) as fabric:
        yield fabric.wait_ready(60)


def ran(result):
    return {node["id"] for node in result.nodes}


NOISE = {
    "noise": {"class_type": "RandomTensor", "inputs": {"shape": [4], "seed": 1}},
    "twice": {"class_type": "Scale", "inputs": {"tensor": ["noise", 0], "factor": 2.0}},
    "thrice": {"class_type": "Scale", "inputs": {"tensor": ["noise", 0], "factor": 3.0}},
}


def test_an_unchanged_node_is_not_run_again(fabric):
    first = fabric.run_workflow(NOISE, settings={"noise.seed": 11})
    assert ran(first) == {"noise", "twice", "thrice"}
    again = fabric.run_workflow(NOISE, settings={"noise.seed": 11})
    assert ran(again) == set()
    assert torch.equal(again.values["twice"]["tensor"], first.values["twice"]["tensor"])
    changed = fabric.run_workflow(NOISE, settings={"noise.seed": 11, "twice.factor": 4.0})
    assert ran(changed) == {"twice"}
    assert torch.equal(changed.values["twice"]["tensor"], 2 * first.values["twice"]["tensor"])
    assert ran(fabric.run_workflow(NOISE, settings={"noise.seed": 12})) == {"noise", "twice", "thrice"}


def test_a_kept_tensor_that_the_caller_wrote_to_is_made_anew(fabric):
    first = fabric.run_workflow(NOISE, settings={"noise.seed": 21}).values["twice"]["tensor"]
    before = first.clone()
    first.zero_()
    again = fabric.run_workflow(NOISE, settings={"noise.seed": 21})
    assert ran(again) == {"twice"}
    assert torch.equal(again.values["twice"]["tensor"], before)


def test_a_kept_object_dies_with_its_worker():
    box = {
        "pick": {"class_type": "PackPick", "inputs": {"size": 4, "even": 2}},
        "unpick": {"class_type": "PackUnpick", "inputs": {"box": ["pick", 0]}},
    }
    with vw.Fabric(1, custom_nodes=[PACKS, NODES], threads=1, grace=0.3) as fabric:
        assert ran(fabric.run_workflow(box, outputs=["pick"])) == {"pick"}
        assert ran(fabric.run_workflow(box)) == {"unpick"}
        pid = fabric.workers()[0]["pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid), "the worker's end")
        assert ran(fabric.run_workflow(box, outputs=["pick"])) == {"pick"}


def test_what_says_that_it_has_changed_runs_again(fabric):
    count = {"n": {"class_type": "PackCount", "inputs": {"name": "ab", "always": False}}}
    assert ran(fabric.run_workflow(count)) == {"n"}
    assert ran(fabric.run_workflow(count)) == set()
    always = {"n": {"class_type": "PackCount", "inputs": {"name": "ab", "always": True}}}
    assert ran(fabric.run_workflow(always)) == {"n"}
    assert ran(fabric.run_workflow(always)) == {"n"}


def test_when_memory_is_short_what_earlier_runs_left_goes_first():
    with vw.Fabric(1, standby=0, threads=1, lease_size=8 << 20, client_size=8 << 20) as fabric:
        large = {"a": {"class_type": "RandomTensor", "inputs": {"shape": [480 << 10], "seed": 1}}}  # 1.9 of 8 MiB
        fabric.run_workflow(large)
        assert len(fabric._results) == 1
        most = {"a": {"class_type": "RandomTensor", "inputs": {"shape": [1700 << 10], "seed": 2}}}
        assert fabric.run_workflow(most).values["a"]["tensor"].nbytes == 1700 << 12
        assert len(fabric._results) == 0  # the first had to go, and this one is too large to keep


def test_what_is_kept_is_bounded(fabric):
    for seed in range(100, 112):
        fabric.run_workflow({"a": {"class_type": "RandomTensor", "inputs": {"shape": [1 << 19], "seed": seed}}})
    assert 1 <= len(fabric._results) <= 8  # 2 MiB each, of 16
    with vw.Fabric(1, standby=0, threads=1, keep_results=0) as forgetful:
        for _ in range(2):
            assert ran(forgetful.run_workflow(NOISE)) == {"noise", "twice", "thrice"}


def test_only_the_chosen_output_and_what_it_needs_is_run_and_checked(fabric):
    workflow = {**NOISE, "bad": {"class_type": "NoSuchNode", "inputs": {}}}
    result = fabric.run_workflow(workflow, outputs=["thrice"], settings={"noise.seed": 31})
    assert ran(result) == {"noise", "thrice"}
    assert result.values.keys() == {"thrice"}
    with pytest.raises(WorkflowError, match="no node 'thrise'; did you mean 'thrice'"):
        fabric.run_workflow(workflow, outputs=["thrise"])


def test_a_lazy_input_is_computed_only_when_it_is_needed(fabric):
    workflow = {
        "yes": {"class_type": "RandomTensor", "inputs": {"shape": [2], "seed": 41}},
        "no": {"class_type": "RandomTensor", "inputs": {"shape": [3], "seed": 41}},
        "switch": {"class_type": "PackSwitch", "inputs": {"on": True, "yes": ["yes", 0], "no": ["no", 0]}},
    }
    result = fabric.run_workflow(workflow)
    assert ran(result) == {"yes", "switch"}
    assert result.values["switch"]["value"].shape == (2,)
    assert ran(fabric.run_workflow(workflow, settings={"switch.on": False})) == {"no", "switch"}


def test_lists_run_what_they_are_linked_to_once_an_item(fabric):
    workflow = {
        "split": {"class_type": "PackSplit", "inputs": {"count": 3}},
        "bright": {
            "class_type": "PackBrighten",
            "inputs": {"image": ["split", 0], "amount": 0.5, "times": 1},
        },
        "join": {
            "class_type": "PackJoin",
            "inputs": {"images": ["bright", 0], "things": ["split", 2], "factor": 2.0},
        },
    }
    result = fabric.run_workflow(workflow)
    assert result.values["join"]["STRING"] == ("['join'] [2, 3, 4] x [2.0] ['thing 0', 'thing 1', 'thing 2'] None")
    bright = fabric.run_workflow(workflow, outputs=["bright"])
    assert [float(image.max()) for image in bright.values["bright"]["brighter"]] == [0.5, 1.5, 2.5]
    none = fabric.run_workflow(workflow, settings={"split.count": 0}, outputs=["bright"])
    assert none.values["bright"]["brighter"] == []


def test_of_a_long_list_the_first_that_fails_ends_the_rest(tmp_path):
    """Found by a hostile user: all of a list's items were queued before anybody looked at the first."""
    (tmp_path / "long.py").write_text(
        "from vortex_worker.executor import AbstractExecutor, Port\n"
        "class Long(AbstractExecutor):\n"
        "    op_type, output_ports = 'Long', (Port('items', 'INT', is_list=True),)\n"
        "    def execute(self, inputs, params): return {'items': list(range(100_000))}\n"
        "class Stumble(AbstractExecutor):\n"
        "    op_type, input_ports = 'Stumble', (Port('item', 'INT'),)\n"
        "    def execute(self, inputs, params): raise ValueError(f'no {inputs[\"item\"]}')\n"
    )
    workflow = {
        "long": {"class_type": "Long", "inputs": {}},
        "stumble": {"class_type": "Stumble", "inputs": {"item": ["long", 0]}},
    }
    jobs = []
    with vw.Fabric(1, standby=0, custom_nodes=tmp_path) as fabric:
        fabric.observe(jobs.append)
        with pytest.raises(ExecutionError, match="no 0"):
            fabric.run_workflow(workflow)
    assert len(jobs) < 2000


def test_hidden_inputs_and_what_is_for_an_editor(fabric):
    workflow = {"7": {"class_type": "PackWho", "inputs": {}}, "8": {"class_type": "PackCount", "inputs": {}}}
    result = fabric.run_workflow(workflow)
    assert result.values == {"7": {"STRING": "7 of ['7', '8'], None", "ui": {"text": ["7 of ['7', '8'], None"]}}}
    assert result.outputs == [{"node": "7", "ui": {"text": ["7 of ['7', '8'], None"]}}]
    assert ran(result) == {"7"}  # the other is no output node


class Waiting:
    """Opens a gate once two nodes wait for it at once."""

    def __init__(self, gate):
        self.gate, self.waiting, self.both = gate, set(), False

    def node_started(self, node, class_type):
        pass

    def node_progress(self, node, step, total):
        self.waiting.add(node)
        if len(self.waiting) == 2:
            self.both = True
            self.gate.fill_(1)

    def node_done(self, node, ms):
        pass


def test_branches_run_side_by_side(fabric):
    gate = fabric.tensor([0])
    workflow = {
        "gate": {"class_type": "Identity", "inputs": {"tensor": gate}},
        "a": {"class_type": "Gate", "inputs": {"gate": ["gate", 0]}},
        "b": {"class_type": "Gate", "inputs": {"gate": ["gate", 0]}},
    }
    watcher = Waiting(gate)
    timer = threading.Timer(60, gate.fill_, [1])  # it fails rather than hangs
    timer.start()
    result = fabric.run_workflow(workflow, progress=watcher)
    timer.cancel()
    assert watcher.both
    assert result.values["a"]["pid"] != result.values["b"]["pid"]


def test_problems_have_comfys_names_and_per_node_lists(fabric):
    workflow = {
        "1": {"class_type": "EmptyLatentImage", "inputs": {"width": 1, "height": 1 << 20, "batch_size": "x"}},
        "2": {
            "class_type": "KSampler",
            "inputs": {"latent_image": ["9", 0], "model": ["1", 0], "sampler_name": "eulr"},
        },
        "3": {"class_type": "Nope", "inputs": {}},
    }
    with pytest.raises(WorkflowError) as caught:
        fabric.run_workflow(workflow)
    errors = caught.value.node_errors
    kinds = {node: {(e["type"], e["details"]) for e in about["errors"]} for node, about in errors.items()}
    assert kinds["1"] == {
        ("value_smaller_than_min", "width"), ("value_bigger_than_max", "height"), ("invalid_input_type", "batch_size"),
    }  # fmt: skip
    assert {
        ("bad_linked_input", "latent"), ("return_type_mismatch", "model"), ("value_not_in_list", "sampler_name"),
        ("required_input_missing", "positive"),
    } <= kinds["2"]  # fmt: skip
    assert kinds["3"] == {("missing_node_type", "")}
    assert errors["1"]["class_type"] == "EmptyLatentImage"
    assert errors["1"]["errors"][0]["extra_info"] == {"input_name": "width", "received_value": 1}


def test_a_packs_own_check_is_told_before_anything_runs(fabric):
    workflow = {
        "first": {"class_type": "PackCount", "inputs": {"name": "never run"}},
        "pick": {"class_type": "PackPick", "inputs": {"even": 3}},
    }
    with pytest.raises(WorkflowError, match="node pick: 3 is odd") as caught:
        fabric.run_workflow(workflow)
    assert caught.value.node_errors["pick"]["errors"][0]["type"] == "custom_validation_failed"
    with pytest.raises(WorkflowError, match=r"node pick: 9 is odd\\x1b\[31m$"):
        fabric.run_workflow(workflow, settings={"pick.even": 9})


# ------------------------------------------------------------------------------------- files

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
    with pytest.raises(vw.errors.OutOfArena) as caught:
        fabric.run_workflow(vast)
    assert caught.value.details["node"] == "a"
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
