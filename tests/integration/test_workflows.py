"""Workflows: what runs again and what doesn't, lists, lazy inputs, chosen outputs, branches side by side."""

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from conftest import NODES, gone, until

import vortex_worker as vw
from vortex_worker.errors import DeadlineExceeded, ExecutionError, ValidationError, WorkflowError

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


def test_a_value_that_says_the_same_in_another_type_is_the_same(fabric):
    first = fabric.run_workflow(NOISE, settings={"noise.seed": 31})
    assert ran(fabric.run_workflow(NOISE, settings={"noise.seed": "31", "twice.factor": 2})) == set()
    assert ran(fabric.run_workflow(NOISE, settings={"noise.seed": 31.0, "twice.factor": "2.0"})) == set()
    changed = fabric.run_workflow(NOISE, settings={"noise.seed": 31, "twice.factor": "4"}).values["twice"]["tensor"]
    assert torch.equal(changed, 2 * first.values["twice"]["tensor"])
    with pytest.raises(ValidationError, match="'factor' is '4'"):  # a program's own values are taken as they are
        fabric.run("Scale", {"tensor": torch.ones(2)}, {"factor": "4"})


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
    with pytest.raises(WorkflowError, match=r"no node 'thrise': it takes one of .*; did you mean 'thrice'"):
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
        ("bad_linked_input", "latent_image"), ("return_type_mismatch", "model"), ("value_not_in_list", "sampler_name"),
        ("required_input_missing", "positive"),
    } <= kinds["2"]  # fmt: skip
    (dangling,) = (e for e in errors["2"]["errors"] if e["type"] == "bad_linked_input")
    assert "'latent_image' links to node '9'" in dangling["message"]  # as the workflow names it
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


def test_an_input_may_take_one_of_several_types(fabric):
    workflow = {
        "one": {"class_type": "PackAdd", "inputs": {"a": 1, "b": 2.5}},
        "two": {"class_type": "PackAdd", "inputs": {"a": ["one", 0], "b": ["one", 1]}},
    }
    assert fabric.run_workflow(workflow).values["two"]["FLOAT"] == 7.0
    workflow["one"]["inputs"]["b"] = "x"
    with pytest.raises(ValidationError, match="'b' is 'x': it takes a whole number or a finite number"):
        fabric.run_workflow(workflow)
    text = {"class_type": "PackWho", "inputs": {}}
    workflow["one"]["inputs"]["b"] = ["text", 0]
    with pytest.raises(WorkflowError, match="'b' takes INT,FLOAT, but slot 0 of node text") as caught:
        fabric.run_workflow({**workflow, "text": text})
    assert caught.value.node_errors["one"]["errors"][0]["type"] == "return_type_mismatch"


def test_a_pack_may_judge_the_types_that_are_linked_to_it(fabric):
    workflow = {
        "image": {"class_type": "PackSplit", "inputs": {"count": 1}},
        "long": {"class_type": "PackMeasure", "inputs": {"value": ["image", 0], "times": 3}},
    }
    assert fabric.run_workflow(workflow).values["long"]["INT"][0] == 3
    workflow["long"]["inputs"]["value"] = ["image", 1]
    with pytest.raises(WorkflowError, match="INT has no length"):
        fabric.run_workflow(workflow)
    assert fabric.run("PackMeasure", params={"value": "four", "times": 2})["INT"] == 8  # nothing is linked


def test_a_switch_passes_objects_on(fabric):
    workflow = {
        "one": {"class_type": "PackGadget", "inputs": {}},
        "switch": {"class_type": "PackSwitch", "inputs": {"on": True, "yes": ["one", 0], "no": ["one", 0]}},
        "again": {"class_type": "PackSwitch", "inputs": {"on": False, "yes": ["one", 0], "no": ["switch", 0]}},
        "taken": {"class_type": "PackGadget", "inputs": {"gadget": ["again", 0]}},
    }
    result = fabric.run_workflow(workflow, outputs=["switch", "taken"])
    assert result.values["switch"]["value"].type == "GADGET"
    assert result.values["taken"]["BOOLEAN"] is True


def test_what_a_node_does_to_tensors_of_its_packs_types_is_its_own_business(fabric):
    levels = {"class_type": "PackLevels", "inputs": {}}
    kept = {"levels": ["levels", 0], "pipe": ["levels", 1]}
    workflow = {"levels": levels} | {
        str(place): {"class_type": "PackSpoil", "inputs": kept | {"place": place}} for place in range(2)
    }
    values = fabric.run_workflow(workflow).values
    assert [values[key]["FLOAT"] for key in "01"] == [6.0, 6.0]


def test_a_switch_passes_on_what_its_pack_calls_by_a_type_of_its_own(fabric):
    workflow = {
        "levels": {"class_type": "PackLevels", "inputs": {}},
        "switch": {"class_type": "PackSwitch", "inputs": {"on": True, "yes": ["levels", 0], "no": ["levels", 1]}},
        "pipe": {"class_type": "PackSwitch", "inputs": {"on": False, "yes": ["levels", 0], "no": ["levels", 1]}},
        "sum": {"class_type": "PackSpoil", "inputs": {"levels": ["switch", 0], "pipe": ["pipe", 0]}},
    }
    assert fabric.run_workflow(workflow).values["sum"]["FLOAT"] == 6.0


def test_a_deadline_ends_a_node_that_would_run_for_ever(fabric):
    nodes = {
        "noise": {"class_type": "RandomTensor", "inputs": {"shape": [1], "seed": 1}},
        "shut": {"class_type": "Scale", "inputs": {"tensor": ["noise", 0], "factor": 0.0}},
        "gate": {"class_type": "DeafGate", "inputs": {"gate": ["shut", 0]}},
    }
    with pytest.raises(DeadlineExceeded) as caught:
        fabric.run_workflow(nodes, deadline=1.0)
    assert caught.value.details["node"] == "gate"
    assert "the workflow was not done within its 1 s: node gate (DeafGate) had been running for " in str(caught.value)
    assert ran(fabric.run_workflow(NOISE, settings={"noise.seed": 77}, deadline=60)) == {"noise", "twice", "thrice"}


def test_a_deadline_that_has_passed_ends_a_workflow_before_it_runs(fabric):
    with pytest.raises(DeadlineExceeded, match="within its 1e-06 s"):
        fabric.run_workflow(NOISE, settings={"noise.seed": 78}, deadline=1e-6)
    with pytest.raises(ValueError, match="deadline is -1"):
        fabric.run_workflow(NOISE, deadline=-1)
