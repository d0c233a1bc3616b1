"""Workflows: read, overridden and checked; every problem told at once, by node."""

import contextlib
import difflib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vortex_worker.errors import WorkflowError
from vortex_worker.executor.ports import OpSpec, Param, Port
from vortex_worker.supervisor.check import check, drop_unknown
from vortex_worker.supervisor.conversion import converted
from vortex_worker.supervisor.graph import Graph, Node, is_link

SPECS = {
    "Load": OpSpec("Load", outputs=(Port("model", "MODEL"),)),
    "Noise": OpSpec("Noise", outputs=(Port("latent", "LATENT"), Port("count", "INT")), params=(Param("seed", "INT", default=0, minimum=0),)),  # noqa: E501
    "Sample": OpSpec(
        "Sample",
        inputs=(Port("model", "MODEL"), Port("latent", "LATENT", aliases=("latent_image",)), Port("mask", "MASK", optional=True)),  # noqa: E501
        outputs=(Port("latent", "LATENT"),),
        params=(Param("steps", "INT", default=20, minimum=1, maximum=100), Param("name", "CHOICE", choices=("euler", "heun"))),  # noqa: E501
    ),
    "Any": OpSpec("Any", inputs=(Port("value", "*"),), outputs=(Port("value", "*"),)),
}  # fmt: skip

GOOD = {
    "1": {"class_type": "Load", "inputs": {}},
    "2": {"class_type": "Noise", "inputs": {"seed": 3}},
    "3": {"class_type": "Sample", "inputs": {"model": ["1", 0], "latent_image": ["2", 0], "name": "heun"}},
}


def problems_of(workflow):
    with pytest.raises(WorkflowError) as caught:
        check(Graph.read(workflow), SPECS)
    return caught.value.problems


def with_inputs(node, **inputs):
    return {**GOOD, node: {**GOOD[node], "inputs": {**GOOD[node]["inputs"], **inputs}}}


def test_a_good_workflow_passes_and_its_aliases_are_renamed():
    graph = Graph.read(GOOD)
    check(graph, SPECS)
    assert graph.nodes["3"].links == {"model": ("1", 0), "latent": ("2", 0)}


@pytest.mark.parametrize(
    ("kind", "given", "taken"),
    [
        ("INT", "4", 4), ("INT", 4.0, 4), ("INT", " -7\n", -7), ("INT", str(2**64 - 1), 2**64 - 1),
        ("INT", 2.5, 2.5), ("INT", "4.0", "4.0"), ("INT", True, True), ("INT", "", ""),
        ("INT", "9" * 5000, "9" * 5000), ("INT", None, None), ("INT", float("inf"), float("inf")),
        ("FLOAT", "4", 4.0), ("FLOAT", 4, 4.0), ("FLOAT", "-1e-3", -0.001), ("FLOAT", "nan", "nan"),
        ("FLOAT", "1e999", "1e999"), ("FLOAT", 10**400, 10**400), ("FLOAT", True, True), ("STRING", 4, "4"),
        ("STRING", 0.5, "0.5"), ("STRING", True, "True"), ("STRING", None, None), ("STRING", ["a"], ["a"]),
        ("BOOLEAN", 0, False), ("BOOLEAN", 2.0, True), ("BOOLEAN", "", False), ("BOOLEAN", "false", True),
        ("BOOLEAN", None, None), ("BOOLEAN", [], []), ("CHOICE", 4, 4), ("*", "4", "4"),
        ("LIST", {"__value__": ["3", 0]}, ["3", 0]), ("INT", {"__value__": "4"}, 4),
        ("ANY", {"value": 1}, {"value": 1}),
    ],
)  # fmt: skip
def test_values_become_the_type_that_is_declared_or_stay(kind, given, taken):
    value = converted(kind, given)
    assert (value, type(value)) == (taken, type(taken))


def test_a_number_of_too_many_digits_stays_one():
    huge = 10**5000  # Python refuses to write it out
    assert converted("STRING", huge) is converted("FLOAT", huge) is huge


def test_values_of_a_workflow_are_converted_before_they_are_checked():
    graph = Graph.read(with_inputs("3", steps="100"))
    check(graph, SPECS)
    assert graph.nodes["3"].values["steps"] == 100
    with pytest.raises(WorkflowError) as caught:
        check(Graph.read(with_inputs("3", steps="0")), SPECS)
    assert [problem.type for problem in caught.value.found] == ["value_smaller_than_min"]
    with pytest.raises(WorkflowError) as caught:
        check(Graph.read(with_inputs("3", steps="four")), SPECS)
    (error,) = caught.value.node_errors["3"]["errors"]
    assert (error["type"], error["details"]) == ("invalid_input_type", "steps")
    assert error["extra_info"] == {"input_name": "steps", "received_value": "four"}


def test_reads_a_file(tmp_path):
    path = tmp_path / "w.json"
    path.write_text(json.dumps(GOOD))
    assert list(Graph.read(path).nodes) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "JSON object"),
        ("{}", "no nodes"),
        ('{"nodes": [], "links": []}', "API"),
        ('{"1": {"inputs": {}}}', "class_type"),
        ('{"1": {"class_type": "Load", "inputs": [1]}}', "inputs is a list"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_what_is_no_workflow_is_told_so(tmp_path, text, said):
    path = tmp_path / "w.json"
    path.write_text(text)
    with pytest.raises(WorkflowError, match=said):
        Graph.read(path)


def test_a_missing_file_is_told_so(tmp_path):
    with pytest.raises(WorkflowError, match="No such file"):
        Graph.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("workflow", "node", "said"),
    [
        ({**GOOD, "4": {"class_type": "Sampel", "inputs": {}}}, "4", "did you mean 'Sample'"),
        (with_inputs("3", model=["9", 0]), "3", "node '9', which is not there"),
        (with_inputs("3", model=["1", 1]), "3", "slot 1 of node 1 (Load), which has 1 output"),
        (with_inputs("3", model=["2", 0]), "3", "takes MODEL, but slot 0 of node 2 (Noise) gives LATENT"),
        (with_inputs("3", model="a name"), "3", "takes a link to a MODEL, not 'a name'"),
        (with_inputs("3", step=3), "3", "no input 'step'; did you mean 'steps'"),
        (with_inputs("3", steps=0), "3", "'steps' is 0: it takes a whole number, 1 to 100"),
        (with_inputs("3", steps=2.5), "3", "'steps' is 2.5"),
        (with_inputs("3", steps="101"), "3", "'steps' is 101: it takes a whole number, 1 to 100"),
        (with_inputs("3", steps="four"), "3", "'steps' is 'four': it takes a whole number, 1 to 100"),
        (with_inputs("3", steps=True), "3", "'steps' is True"),
        (with_inputs("3", name="eulr"), "3", "did you mean 'euler'"),
        (with_inputs("3", name="EULER"), "3", "did you mean 'euler'"),
        (with_inputs("2", seed=-1), "2", "at least 0"),
        ({"3": GOOD["3"]}, "3", "which is not there"),
        ({"3": {"class_type": "Sample", "inputs": {}}}, "3", "'model' is missing"),
        ({"3": {"class_type": "Sample", "inputs": {}}}, "3", "'name' is missing"),
    ],
)
def test_each_problem_names_its_node_and_what_is_accepted(workflow, node, said):
    assert any(at == node and said in text for at, text in problems_of(workflow)), problems_of(workflow)


def test_all_problems_come_at_once():
    workflow = with_inputs("3", model=["9", 0], steps=0, stps=1)
    workflow["4"] = {"class_type": "Nothing", "inputs": {}}
    assert len(problems_of(workflow)) == 4


def test_only_the_nodes_of_a_cycle_are_blamed_for_it():
    workflow = {
        "a": {"class_type": "Any", "inputs": {"value": ["b", 0]}},
        "b": {"class_type": "Any", "inputs": {"value": ["a", 0]}},
        "after": {"class_type": "Any", "inputs": {"value": ["b", 0]}},
        "self": {"class_type": "Any", "inputs": {"value": ["self", 0]}},
        "free": {"class_type": "Any", "inputs": {"value": 1}},
    }
    assert {node for node, text in problems_of(workflow) if "cycle" in text} == {"a", "b", "self"}


def test_of_a_large_cycle_a_few_nodes_are_named_and_how_many_there_are():
    count = 100_000
    workflow = {
        str(n): {"class_type": "Any", "inputs": {"value": [str(n - 1 if n else count - 1), 0]}} for n in range(count)
    }
    with pytest.raises(WorkflowError) as caught:
        check(Graph.read(workflow), SPECS)
    assert len(str(caught.value)) < 1000
    assert "node 0: is part of a cycle" in str(caught.value)
    assert "100000 nodes in all are part of a cycle" in str(caught.value)
    assert len(caught.value.problems) < 10


def test_a_message_shows_a_hundred_problems_and_how_many_more_there_are():
    with pytest.raises(WorkflowError) as caught:
        check(Graph.read({str(n): {"class_type": "Any"} for n in range(1000)}), SPECS)
    assert len(str(caught.value).split("\n")) == 101
    assert str(caught.value).endswith("and 900 more problems")
    assert len(caught.value.problems) == 1000


def test_an_unknown_node_s_problem_says_once_where_nodes_come_from():
    problems = problems_of({"1": {"class_type": "Facefix"}, "2": {"class_type": "Sampel"}})
    assert [text for _, text in problems] == [
        "there is no node 'Facefix'. Folders of custom nodes are given by custom_nodes= or --custom-nodes",
        "there is no node 'Sampel'; did you mean 'Sample'?",
    ]


def test_nouns_have_their_articles():
    specs = SPECS | {"Show": OpSpec("Show", inputs=(Port("picture", "IMAGE"), Port("model", "MODEL")))}
    with pytest.raises(WorkflowError, match=r"link to an IMAGE, not 1\n.*link to a MODEL"):
        check(Graph.read({"1": {"class_type": "Show", "inputs": {"picture": 1}}}), specs)


def test_unknown_inputs_are_taken_away_but_not_aliases_and_what_was_set():
    graph = Graph.read(with_inputs("3", stps=1, old=["9", 0], mask=["1", 0]))
    graph.set_values({"3.step": 4})
    assert drop_unknown(graph, SPECS, ["3.step"]) == [
        "node 3 (Sample) has no input 'stps' (did you mean 'steps'?), 'old': passed over"
    ]
    assert graph.nodes["3"].values.keys() == {"name", "step"}
    assert graph.nodes["3"].links.keys() == {"model", "latent_image", "mask"}


def test_settings_override_values_and_links():
    graph = Graph.read(GOOD)
    graph.set_values({"2.seed": 9, "3.latent_image": 1})
    assert graph.nodes["2"].values["seed"] == 9
    assert "latent_image" not in graph.nodes["3"].links


def nested(depth):
    value = []
    for _ in range(depth):
        value = {"x": value}
    return value


def holding_itself():
    value = []
    value += [value] * 9
    return value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"1": {"class_type": "Load"}, "1": {"class_type": "Any"}}', "w.json has the key '1' twice in one object"),
        ('{"1": {"class_type": "Noise", "inputs": {"seed": 1, "seed": 2}}}', "w.json has the key 'seed' twice in one"),
        ("[" * 100_000, r"w.json is not JSON that can be read: it is nested too deeply$"),
        ('{"1": -%s}' % ("9" * 5000), r"w.json has a number of 5000 digits$"),
        ("5", "nodes by id, not an int$"),
        ("null", "nodes by id, not null$"),
        ('{"1": {"class_type": "Load", "inputs": 5}}', "inputs is an int: it must"),
    ],
    ids=["node", "input", "deep", "digits", "int", "null", "inputs"],
)
def test_what_a_file_says_that_is_no_workflow_is_told_in_words(tmp_path, text, said):
    path = tmp_path / "w.json"
    path.write_text(text)
    with pytest.raises(WorkflowError, match=said):
        Graph.read(path)


def test_a_node_that_is_there_by_number_and_by_string_is_told():
    with pytest.raises(WorkflowError, match="node 1: is there twice"):
        Graph.read({1: {"class_type": "Load"}, "1": {"class_type": "Any"}})


@pytest.mark.parametrize("value", [nested(100_000), nested(100), holding_itself()], ids=["deep", "just", "itself"])
def test_a_value_without_an_end_is_told_by_its_name(value):
    with pytest.raises(WorkflowError, match="node 2: 'more' is nested too deeply, or holds itself"):
        Graph.read(with_inputs("2", more=value))
    with pytest.raises(WorkflowError, match=r'settings\["2.more"\] is nested too deeply, or holds itself'):
        Graph.read(GOOD).set_values({"2.more": value})


def test_a_value_as_deep_as_they_may_be_is_read():
    shared = []
    for _ in range(60):
        shared = [shared, shared]
    assert Graph.read(with_inputs("2", more=nested(99), much=shared)).nodes["2"].values["much"] is shared


@pytest.mark.parametrize("target", ["seed", "9.seed", "2."])
def test_a_bad_setting_is_told(target):
    with pytest.raises(WorkflowError, match=f'^settings\\["{target}"\\]: '):
        Graph.read(GOOD).set_values({target: 1})
    with pytest.raises(WorkflowError, match=f"^--set {target}: "):
        Graph.read(GOOD).set_values({target: 1}, "--set {}")


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=5))
def test_only_an_id_and_a_slot_make_a_link(value):
    expected = (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
        and type(value[1]) is int and value[1] >= 0
    )  # fmt: skip
    assert is_link(value) == expected


@given(st.data())
def test_any_graph_is_checked_without_a_crash(data):
    ids = [str(n) for n in range(6)]
    link = st.tuples(st.sampled_from(ids), st.integers(0, 2)).map(list)
    inputs = st.dictionaries(
        st.sampled_from(["model", "latent", "latent_image", "mask", "value", "x"]), link | st.integers(), max_size=3
    )
    node = st.fixed_dictionaries({"class_type": st.sampled_from([*SPECS, "Nope"]), "inputs": inputs})
    workflow = data.draw(st.dictionaries(st.sampled_from(ids), node, min_size=1))
    try:
        check(Graph.read(workflow), SPECS)
    except WorkflowError as error:
        assert error.problems  # noqa: PT017


class Id(str):
    """A node's id that counts how often it is looked up, in sets and dictionaries too."""

    looks = 0

    def __hash__(self):
        Id.looks += 1
        return str.__hash__(self)

    __eq__ = str.__eq__


def links(count, sources):
    """``count`` nodes of one input each: node n takes from ``sources(n)``, or is the first of all."""
    ids = [Id(n) for n in range(count)]
    nodes = {}
    for n, key in enumerate(ids):
        source = sources(n)
        taken = {} if source is None else {"value": (ids[source % count], 0)}
        nodes[key] = Node(key, "Any" if taken else "Noise", {}, taken)
    return Graph(nodes)


SHAPES = {
    "a chain": lambda n: n - 1 if n else None,
    "all from one": lambda n: 0 if n else None,
    "a chain behind a cycle": lambda n: 1 if n == 0 else n - 1,
    "one cycle": lambda n: n - 1,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_node_costs_no_more_the_more_there_are(shape):
    def looks_per_node(count):
        graph = links(count, SHAPES[shape])
        Id.looks = 0
        with contextlib.suppress(WorkflowError):
            check(graph, SPECS)
        graph.needed_for([key for key, taking in graph.consumers().items() if not taking])
        return Id.looks / count

    assert looks_per_node(2000) < 1.2 * looks_per_node(100)


def test_guesses_at_what_was_meant_end_where_they_would_take_long(monkeypatch):
    compared = []
    monkeypatch.setattr(difflib, "get_close_matches", lambda name, known, **_: compared.append(len(known)) or [])
    count = 2000
    problems = problems_of({str(n): {"class_type": "Any", "inputs": {"value": [f"x{n}", 0]}} for n in range(count)})
    assert len(problems) == count
    assert 0 < sum(compared) <= 100_000


@pytest.mark.parametrize("node", ["1\nnode 2: fine", "\x1b[31m\u202e", "x" * 100_000], ids=["line", "terminal", "page"])
def test_an_id_can_neither_forge_a_line_nor_fill_the_screen(node):
    for workflow in (
        {node: {"class_type": "y" * 100_000, "inputs": {}}},
        {node: {"class_type": "Load"}, "3": {"class_type": "Any", "inputs": {"value": [node, 7]}}},
        {node: {"class_type": "Load"}, "3": {"class_type": "Sample", "inputs": {"latent": [node, 0], "name": "heun"}}},
        {"3": {"class_type": "Any", "inputs": {"value": [node, 0], "z" * 100_000: [node, 0]}}},
    ):
        with pytest.raises(WorkflowError) as caught:
            check(Graph.read(workflow), SPECS)
        lines = str(caught.value).split("\n")
        assert len(lines) == len(caught.value.problems)
        assert str(caught.value).replace("\n", "").isprintable()
        assert all(len(line) < 500 for line in lines)
    with pytest.raises(WorkflowError) as caught:
        Graph.read(GOOD).target_nodes(SPECS, [node])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
