"""ComfyUI's custom-node packs, unmodified, in sandboxed workers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import vortex_worker as vw
from vortex_worker.errors import ExecutionError, SandboxViolation, ValidationError

PACKS = Path(__file__).parent / "packs"


@pytest.fixture(scope="module")
def fabric(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    (models / "upscale_models" / "sub").mkdir(parents=True)
    save_file({"w": torch.ones(3)}, models / "upscale_models" / "sub" / "x4.safetensors")
    nodes = Path(__file__).parent / "nodes"
    with vw.Fabric(1, custom_nodes=[PACKS, nodes], models=models, threads=1, grace=0.3) as fabric:
        yield fabric.wait_ready(60)


def test_packs_stand_beside_native_nodes(fabric):
    nodes = fabric.nodes()
    assert {"PackBrighten", "PackLabel", "PackSwitch", "KSampler"} <= nodes.keys()
    brighten = nodes["PackBrighten"]
    assert [(port.name, port.type, port.optional) for port in brighten.inputs] == [
        ("image", "IMAGE", False), ("mask", "MASK", True),
    ]  # fmt: skip
    assert [(port.name, port.type) for port in brighten.outputs] == [("brighter", "IMAGE"), ("steps", "INT")]
    amount, times = brighten.params
    assert (amount.default, amount.minimum, amount.maximum, amount.doc) == (0.1, 0.0, 1.0, "how much")
    assert (times.type, times.default) == ("INT", None)
    assert (brighten.source, brighten.category) == ("packs/tensors", "tests/maths")
    assert brighten.doc == "Brighten a picture, in place."
    assert nodes["PackLabel"].params[1].choices == ("top", "bottom")
    assert nodes["PackWho"].hidden == {"node": "UNIQUE_ID", "graph": "PROMPT", "extra": "EXTRA_PNGINFO"}
    assert nodes["PackWho"].output_node
    assert nodes["PackCount"].answers == {"CHANGED"}


def test_what_does_not_load_is_told_by_name_and_the_rest_loads(fabric):
    errors = {plugin: message for plugin, message, _ in fabric.plugin_errors() if plugin.startswith("packs/")}
    assert "no module named 'comfy.ldm'" in errors["packs/broken-pack.v1"].lower()
    assert "comfy.model_management" in errors["packs/broken-pack.v1"]
    told = [message for plugin, message, _ in fabric.plugin_errors() if plugin == "packs/misbehaving"]
    assert any("no such method" in message for message in told)
    assert any("'x' is a str: it must be a tuple" in message for message in told)


def test_a_node_that_changes_its_input_changes_a_copy(fabric):
    image = fabric.tensor(torch.zeros(1, 2, 2, 3))
    out = fabric.run("PackBrighten", inputs={"image": image}, params={"amount": 0.25})
    assert (out["brighter"] == 0.5).all()  # its own default of `times`, for nobody gave it: 2
    assert out["steps"] == 2
    assert (image == 0).all()
    masked = {"image": image, "mask": torch.zeros(1, 2, 2)}
    assert fabric.run("PackBrighten", inputs=masked, params={"times": 1})["brighter"].max() == 0


def test_progress_bars_are_the_jobs_progress(fabric):
    job = fabric.submit("PackBrighten", inputs={"image": torch.zeros(1, 2, 2, 3)}, params={"times": 3})
    job.result()
    assert job.progress[:2] == (3, 3)


def test_values_of_a_packs_own_types_stay_in_the_worker(fabric):
    box = fabric.run("PackPick", params={"size": 4, "even": 2})["PACK_BOX"]
    assert box.type == "PACK_BOX"
    assert fabric.run("PackUnpick", inputs={"box": box})["INT"] == 6


def test_choices_and_own_checks(fabric):
    with pytest.raises(ValidationError, match="'size' is 3: it takes one of 1, 2, 4"):
        fabric.run("PackPick", params={"size": 3})
    with pytest.raises(ValidationError, match="3 is odd"):
        fabric.run("PackPick", params={"even": 3})
    with pytest.raises(ValidationError, match=r"'times' is 9: it takes a whole number, 1 to 8"):
        fabric.run("PackBrighten", inputs={"image": torch.zeros(1, 2, 2, 3)}, params={"times": 9})


def test_pillow_pictures(fabric):
    out = fabric.run("PackLabel", inputs={"image": torch.zeros(2, 16, 24, 3)}, params={"text": "hi", "width": 40})
    assert out["IMAGE"].shape == (2, 16, 40, 3)
    assert out["IMAGE"][..., 0].max() > 0.5
    assert out["MASK"].shape == (2, 16, 40)


def test_models_are_found_by_folder_paths(fabric):
    assert fabric.nodes()["PackFolders"].params[0].choices == ("sub/x4.safetensors",)
    out = fabric.run("PackFolders", params={"upscaler": "sub/x4.safetensors"})
    assert (out["STRING"], out["FLOAT"]) == ("x4.safetensors", 3.0)


@pytest.mark.parametrize(
    ("deed", "what", "instead"),
    [
        ("network", "can't reach the network", "folder of models"),
        ("url", "can't reach the network ('http://localhost:9/model.safetensors')", "before the workflow runs"),
        ("subprocess", "can't start a program ('pip')", "install"),
        ("system", "can't start a program", "before the workflow"),
        ("write", "can't write files ('/nonexistent/output/x.png')", "return what it makes as an output"),
        ("makedirs", "can't write files", "no setting of a worker allows it"),
        ("tempfile", "can't write files", "SaveImage"),
        ("read", "'/etc/passwd'", "add the folder (Fabric(models=…), --models)"),
        ("extension", "failed to map segment", "Fabric(modules=…)"),
        ("comfy", "No module named 'comfy.sd'", "comfy.utils"),
        ("pickle", "is a pickle", "convert it to safetensors"),
        ("few", "returned 0 values: RETURN_TYPES has 1", ""),
        ("none", "returned 5: it must return a tuple", ""),
    ],
)
def test_what_the_sandbox_denies_is_told_and_what_to_do_instead(fabric, deed, what, instead):
    pid = fabric.workers()[0]["pid"]
    with pytest.raises((ExecutionError, ValidationError)) as caught:
        fabric.run("PackMisbehave", params={"deed": deed})
    assert what in caught.value.message
    assert instead in caught.value.message
    assert fabric.workers()[0]["pid"] == pid  # it lives on


@pytest.mark.parametrize("deed", ["kernel", "torch_save"])  # neither is Python's own doing, which has audit events
def test_what_no_guard_sees_the_kernel_stops(fabric, deed):
    with pytest.raises(SandboxViolation, match=r"misbehaving/__init__\.py"):
        fabric.run("PackMisbehave", params={"deed": deed})


def test_a_compiled_module_can_be_had_if_it_is_asked_for_beforehand():
    with (
        vw.Fabric(1, standby=0, custom_nodes=PACKS, modules=["_testcapi"], threads=1) as fabric,
        pytest.raises(ExecutionError, match="it must return a tuple"),  # it gave the module: that was imported
    ):
        fabric.run("PackMisbehave", params={"deed": "extension"})
    with (
        vw.Fabric(1, standby=0, modules=["no_such_module"], threads=1) as fabric,
        pytest.raises(vw.errors.LaunchError, match=r"status 2(?s:.*)modules is 'no_such_module'"),
    ):
        fabric.wait_ready(60)


def test_comfys_modules_are_for_packs_only(fabric):
    with pytest.raises(ExecutionError, match="No module named 'folder_paths'"):
        fabric.run("ImportByName", params={"name": "folder_paths"})
    fabric.run("PackPick")
    with pytest.raises(ExecutionError, match="No module named 'comfy'"):
        fabric.run("ImportByName", params={"name": "comfy"})


def test_a_pack_may_be_given_by_itself():
    with vw.Fabric(1, standby=0, custom_nodes=PACKS / "tensors", threads=1) as fabric:
        assert fabric.run("PackUnpick", inputs={"box": fabric.run("PackPick")["PACK_BOX"]})["INT"] == 2
