"""What a program can do to a fabric by mistake: each is told at once, and nothing hangs or mixes up."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from conftest import SETTINGS, gone, started, until

import vortex_worker as vw

FORK = """
import os, sys, time
import torch
import vortex_worker as vw

with vw.Fabric(1, custom_nodes={nodes!r}, threads=1) as fabric:
    fabric.wait_ready(60)
    gate = fabric.tensor([0])
    running = fabric.submit("Gate", {{"gate": gate, "tensor": 7}})
    pid = os.fork()
    if pid == 0:
        told = []
        for attempt in (lambda: fabric.run("Identity", {{"tensor": 1}}), lambda: fabric.empty((4,)),
                        lambda: running.result(5), fabric.wait_ready, lambda: fabric.scale(2)):
            try:
                told.append(repr(attempt()))
            except vw.errors.FabricClosed as error:
                told.append("forked" if "was forked" in str(error) else repr(error))
        print(told, flush=True)
        fabric.close()
        with vw.Fabric(1, standby=0) as mine:
            print(mine.run("Identity", {{"tensor": 5}}), flush=True)
        os._exit(0)
    answers = [fabric.submit("Identity", {{"tensor": torch.full((4,), float(n))}}) for n in range(50)]
    gate.fill_(1)
    assert running.result(60)
    assert all((job.result(60)["tensor"] == n).all() for n, job in enumerate(answers))
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
    assert fabric.run("Identity", {{"tensor": 2}}) == {{"tensor": 2}}
print("done")
"""


def test_a_forked_program_is_told_and_takes_nothing_of_its_parent_s():
    """Found by a hostile trial: the parent got the child's results."""
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", FORK.format(nodes=str(SETTINGS["custom_nodes"]))],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [str(["forked"] * 5), "{'tensor': 5}", "done"]


def test_workers_end_with_their_program_though_a_fork_of_it_lives_on():
    program = (
        "import os, sys, time, vortex_worker as vw\n"
        "fabric = vw.Fabric(1).wait_ready(60)\n"
        "pids = [w['pid'] for w in fabric.workers() + fabric.standbys()]\n"
        "if os.fork() == 0:\n    time.sleep(600)\n"
        "print(*pids, flush=True)\nos._exit(0)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.wait(60)
    until(lambda: all(gone(pid) for pid in pids), "the end of every worker", 30)
    os.killpg(parent.pid, 9)  # the fork
    parent.stdout.close()


def test_an_object_of_another_fabric_is_refused(fabric):
    with vw.Fabric(1, standby=0, **SETTINGS) as other:
        box = fabric.run("MakeBox", params={"value": 1.0})["box"]
        for _ in range(3):
            with pytest.raises(ValueError, match="is another fabric's: objects are used where they were made"):
                other.run("OpenBox", {"box": box})
        assert [other.run("Identity", {"tensor": n}) for n in range(5)] == [{"tensor": n} for n in range(5)]
        del box
    assert fabric.run("Identity", {"tensor": 1}) == {"tensor": 1}


def test_a_callback_that_waits_is_told_and_one_that_exits_ends_nothing(fabric, gate):
    told = []

    def meddle(job):
        for attempt in (
            lambda: fabric.run("Identity", {"tensor": 1}),
            fabric.close,
            fabric.drain,
            fabric.wait_ready,
            fabric.reload,
        ):
            try:
                attempt()
            except RuntimeError as error:
                told.append(str(error))
        sys.exit(3)

    def interrupt(job):
        raise KeyboardInterrupt

    for callback in (meddle, interrupt):
        gate.fill_(0)
        job = started(fabric.submit("Gate", {"gate": gate}))
        job.add_done_callback(callback)
        gate.fill_(1)
        waiter = threading.Thread(target=job.wait)  # not here: it may be who runs the callback
        waiter.start()
        waiter.join(60)
    assert len(told) == 5
    assert all(text.startswith("a job's callback can't ") for text in told)
    victim = fabric.workers()[0]["pid"]
    os.kill(victim, 9)
    until(lambda: gone(victim), "its burial: the fabric's thread is alive")
    assert fabric.run("Identity", {"tensor": 2}) == {"tensor": 2}


def test_a_callback_may_submit(fabric):
    again = []
    job = fabric.submit("Identity", {"tensor": 1})
    job.add_done_callback(lambda job: again.append(fabric.submit("Identity", {"tensor": 2})))
    job.result(60)
    assert until(lambda: again)[0].result(60) == {"tensor": 2}


@pytest.mark.parametrize("timeout", [float("inf"), 1e300])
def test_any_time_is_a_time_to_wait(fabric, timeout):
    assert fabric.submit("Identity", {"tensor": 1}).result(timeout) == {"tensor": 1}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"op_type": 5}, "op_type is 5: it takes a node's name"),
        ({"inputs": [1]}, r"inputs is \[1\]: it takes a dict"),
        ({"params": "seconds"}, "params is 'seconds': it takes a dict"),
        ({"retries": "many"}, "retries is 'many': it takes a whole number"),
        ({"priority": 1.5}, "priority is 1.5: it takes a whole number"),
        ({"deadline": "soon"}, "deadline is 'soon': it takes seconds"),
    ],
    ids=str,
)
def test_what_is_none_is_refused_where_it_is_said(fabric, call, said):
    """Later, in the fabric's own thread, it would be everybody's."""
    with pytest.raises(TypeError, match=said):
        fabric.submit(**{"op_type": "Die", "params": {"how": "kill"}} | call)


def test_there_are_no_retries_below_0(fabric):
    with pytest.raises(ValueError, match="retries is -1: it takes 0 or more"):
        fabric.submit("Identity", {"tensor": 1}, retries=-1)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"settings": {1: 2}}, TypeError, 'settings has the key 1: it takes strings, "NODE.INPUT"'),
        ({"settings": 5}, TypeError, "settings is 5: it takes a dict of values"),
        ({"progress": 5}, TypeError, "progress is 5: it takes an object with the methods node_started"),
        ({"outputs": 5}, TypeError, "outputs is 5: it takes ids of nodes"),
        ({"outputs": [None]}, TypeError, r"outputs is \[None\]: it takes ids"),
        ({"output_dir": "\0"}, ValueError, r"output_dir is '\\x00': it takes the path of a folder"),
        ({"output_dir": 5}, TypeError, "output_dir is 5: it takes the path of a folder"),
        ({"settings": {"seed": 1}}, vw.errors.WorkflowError, r'settings\["seed"\]: it takes NODE\.INPUT'),
        ({"settings": {"7.seed": 1}}, vw.errors.WorkflowError, r'settings\["7.seed"\]: there is no node \'7\''),
    ],
    ids=str,
)
def test_an_argument_of_a_workflow_s_run_is_refused_by_its_name(fabric, arguments, error, said):
    with pytest.raises(error, match=said):
        fabric.run_workflow({"1": {"class_type": "EmptyLatentImage", "inputs": {}}}, **arguments)


def test_no_time_is_refused(fabric, gate):
    job = fabric.submit("Gate", {"gate": gate})
    with pytest.raises(ValueError, match="timeout is nan"):
        job.result(float("nan"))
    gate.fill_(1)
    job.result(60)


def test_previews_come_again_when_those_of_the_job_before_are_dropped(single):
    first = single.submit("Show", params={"steps": 2000, "size": 1000})
    held = []
    first.on_progress(lambda job: held.append(job.preview))
    first.result(60)
    second = single.submit("Show", params={"steps": 200_000, "size": 10})
    started(second)
    held.clear()
    until(lambda: second.preview is not None or second.done(), "a preview")
    assert not second.done()
    second.cancel()
    second.wait(60)


def test_an_observer_that_raises_leaves_no_job_open():
    with vw.Fabric(1, standby=0, **SETTINGS) as fabric:
        seen = []
        fabric.observe(seen.append)
        fabric.observe(lambda job: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fabric.submit("Identity", {"tensor": torch.ones(2)})
        assert [job.done() for job in seen] == [True]
