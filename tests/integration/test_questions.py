"""What packs' nodes are asked before a workflow runs, where they fail to answer."""

import json
import logging
from pathlib import Path

import pytest
from shell import vortex, workflow

import vortex_worker as vw
from vortex_worker.errors import DeadlineExceeded, JobError, WorkflowError

PACK = Path(__file__).parent / "packs" / "asked"
SHOWN = r"no\nerror: node 9 (Fake): made up\t!\x1b[2J"


@pytest.fixture(scope="module")
def fabric():
    with vw.Fabric(1, custom_nodes=PACK, threads=1, grace=0.3) as fabric:
        yield fabric.wait_ready(60)


def graph(class_type, *hows):
    return {str(key): {"class_type": class_type, "inputs": {"how": how}} for key, how in enumerate(hows, 1)}


@pytest.mark.parametrize(("how", "said"), [("raise", "ZeroDivisionError"), ("die", "")])
def test_a_failed_is_changed_is_told_once(caplog, how, said):
    with vw.Fabric(1, custom_nodes=PACK, threads=1, grace=0.3) as fabric, caplog.at_level(logging.WARNING):
        results = [fabric.run_workflow(graph("PackChanged", how, how)) for _ in range(2)]
        (told,) = [record.getMessage() for record in caplog.records if "IS_CHANGED" in record.getMessage()]
    assert told.startswith("node 1 (PackChanged) can't say whether it has changed (IS_CHANGED), and runs each time: ")
    assert said in told
    assert (f"{PACK}/__init__.py:" in told) == (how == "raise")
    for result in results:
        assert result.cached == []
        assert [warning.partition(": ")[0] for warning in result.warnings] == [told.partition(": ")[0]]


def test_the_command_line_tells_of_a_failed_is_changed(tmp_path):
    path = workflow(tmp_path, graph("PackChanged", "raise lines"))
    done = vortex("run", path, "--json", "--custom-nodes", PACK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)["warnings"]
    assert f"raised ValueError: {SHOWN}" in told
    assert f"warning: {told}\n" in done.stderr


def test_a_validate_inputs_that_raises_is_named(fabric):
    with pytest.raises(WorkflowError, match=rf"VALIDATE_INPUTS raised ZeroDivisionError: .*{PACK}/__init__.py:\d+"):
        fabric.run_workflow(graph("PackValid", "raise"))


def test_what_a_node_says_is_one_line_of_the_report(fabric):
    with pytest.raises(WorkflowError) as caught:
        fabric.run_workflow(graph("PackValid", "lines"))
    (problem,) = caught.value.found
    assert problem.text == SHOWN


@pytest.mark.parametrize(("how", "said"), [("lines", ""), ("raise lines", "VALIDATE_INPUTS raised ValueError: ")])
def test_what_a_node_says_of_linked_values_is_one_line_of_its_job_s_error(fabric, how, said):
    linked = {"2": {"class_type": "PackValid", "inputs": {"how": ["1", 0]}}}
    with pytest.raises(JobError) as caught:
        fabric.run_workflow(graph("PackChanged", how) | linked)
    assert f"PackValid: {said}{SHOWN}" in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(("name", "question"), [("PackChanged", "IS_CHANGED"), ("PackValid", "VALIDATE_INPUTS")])
def test_time_that_runs_out_in_a_question_is_told_with_the_node(fabric, name, question):
    with pytest.raises(DeadlineExceeded, match=rf"within its 1 s: node 1 \({name}\) was asked .*\({question}\)"):
        fabric.run_workflow(graph(name, "wait"), deadline=1)
    fabric.wait_ready(60)
