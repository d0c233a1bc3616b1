"""One job on one node: what it is given, what it is asked first, and what it gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from one_job import Node, Writer, failure, go

from vortex_worker.errors import ExecutionError, OutOfArena, ValidationError
from vortex_worker.executor.context import JobContext


def test_runs_and_saves() -> None:
    x = torch.arange(4.0)
    done = go(lambda i, p: i["x"] * p["n"], {"x": x}, {"n": 3}, save=lambda outputs: outputs["value"].tolist())
    assert done.saved == [0.0, 3.0, 6.0, 9.0]
    assert done.execute_ns > 0
    assert done.save_ns > 0


def test_inputs_are_not_copied() -> None:
    x = torch.zeros(3)
    assert go(lambda i, p: i["x"], {"x": x}).saved["value"].data_ptr() == x.data_ptr()


def test_runs_in_inference_mode() -> None:
    weight = torch.ones(2, requires_grad=True)
    modes: list[bool] = []

    def save(outputs: dict[str, Any]) -> Any:
        modes.append(torch.is_inference_mode_enabled())
        return outputs["value"]

    assert not go(lambda i, p: weight * 2, save=save).saved.requires_grad
    assert modes == [True]
    assert not torch.is_inference_mode_enabled()


def test_the_context_is_the_job_s() -> None:
    node = Node(lambda i, p: node.context.job_id, lambda i, p: [] if node.context.job_id == 42 else ["no context"])
    assert go(node, context=JobContext(42)).saved == {"value": 42}


def test_validation_comes_first() -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError

    error = failure(Node(never, never), {"y": 1}, {"n": -1, "m": 2}, save=never)
    assert isinstance(error, ValidationError)
    assert len(error.problems) == 3


def test_private_copies_for_nodes_that_write() -> None:
    x, samples = torch.zeros(2), torch.zeros(1, 4, 2, 2).expand(3, 4, 2, 2)
    model = object()
    inputs = {"x": [x, {"deep": x, "model": model}], "latent": {"samples": samples}}

    def body(given: dict[str, Any], params: dict[str, Any]) -> Any:
        given["x"][0].add_(1)
        given["x"][1]["deep"].add_(2)
        given["latent"]["samples"].add_(3)
        assert given["x"][1]["model"] is model
        given["x"].append(4)
        given.clear()
        return None

    go(Writer(body), inputs)
    assert not x.any()
    assert not samples.any()
    assert len(inputs["x"]) == 2


def test_what_a_node_does_to_its_dicts_stays_with_it() -> None:
    def body(inputs: dict[str, Any], params: dict[str, Any]) -> Any:
        inputs.clear()
        params["items"].append(2)
        return len(params["items"])

    def check(inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        inputs["x"] = params["n"] = None
        return []

    node = Node(body, check)
    assert [go(node, {"x": 1}).saved["value"] for _ in range(2)] == [2, 2]


def test_a_node_s_own_problems() -> None:
    error = failure(Node(lambda i, p: 1, lambda i, p: ["'x' is odd", "'n' is even"]))
    assert isinstance(error, ValidationError)
    assert error.problems == ["'x' is odd", "'n' is even"]
    assert error.message == "Node: 'x' is odd; 'n' is even"
    assert go(Node(lambda i, p: 1, lambda i, p: ())).saved == {"value": 1}


def test_what_a_node_says_is_one_bounded_line() -> None:
    error = failure(Node(lambda i, p: 1, lambda i, p: ["no\nerror:\x1b[2J\udc80", *["x" * 5000] * 200]))
    assert isinstance(error, ValidationError)
    assert error.problems[0] == r"no\nerror:\x1b[2J\udc80"
    assert error.problems[1] == "x" * 1000 + "…"
    assert error.problems[50:] == ["and 151 more"]
    assert error.message.isprintable()


@pytest.mark.parametrize("nonsense", [None, "problem", 3, [1], [None], True, {"a": "b"}, [b"x"]])
def test_validate_returns_nonsense(nonsense: Any) -> None:
    error = failure(Node(lambda i, p: 1, lambda i, p: nonsense))
    assert isinstance(error, ExecutionError)
    assert "Node.validate returned a" in error.message
    assert "it must return a list of strings" in error.message


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_validate_raises(kind: type[BaseException]) -> None:
    def check(inputs: dict[str, Any], params: dict[str, Any]) -> Any:
        raise kind("odd")

    error = failure(Node(lambda i, p: 1, check))
    assert isinstance(error, ExecutionError)
    assert error.message == f"Node.validate raised {kind.__name__}: odd"
    assert "in check" in error.details["traceback"]


@pytest.mark.parametrize("returned", [None, [], 3, {}, {"value": 1, "more": 2}, torch.zeros(1)])
def test_bad_returns(returned: Any) -> None:
    class Returns(Node):
        def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> Any:
            return returned

    error = failure(Returns(lambda i, p: 0))
    assert isinstance(error, ExecutionError)
    assert error.message.startswith("Node returned ")


def test_save_fails() -> None:
    def save(outputs: dict[str, Any]) -> Any:
        raise OutOfArena("the lease is full")

    calls: list[int] = []
    error = failure(lambda i, p: calls.append(1), save=save)
    assert isinstance(error, OutOfArena)
    assert calls == [1]  # the allocator of the arena has no cache to empty: no second try

    def bug(outputs: dict[str, Any]) -> Any:
        raise TypeError("can't travel")

    assert failure(lambda i, p: 1, save=bug).message == "Node raised TypeError: can't travel"
