"""What nodes of a workflow answer and give, as far as the supervisor's own code uses it: nothing but named errors."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sandbox_child import supported

import vortex_worker as vw
from vortex_worker.errors import ExecutionError, ValidationError

pytestmark = pytest.mark.skipif(not supported(), reason="this machine lacks seccomp or Landlock")

NODES = '''
import sys

import torch

from vortex_worker.executor import AbstractExecutor, Param, Port

# A node can have its worker forget to look at what it gives, and leave things out.
RUNNER, ENGINE = sys.modules["vortex_worker.executor.runner"], sys.modules["vortex_worker.engine"]
check, Finished = RUNNER.check_outputs, ENGINE.Finished
left_out = set()


def finished(outputs, *rest):
    sent = {name: value for name, value in outputs.items() if name not in left_out}
    left_out.clear()
    return Finished(sent, *rest)


RUNNER.check_outputs = lambda spec, outputs: outputs if spec.name == "Liar" else check(spec, outputs)
ENGINE.Finished = finished


class Dot(AbstractExecutor):
    op_type = "Dot"
    output_ports = (Port("image", "IMAGE"),)

    def execute(self, inputs, params):
        return {"image": torch.zeros(1, 1, 1, 3)}


class Stretch(AbstractExecutor):
    """A view of its input: much larger than that, and of no memory."""

    op_type = "Stretch"
    input_ports = (Port("image", "IMAGE"),)
    params = (Param("size", "INT"),)
    output_ports = (Port("image", "IMAGE"), Port("latent", "LATENT"))

    def execute(self, inputs, params):
        image = inputs["image"].expand(1, params["size"], params["size"], 3)
        return {"image": image, "latent": {"samples": image}}


class Needs(AbstractExecutor):
    op_type = "Needs"
    input_ports = (Port("image", "IMAGE", lazy=True),)
    params = (Param("answer", "ANY"),)
    output_ports = (Port("text", "STRING"),)

    def changed(self, params):
        return self.needs({}, params)

    def needs(self, inputs, params):
        if params["answer"] is None:
            left_out.add("answer")
        return params["answer"]

    def execute(self, inputs, params):
        return {"text": "without" if inputs.get("image") is None else "with"}


class Picture(AbstractExecutor):
    op_type = "Picture"
    params = (Param("height", "INT"), Param("width", "INT"))
    output_ports = (Port("image", "IMAGE"),)

    def execute(self, inputs, params):
        return {"image": torch.zeros(1, params["height"], params["width"], 3)}


class Liar(AbstractExecutor):
    op_type = "Liar"
    params = (Param("outputs", "ANY"),)
    output_ports = (Port("image", "IMAGE"), Port("many", "INT", is_list=True))

    def execute(self, inputs, params):
        left_out.update({"image", "many"} - params["outputs"].keys())
        return {"image": 1, "many": [1]} | params["outputs"]


class Takes(AbstractExecutor):
    op_type = "Takes"
    input_ports = (Port("value"),)
    output_ports = (Port("value"),)

    def execute(self, inputs, params):
        return inputs
'''


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[vw.Fabric]:
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "workflow_lies.py").write_text(NODES)
    with vw.Fabric(1, standby=0, threads=1, custom_nodes=folder, lease_size=64 << 20, client_size=16 << 20) as fabric:
        assert not fabric.wait_ready(60).plugin_errors()
        yield fabric
        assert fabric.run("Takes", {"value": 1})["value"] == 1


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


@pytest.mark.parametrize("answer", [[["image"]], [{"image": 1}], {"image": 1}, "image", 7, [None, 1.5], None], ids=repr)
def test_needs_that_are_no_names_are_none(fabric: vw.Fabric, tmp_path: Path, answer: Any) -> None:
    workflow = {"1": node("Dot"), "2": node("Needs", image=["1", 0], answer=answer)}
    assert fabric.run_workflow(workflow, output_dir=tmp_path).values["2"]["text"] == "without"


@pytest.mark.parametrize("outputs", [{}, {"image": 1, "many": [1]}, {"many": 3}, {"many": None}], ids=repr)
@pytest.mark.parametrize("slot", [0, 1])
def test_outputs_that_are_not_as_declared(fabric: vw.Fabric, tmp_path: Path, outputs: Any, slot: int) -> None:
    workflow = {"1": node("Liar", outputs=outputs), "2": node("Takes", value=["1", slot])}
    with pytest.raises(ExecutionError, match=r"Liar returned a (bad output|dict that lacks)") as caught:
        fabric.run_workflow(workflow, output_dir=tmp_path)
    assert caught.value.details["node"] == "1"


@pytest.mark.parametrize("saving", ["SaveImage", "SaveAnimatedWEBP"])
@pytest.mark.parametrize(("height", "width"), [(0, 0), (0, 8), (8, 0)])
def test_pictures_without_pixels(fabric: vw.Fabric, tmp_path: Path, saving: str, height: int, width: int) -> None:
    workflow = {"1": node("Picture", height=height, width=width), "2": node(saving, images=["1", 0])}
    with pytest.raises(ValidationError, match=re.escape(f"images is (1, {height}, {width}, 3)")):
        fabric.run_workflow(workflow, output_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_its_format_can_not_hold(fabric: vw.Fabric, tmp_path: Path) -> None:
    workflow = {"1": node("Picture", height=1, width=20_000), "2": node("SaveAnimatedWEBP", images=["1", 0])}
    with pytest.raises(ValidationError, match="16383"):
        fabric.run_workflow(workflow, output_dir=tmp_path)
    assert not list(tmp_path.iterdir())  # nor half a file: nobody would know that it is none


@pytest.mark.parametrize(("saving", "name", "slot"), [("SaveImage", "images", 0), ("SaveLatent", "samples", 1)])
def test_a_view_that_would_fill_our_memory_is_not_copied(
    fabric: vw.Fabric, tmp_path: Path, saving: str, name: str, slot: int
) -> None:
    """Of three numbers: 12 GB as a picture, and more on the way there."""
    workflow = {
        "1": node("Dot"),
        "2": node("Stretch", image=["1", 0], size=32_000),
        "3": node(saving, **{name: ["2", slot]}),
    }
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, limits[1]))  # if it does, only this test is to suffer
    try:
        with pytest.raises(ValidationError, match=f"{name} is .* of which 12 bytes are its own"):
            fabric.run_workflow(workflow, output_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


@pytest.mark.parametrize(("saving", "name", "slot"), [("SaveImage", "images", 0), ("SaveLatent", "samples", 1)])
def test_a_view_of_ordinary_size_is_saved(fabric: vw.Fabric, tmp_path: Path, saving: str, name: str, slot: int) -> None:
    workflow = {
        "1": node("Dot"),
        "2": node("Stretch", image=["1", 0], size=64),
        "3": node(saving, **{name: ["2", slot]}),
    }
    assert fabric.run_workflow(workflow, output_dir=tmp_path).files
