"""What plain values give away is told before anything runs, with everything else that is wrong."""

from pathlib import Path

import pytest
import torch

import vortex_worker as vw
from vortex_worker.errors import OutOfArena, ValidationError, WorkflowError
from vortex_worker.executor.diffusion.prompt import MAX_LENGTH
from vortex_worker.executor.nodes.sampling.schedules import MAX_STEPS
from vortex_worker.supervisor import literals

PACK = Path(__file__).parent / "packs" / "tensors"


@pytest.fixture(scope="module")
def fabric():
    with vw.Fabric(1, custom_nodes=PACK, threads=1, lease_size=64 << 20, client_size=64 << 20) as fabric:
        yield fabric.wait_ready(60)


def diffusion(**inputs):
    """Text-to-image without its checkpoint, so that nothing could run."""
    return {
        "1": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": inputs.get("text", "a cat")}},
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["load", 0], "positive": ["text", 0], "negative": ["text", 0], "latent_image": ["1", 0],
                **{name: value for name, value in inputs.items() if name != "text"},
            },
        },
        "load": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "none.safetensors"}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"text": "x" * 20_001}, "node text: 'text' has 20001 characters: it takes 20000"),
        ({"text": "cat \ud800"}, "node text: 'text' has half a character, U\\+D800, at 4"),
        (
            {"steps": 20, "denoise": 1e-6},
            "node sample: 'denoise' is 1e-06: with 20 steps it takes 0, or at least 2e-05",
        ),
    ],
    ids=["length", "surrogate", "denoise"],
)
def test_a_value_that_its_node_would_refuse_is_told_before_any_model_is_loaded(fabric, inputs, said):
    with pytest.raises(WorkflowError, match=said):
        fabric.run_workflow(diffusion(**inputs))


def test_the_bounds_are_those_of_the_nodes():
    assert (literals.MAX_LENGTH, literals.MAX_STEPS) == (MAX_LENGTH, MAX_STEPS)


@pytest.mark.parametrize(
    ("node", "size", "wanted"),
    [
        ("EmptyLatentImage", (16384, 16384, 4096), 4096 * 4 * 2048 * 2048 * 4),
        ("EmptySD3LatentImage", (4096, 4096, 5), 5 * 16 * 512 * 512 * 4),
        ("EmptyImage", (4096, 4096, 1), 4096 * 4096 * 3 * 4),
    ],
)
def test_a_size_that_no_worker_has_memory_for_is_told_by_its_inputs_and_how_to_have_more(fabric, node, size, wanted):
    width, height, count = size
    inputs = {"width": width, "height": height, "batch_size": count}
    said = f"node 1: 'width' {width}, 'height' {height} and 'batch_size' {count} take {wanted} bytes: .*lease_size="
    with pytest.raises(WorkflowError, match=said):
        fabric.run_workflow({"1": {"class_type": node, "inputs": inputs}})


def test_what_just_fits_runs(fabric):
    workflow = {"1": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 4103, "height": 4103, "batch_size": 4}}}
    assert fabric.run_workflow(workflow).values["1"]["latent"]["samples"].shape == (4, 16, 512, 512)


def test_a_node_that_had_no_room_says_which_inputs_made_it_large(fabric):
    workflow = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8}},
        "2": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], "width": 4096, "height": 4096}},
    }
    with pytest.raises(OutOfArena, match=r"'width' is 4096, 'height' is 4096; .*lease_size= gives") as caught:
        fabric.run_workflow(workflow)
    assert caught.value.details["node"] == "2"


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("a" * 300, "…, of 300 bytes: it takes 240 at most"),
        ("a/" * 1500 + "b", "…, of 3001 bytes: it takes 240 at most"),
        ("ä" * 121, "of 242 bytes: it takes 240 at most"),
        ("a" * 101, "each part has 1 to 100 of them"),
        (".ssh/authorized_keys", "begins with a letter, a digit, '-' or '_'"),
        ("%date:yyyy%", "These are filled in: %width%, %height%, %year%"),
    ],
    ids=lambda value: value[:12],
)
def test_a_prefix_that_no_file_can_have_is_told_before_anything_runs(fabric, tmp_path, prefix, said):
    workflow = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }
    with pytest.raises(WorkflowError, match=said):
        fabric.run_workflow(workflow, output_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def switch(yes):
    return {"1": {"class_type": "PackSwitch", "inputs": {"on": True, "yes": yes, "no": 2}}}


def who(extra, **inputs):
    """A node that is told the workflow, and what comes with it."""
    return {"prompt": {"1": {"class_type": "PackWho", "inputs": inputs}}, "extra_data": {"extra_pnginfo": extra}}


DEEP = "can't be sent to a worker: lists and dicts are nested deeper than 32"


@pytest.mark.parametrize(
    ("workflow", "said"),
    [
        (who({"x": nested(100_000)}), r"^what comes with the workflow \(extra_pnginfo\) is nested too deeply"),
        (who({"x": nested(100)}), r"^what comes with the workflow \(extra_pnginfo\) is nested too deeply"),
        (who({"x": nested(32)}), rf"node 1: 'extra' \(EXTRA_PNGINFO\) {DEEP}"),
        (who({}, old=nested(30)), rf"node 1: 'graph' \(PROMPT\) {DEEP}"),
        (
            who({"x": "x" * (17 << 20)}),
            r"node 1: its values have 178\d+ bytes, 178\d+ of them 'extra' \(EXTRA_PNGINFO\): .* 16777216 at most",
        ),
        (
            who({"x": "\ud800"}),
            r"node 1: 'extra' \(EXTRA_PNGINFO\) can't be sent to a worker: .* surrogates not allowed",
        ),
        (switch(nested(33)), f"node 1: 'yes' {DEEP}"),
        (switch([["\ud800"]]), "node 1: 'yes' can't be sent to a worker: .* surrogates not allowed"),
    ],
    ids=["bottomless", "deep", "hidden", "prompt", "large", "surrogate", "value", "inner"],
)
def test_what_cannot_be_sent_to_a_worker_is_told_before_anything_runs(fabric, workflow, said):
    with pytest.raises(WorkflowError, match=said):
        fabric.run_workflow(workflow)


def test_what_can_just_be_sent_is_sent(fabric):
    assert fabric.run_workflow(switch(nested(32))).values["1"]["value"] == nested(32)
    fabric.run_workflow(who({"x": nested(31)}, old=nested(29)))


def saved(node, **inputs):
    """Pictures 16384 pixels wide."""
    return {
        "1": {"class_type": "SolidMask", "inputs": {"width": 16384, "height": 8}},
        "2": {"class_type": "MaskToImage", "inputs": {"mask": ["1", 0]}},
        "3": {"class_type": node, "inputs": {"images": ["2", 0], **inputs}},
    }


TOO_WIDE = "16384 × 8 pixels can't be saved as webp, which has sides of 16383 at most"


@pytest.mark.parametrize(("node", "inputs"), [("SaveImage", {"format": "webp"}), ("SaveAnimatedWEBP", {})])
def test_a_picture_that_its_format_has_no_room_for_is_told_before_anything_runs(fabric, tmp_path, node, inputs):
    with pytest.raises(WorkflowError, match=rf"^node 3: 'images' come from node 2: {TOO_WIDE}"):
        fabric.run_workflow(saved(node, **inputs), output_dir=tmp_path / "out")
    # Where no plain value says so, the node tells.
    unknown = saved(node, **inputs) | {
        "1": {"class_type": "SolidMask", "inputs": {"width": 256, "height": 1}},
        "big": {"class_type": "ImageScaleBy", "inputs": {"image": ["2", 0], "scale_by": 8.0}},
        "more": {"class_type": "ImageScaleBy", "inputs": {"image": ["big", 0], "scale_by": 8.0}},
    }
    unknown["3"]["inputs"]["images"] = ["more", 0]
    with pytest.raises(ValidationError, match="images: 16384 × 64 pixels can't be saved as webp") as caught:
        fabric.run_workflow(unknown, output_dir=tmp_path / "out")
    assert caught.value.details == {"node": "3", "class_type": node}
    assert not list((tmp_path / "out").rglob("*"))


def test_a_picture_that_its_format_has_room_for_is_saved(fabric, tmp_path):
    fabric.run_workflow(saved("SaveImage"), output_dir=tmp_path)
    just = saved("SaveImage", format="webp")
    just["1"]["inputs"]["width"] = 16383
    assert len(fabric.run_workflow(just, output_dir=tmp_path).files) == 1


def test_a_workflow_that_a_jpeg_has_no_room_for_is_told_before_anything_runs(fabric, tmp_path):
    workflow = saved("SaveImage", format="jpeg")
    request = {"prompt": workflow, "extra_data": {"extra_pnginfo": {"workflow": "x" * 66_000}}}
    with pytest.raises(WorkflowError, match=r"node 3: the workflow takes 66\d+ bytes, and a JPEG has room for 65533"):
        fabric.run_workflow(request, output_dir=tmp_path)
    request["extra_data"]["extra_pnginfo"]["workflow"] = "x" * 64_000
    assert len(fabric.run_workflow(request, output_dir=tmp_path).files) == 1


def doubled(times):
    """A list with the same list in it twice, and so on: small in memory, and endless to who writes it out."""
    value = []
    for _ in range(times):
        value = [value, value]
    return value


def test_what_would_be_written_out_endlessly_is_told(fabric):
    nodes = {"i": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8}}}
    nodes["s"] = {"class_type": "SaveImage", "inputs": {"images": ["i", 0], "filename_prefix": doubled(60)}}
    with pytest.raises(WorkflowError, match="node s: 'filename_prefix' holds the same lists or objects too often"):
        fabric.run_workflow(nodes)
    del nodes["s"]
    request = {"prompt": nodes, "extra_data": {"extra_pnginfo": {"a": doubled(60)}}}
    with pytest.raises(WorkflowError, match=r"extra_pnginfo\) holds the same lists or objects too often"):
        fabric.run_workflow(request)
    assert fabric.run_workflow({**request, "extra_data": {"extra_pnginfo": {"a": doubled(10)}}})


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no words for it")


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (
            {"workflow": {"nodes": [{}, {"pos": object()}]}},
            r'extra_pnginfo["workflow"]["nodes"][1]["pos"] is an object',
        ),
        ({"a": Unprintable()}, 'extra_pnginfo["a"] is an Unprintable: it takes what JSON has, strings, numbers,'),
        ({"a": {"b": {1, 2}}}, 'extra_pnginfo["a"]["b"] is a set'),
        ({"a": [b"x"]}, 'extra_pnginfo["a"][0] is a bytes'),
        ({"a": torch.ones(2)}, 'extra_pnginfo["a"] is a Tensor'),
        ({"a": {(1, 2): 3}}, 'extra_pnginfo["a"] has a key that is a tuple: it takes strings'),
        ({"a": [10**5000]}, 'extra_pnginfo["a"][0] is a number of 16610 bits'),
        ({(1, 2): 3}, "(extra_pnginfo) has a tuple by name: a picture takes names of Latin letters, digits and signs"),
        ({"ключ": 1}, "(extra_pnginfo) has 'ключ' by name"),
        ({"": 1}, "(extra_pnginfo) has '' by name"),
        ({"a\nb": 1}, r"(extra_pnginfo) has 'a\nb' by name"),
        (["a"], "(extra_pnginfo) is a list: it must be an object"),
        (torch.ones(2), "(extra_pnginfo) is a Tensor: it must be an object"),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
@pytest.mark.parametrize("told", [True, False])
def test_what_no_file_can_have_beside_a_picture_is_told_before_anything_runs(fabric, tmp_path, extra, said, told):
    """With its place, whether a node of a worker is told it, or a file gets it."""
    request = who(extra)
    if not told:
        request["prompt"] = {
            "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
        }
    with pytest.raises(WorkflowError) as caught:
        fabric.run_workflow(request, output_dir=tmp_path / "out")
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": {(1, 2): 3}}, "node 1: 'junk'[\"a\"] has a key that is a tuple"),
        ([10**5000], "node 1: 'junk'[0] is a number of 16610 bits"),
        ([Unprintable()], ""),
        ({1: torch.ones(2)}, ""),
    ],
    ids=["key", "number", "object", "tensor"],
)
def test_a_value_is_written_into_pictures_or_told_before_anything_runs(fabric, tmp_path, value, said):
    workflow = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "junk": value}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
    }
    if said:
        with pytest.raises(WorkflowError) as caught:
            fabric.run_workflow(workflow, output_dir=tmp_path)
        assert said in str(caught.value)
    else:
        assert len(fabric.run_workflow(workflow, output_dir=tmp_path).files) == 1
