"""Large graphs and many tensors: what one node or one job costs does not depend on how many there are. Steps are
counted, not seconds."""

import threading

import pytest
import torch
from conftest import SETTINGS

import vortex_worker as vw
from vortex_worker.supervisor.deadline import Deadline
from vortex_worker.supervisor.execution import Execution
from vortex_worker.supervisor.files import Place
from vortex_worker.supervisor.graph import Graph, Node
from vortex_worker.supervisor.jobs import Jobs
from vortex_worker.supervisor.precheck import prepare
from vortex_worker.supervisor.workflow import CLIENT_NODES


class Id(str):
    """A node's id that counts how often it is looked up, in sets and dictionaries too."""

    looks = 0

    def __hash__(self):
        Id.looks += 1
        return str.__hash__(self)

    __eq__ = str.__eq__


SHAPES = {"a chain": lambda n: n - 1, "all from one": lambda n: 0}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_node_of_a_workflow_costs_no_more_the_more_there_are(fabric, shape):
    def looks_per_node(count):
        ids = [Id(n) for n in range(count)]
        nodes = {ids[0]: Node(ids[0], "Identity", {"tensor": f"{shape} of {count}"})}
        for n in range(1, count):
            nodes[ids[n]] = Node(ids[n], "Identity", {}, {"tensor": (ids[SHAPES[shape](n)], 0)})
        targets = ids[-1:] if shape == "a chain" else ids[1:]
        graph, specs, place = Graph(nodes), fabric.nodes(), Place("out", ".")
        params, problems = prepare(fabric, graph, specs, CLIENT_NODES, place, ids, Deadline(None))
        assert problems == []
        Id.looks = 0
        result = Execution(fabric, graph, specs, targets, params, place, CLIENT_NODES, None, Deadline(None)).run()
        looks = Id.looks / count
        assert len(result.nodes) == count
        assert all(outputs == {"tensor": f"{shape} of {count}"} for outputs in result.values.values())
        assert len(result.values) == (1 if shape == "a chain" else count - 1)  # the others' were given back
        return looks

    assert looks_per_node(400) < 1.2 * looks_per_node(40)


def test_a_node_may_return_an_input_that_begins_where_another_does(fabric):
    whole = fabric.tensor(torch.arange(100.0))
    part, again = fabric.run("Identity", {"tensor": [whole[:10], whole]})["tensor"]
    assert torch.equal(part, whole[:10])
    assert torch.equal(again, whole)
    assert again.data_ptr() == whole.data_ptr()


def test_those_who_wait_to_submit_are_woken_one_for_each_place(monkeypatch):
    looks = []
    has_room = Jobs._has_room
    monkeypatch.setattr(Jobs, "_has_room", lambda self: looks.append(1) or has_room(self))
    clients, jobs = 24, 10
    with vw.Fabric(1, queue=1, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        done = []

        def client():
            for number in range(jobs):
                done.append(fabric.submit("Identity", {"tensor": number}))

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(job.result(60)["tensor"] for job in done) == sorted(list(range(jobs)) * clients)
    assert len(looks) < 6 * clients * jobs
