"""What workflows are run with: lists, signatures, kept results, texts in pictures."""

import json
import os
import struct
import tracemalloc
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vortex_worker.errors import WorkflowError
from vortex_worker.executor.ports import OpSpec, Port
from vortex_worker.supervisor import embedded
from vortex_worker.supervisor.graph import Graph
from vortex_worker.supervisor.lists import Items, gathered, is_spread, spread
from vortex_worker.supervisor.results import Results
from vortex_worker.supervisor.signature import signatures

ONE = OpSpec("One", outputs=(Port("x"), Port("many", is_list=True)))
ALL = OpSpec("All", input_is_list=True)


def test_lists_go_one_by_one_and_the_shorter_with_their_last():
    given = {"a": Items([1, 2, 3]), "b": Items(["x", "y"]), "c": [7, 8]}
    assert is_spread(ONE, given)
    assert [tuple(each.values()) for each in spread(ONE, given)] == [
        (1, "x", [7, 8]),
        (2, "y", [7, 8]),
        (3, "y", [7, 8]),
    ]
    assert spread(ONE, {"c": [7, 8]}) == [{"c": [7, 8]}]
    assert spread(ONE, {"a": Items(), "c": 1}) == []
    assert spread(ALL, given) == [{"a": [1, 2, 3], "b": ["x", "y"], "c": [[7, 8]]}]
    assert not is_spread(ALL, given)


def test_outputs_are_gathered_by_port():
    results = [{"x": 1, "many": [1, 2]}, {"x": 2, "many": []}, {"x": 3, "many": [3]}]
    outputs = gathered(ONE, results, spread=True)
    assert outputs == {"x": [1, 2, 3], "many": [1, 2, 3]}
    assert type(outputs["x"]) is type(outputs["many"]) is Items
    assert gathered(ONE, results[:1], spread=False) == {"x": 1, "many": [1, 2]}
    assert gathered(ONE, [], spread=True) == {"x": [], "many": []}


DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def signed(value):
    graph = Graph.read({"a": {"class_type": "X", "inputs": {}}, "b": {"class_type": "X", "inputs": {"y": ["a", 0]}}})
    return signatures(graph, {"a": value, "b": None})


@given(DATA, DATA)
def test_what_differs_is_signed_differently_and_so_is_all_behind_it(one, other):
    same = repr(one) == repr(other)
    assert (signed(one) == signed(other)) == same or (isinstance(one, dict) and one == other)
    if not same and signed(one)["a"] != signed(other)["a"]:
        assert signed(one)["b"] != signed(other)["b"]


@pytest.mark.parametrize("value", [float("nan"), torch.ones(1), [object()], b"a" and {"x": float("nan")}])
def test_what_nothing_can_be_told_of_is_always_new(value):
    assert signed(value)["a"] != signed(value)["a"]
    assert signed(value)["b"] != signed(value)["b"]


def test_results_are_bounded_and_the_least_used_go_first():
    results = Results(100)
    for name in (b"a", b"b", b"c"):
        results.put(name, {"x": torch.zeros(40, dtype=torch.uint8)}, [])
        results.get(b"a")
    assert results.get(b"b") is None
    assert results.get(b"a") is not None
    results.put(b"large", {"x": torch.zeros(101, dtype=torch.uint8)}, [])
    assert results.get(b"large") is None
    assert results.clear() == 2
    assert results.clear() == 0
    nothing = Results(0)
    nothing.put(b"a", {}, [])
    assert len(nothing) == 0


def test_a_result_that_was_written_to_is_forgotten(tmp_path):
    results, tensor = Results(100), torch.zeros(4)
    results.put(b"a", {"x": [{"y": tensor}]}, [])
    tensor[1:] += 1
    assert results.get(b"a") is None
    file = tmp_path / "f"
    file.write_text("1")
    results.put(b"f", {}, [str(file)])
    assert results.get(b"f") == ({}, [str(file)])
    file.write_text("22")
    assert results.get(b"f") is None
    results.put(b"g", {}, [str(tmp_path / "gone")])
    assert results.get(b"g") is None


def test_a_container_that_was_changed_is_not_what_is_kept():
    results, tensor = Results(100), torch.zeros(4)
    given = {"x": {"samples": tensor}, "many": Items([1, (2, [3])]), "ui": {"mean": [0.5]}}
    results.put(b"a", given, [])
    for _ in range(2):
        given["x"]["samples"] = "other"
        given["many"][1][1].clear()
        given["ui"]["mean"][0] = 777
        given, _ = results.get(b"a")
        assert given == {"x": {"samples": tensor}, "many": [1, (2, [3])], "ui": {"mean": [0.5]}}
        assert given["x"]["samples"] is tensor
        assert type(given["many"]) is Items


def png(*chunks):
    made = embedded.SIGNATURE
    for kind, body in chunks:
        made += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return made


def test_texts_of_every_kind_are_read():
    data = png(
        (b"IHDR", bytes(13)), (b"tEXt", b"prompt\0{}"), (b"zTXt", b"packed\0\0" + zlib.compress(b"small")),
        (b"iTXt", "wide\0\0\0de\0weit\0ü".encode()), (b"iTXt", b"both\0\1\0\0\0" + zlib.compress("é".encode())),
        (b"tEXt", b"prompt\0later"), (b"IEND", b""), (b"tEXt", b"after\0the end"),
    )  # fmt: skip
    everything = {"prompt", "packed", "wide", "both", "after"}
    assert embedded.texts(data, everything) == {"prompt": "{}", "packed": "small", "wide": "ü", "both": "é"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GIF89a", "no PNG"),
        (png((b"tEXt", b"prompt\0{}"))[:-8], "cut off"),
        (embedded.SIGNATURE + b"\xff\xff\xff\xfftEXtprompt", "cut off"),
        (png((b"zTXt", b"prompt\0\0garbage")), "can't be unpacked"),
        (png((b"zTXt", b"prompt\0\0" + zlib.compress(bytes(17 << 20)))), "unpacks to more than"),
    ],
)
def test_pictures_that_lie_are_refused(tmp_path, data, said):
    with pytest.raises(ValueError, match=said):
        embedded.texts(data, {"prompt"})


@given(st.binary(max_size=200))
def test_any_bytes_are_texts_or_an_error(data):
    try:
        embedded.texts(embedded.SIGNATURE + data, {"", "prompt"})
    except ValueError:
        pass


def test_texts_that_nobody_asked_for_are_not_unpacked():
    """A thousand of them, each of ten million spaces, fill the memory of who looks for a workflow."""
    text = zlib.compress(b" " * 10_000_000)
    data = png((b"tEXt", b"prompt\0{}"), *((b"zTXt", f"prompt{i}".encode() + b"\0\0" + text) for i in range(50)),
               *((b"zTXt", b"prompt\0\0" + text) for i in range(50)))  # fmt: skip
    tracemalloc.start()
    try:
        assert embedded.texts(data, {"prompt"}) == {"prompt": "{}"}
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def sparse(path):
    path.touch()
    os.truncate(path, 50 << 30)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (os.mkfifo, "no regular file"),
        (sparse, "has 53687091200 bytes: at most"),
        (lambda path: path.write_bytes(b" " * (65 << 20)), "of JSON: at most"),
    ],
    ids=["a pipe", "50 GiB of nothing", "65 MiB of JSON"],
)
def test_a_file_that_is_no_workflow_is_neither_waited_for_nor_read_whole(tmp_path, made, said):
    made(tmp_path / "w.json")
    with pytest.raises(WorkflowError, match=said):
        Graph.read(tmp_path / "w.json")


def test_a_workflow_is_read_from_a_picture_and_from_a_request(tmp_path):
    nodes = {"1": {"class_type": "X", "inputs": {"a": 1}}}
    path = tmp_path / "p.png"
    path.write_bytes(png((b"tEXt", b"prompt\0" + json.dumps(nodes).encode()), (b"tEXt", b'workflow\0{"n": 1}')))
    graph = Graph.read(path)
    assert (graph.nodes["1"].values, graph.extra) == ({"a": 1}, {"workflow": {"n": 1}})
    request = {"prompt": nodes, "client_id": "x", "extra_data": {"extra_pnginfo": {"workflow": 2}}}
    assert Graph.read(request).extra == {"workflow": 2}
    assert Graph.read({**request, "extra_data": "none"}).extra == {}
    path.write_bytes(png((b"tEXt", b"prompt\0" + json.dumps(nodes).encode()), (b"tEXt", b"workflow\0{")))
    with pytest.raises(WorkflowError, match=r"p.png, its text 'workflow', is not JSON: "):
        Graph.read(path)
    path.write_bytes(png((b"IEND", b"")))
    with pytest.raises(Exception, match="a picture without a workflow"):
        Graph.read(path)
