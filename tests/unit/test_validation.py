"""What may go into a node and come out of it, and how a refusal reads."""

from __future__ import annotations

import enum
import math
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch

from vortex_worker.errors import ExecutionError, ValidationError
from vortex_worker.executor.ports import OpSpec, Param, Port
from vortex_worker.executor.validation import (
    accepted,
    check_outputs,
    describe,
    param_problem,
    port_problem,
    prepare,
)

SAMPLER = OpSpec(
    "Sampler",
    inputs=(
        Port("model", "MODEL"),
        Port("latent", "LATENT", aliases=("latent_image", "samples")),
        Port("strength", "FLOAT", optional=True),
    ),
    outputs=(Port("latent", "LATENT"), Port("steps", "INT")),
    params=(
        Param("steps", "INT", default=20, minimum=1, maximum=100),
        Param("cfg", "FLOAT", default=8.0, minimum=0.0),
        Param("name", "CHOICE", default="euler", choices=("euler", "heun")),
        Param("seed", "INT"),
        Param("tags", "LIST", default=["a"]),
    ),
)
LATENT = {"samples": torch.zeros(1, 4, 2, 2)}


class Model:
    pass


def problems(spec: OpSpec, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        prepare(spec, inputs, params)
    assert caught.value.code == "WK-004"
    assert caught.value.message == f"{spec.name}: " + "; ".join(caught.value.problems)
    return caught.value.problems


def one(param: Param, value: Any) -> str | None:
    """The one problem of one param, by ``param_problem`` and by ``prepare`` alike."""
    found = param_problem(param, value)
    spec = OpSpec("One", params=(param,))
    if found is None:
        prepare(spec, {}, {param.name: value})
    else:
        assert problems(spec, {}, {param.name: value}) == [f"parameter {found}"]
    return found


def test_of_many_choices_the_nearest_are_named_and_how_many_there_are() -> None:
    many = Param("name", "CHOICE", choices=(*(f"solver_{n}" for n in range(40)), "euler", "heun"))
    assert one(many, "eulr") == (
        "'name' is 'eulr': did you mean 'euler'? It takes one of 42: euler, heun, solver_0, solver_1, solver_2, "
        "solver_3, solver_4, solver_5, …"
    )
    assert (one(many, 5) or "").startswith("'name' is 5: it takes one of 42: solver_0, ")


# ------------------------------------------------------------------- prepare


def test_defaults_aliases_and_conversions() -> None:
    model = Model()
    inputs, params = prepare(SAMPLER, {"model": model, "latent_image": LATENT}, {"seed": 7, "cfg": 3})
    assert inputs == {"model": model, "latent": LATENT}
    assert params == {"steps": 20, "cfg": 3.0, "name": "euler", "seed": 7, "tags": ["a"]}
    assert type(params["cfg"]) is float


def test_a_param_may_be_linked_and_a_port_typed_in() -> None:
    inputs, params = prepare(SAMPLER, {"model": Model(), "latent": LATENT, "seed": 9, "steps": 3}, {"strength": 1})
    assert (params["seed"], params["steps"]) == (9, 3)
    assert inputs["strength"] == 1.0
    assert type(inputs["strength"]) is float


def test_an_optional_input_may_be_none() -> None:
    inputs, _ = prepare(SAMPLER, {"model": Model(), "latent": LATENT, "strength": None}, {"seed": 0})
    assert "strength" not in inputs


def test_defaults_are_not_shared() -> None:
    given = {"model": Model(), "latent": LATENT}
    _, params = prepare(SAMPLER, given, {"seed": 0})
    params["tags"].append("b")
    assert prepare(SAMPLER, given, {"seed": 0})[1]["tags"] == ["a"]


def test_the_caller_s_dicts_are_left_alone() -> None:
    inputs, params = {"model": Model(), "samples": LATENT, "strength": None}, {"seed": 0, "cfg": 1}
    before = dict(inputs), dict(params)
    prepare(SAMPLER, inputs, params)
    assert (inputs, params) == before


def test_every_problem_is_listed() -> None:
    assert problems(
        SAMPLER,
        {"modle": Model(), "latent": 3, "extra": torch.zeros(2), "strength": "high"},
        {"steps": 0, "cfg": float("nan"), "name": "eulr", "stesp": 5, "tags": "abc"},
    ) == [
        "it has no input 'modle'; did you mean 'model'?",
        "it has no input 'extra'; it has model, latent, latent_image, samples, strength",
        "it has no parameter 'stesp'; did you mean 'steps'?",
        "input 'model' is missing: it takes a MODEL object",
        "input 'latent' is 3: it takes a dict with 'samples', a tensor [batch, channels, …]",
        "input 'strength' is 'high': it takes a finite number",
        "parameter 'steps' is 0: it takes a whole number, 1 to 100",
        "parameter 'cfg' is nan: it takes a finite number, at least 0.0",
        "parameter 'name' is 'eulr': it takes one of euler, heun; did you mean 'euler'?",
        "parameter 'seed' is missing: it takes a whole number",
        "parameter 'tags' is 'abc': it takes a list",
    ]


@pytest.mark.parametrize(
    ("inputs", "params", "problem"),
    [
        ({"latent": LATENT, "samples": LATENT}, {}, "'latent' is given twice, once as input 'samples'"),
        ({"latent": LATENT}, {"latent_image": LATENT}, "'latent' is given twice, once as parameter 'latent_image'"),
        ({"latent": LATENT, "steps": 3}, {"steps": 4}, "'steps' is given twice, once as parameter 'steps'"),
    ],
)
def test_given_twice(inputs: dict[str, Any], params: dict[str, Any], problem: str) -> None:
    assert problems(SAMPLER, {"model": Model(), **inputs}, {"seed": 1, **params}) == [problem]


def test_what_is_told_is_bounded() -> None:
    told = problems(SAMPLER, {f"unknown{i}" * 1000: 0 for i in range(500)}, {"name": "x" * 1_000_000})
    assert len(told) == 51
    assert told[-1].startswith("and 45")
    assert all(len(text) < 300 for text in told)


def test_a_node_without_anything() -> None:
    empty = OpSpec("Empty")
    assert prepare(empty, {}, {}) == ({}, {})
    assert problems(empty, {"a": 1}, {"b": 2}) == ["it has no input 'a'", "it has no parameter 'b'"]


# --------------------------------------------------------------------- types


class Colour(enum.IntEnum):
    RED = 1


HUGE = 10**5000


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (
            "INT",
            [0, -(1 << 63), (1 << 64) - 1, (1 << 53) + 1, Colour.RED],
            [True, False, 1.0, "1", None, 1 << 64, -(1 << 63) - 1, HUGE, -HUGE, [1], b"1", math.inf],
        ),
        (
            "FLOAT",
            [0.0, -1.5, 3, 1 << 63, 1e308, 5e-324],
            [True, False, "1.0", None, math.nan, math.inf, -math.inf, HUGE, [1.0], 1j],
        ),
        ("STRING", ["", "text", "ü" * 1000], [None, 1, b"bytes", ["a"], True]),
        ("BOOLEAN", [True, False], [0, 1, 1.0, "true", None, []]),
    ],
)
def test_plain_types(kind: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert one(Param("x", kind), value) is None
        assert port_problem(Port("x", kind), value) is None
    for value in bad:
        problem = one(Param("x", kind), value)
        assert problem is not None
        assert problem.startswith("'x' is ")
        assert ": it takes " in problem
        assert len(problem) < 200
        assert port_problem(Port("x", kind), value) == problem


def test_other_param_types() -> None:
    assert one(Param("x", "BYTES"), b"") is None
    assert one(Param("x", "BYTES"), "text") == "'x' is 'text': it takes bytes"
    assert one(Param("x", "BYTES"), bytearray(b"a")) == "'x' is a bytearray: it takes bytes"
    assert one(Param("x", "LIST"), (1, 2)) is None
    assert one(Param("x", "LIST"), "12") is not None
    assert one(Param("x", "LIST"), {}) is not None
    for value in (None, 1, [], torch.zeros(1), object()):
        assert one(Param("x", "ANY"), value) is None


def test_integers_stay_exact() -> None:
    for seed in (0, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1):
        assert prepare(OpSpec("S", params=(Param("seed", "INT"),)), {}, {"seed": seed})[1]["seed"] == seed


def test_ranges() -> None:
    whole = Param("n", "INT", minimum=-2, maximum=5)
    assert [n for n in range(-5, 9) if one(whole, n) is None] == list(range(-2, 6))
    real = Param("n", "FLOAT", minimum=0.0, maximum=1.0)
    assert one(real, 0) is None
    assert one(real, 1) is None
    assert one(real, 1.0000001) == "'n' is 1.0000001: it takes a finite number, 0.0 to 1.0"
    assert one(real, -5e-324) is not None
    assert one(Param("n", "INT", minimum=3), 2) == "'n' is 2: it takes a whole number, at least 3"
    assert one(Param("n", "INT", maximum=3), 4) == "'n' is 4: it takes a whole number, at most 3"
    assert one(Param("n", "INT"), 1 << 64) == f"'n' is {1 << 64}: it takes a whole number (of 64 bits)"
    assert one(Param("n", "INT"), HUGE) == "'n' is a whole number of 16610 bits: it takes a whole number (of 64 bits)"


def test_choices() -> None:
    choice = Param("mode", "CHOICE", choices=("nearest", "bilinear"))
    assert one(choice, "nearest") is None
    assert one(choice, "bilinar") == "'mode' is 'bilinar': it takes one of nearest, bilinear; did you mean 'bilinear'?"
    assert one(choice, "") == "'mode' is '': it takes one of nearest, bilinear"
    assert one(choice, 0) == "'mode' is 0: it takes one of nearest, bilinear"
    assert one(choice, ["nearest"]) == "'mode' is a list: it takes one of nearest, bilinear"


def test_none_where_none_is_the_default() -> None:
    for kind in ("STRING", "INT", "FLOAT", "BYTES"):
        param = Param("x", kind, default=None)
        assert one(param, None) is None
        assert prepare(OpSpec("S", params=(param,)), {}, {})[1] == {"x": None}
    assert one(Param("x", "STRING", default=""), None) == "'x' is None: it takes a string"


COND = [[torch.zeros(1, 77, 8), {}]]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("TENSOR", [torch.zeros(()), torch.zeros(0, 3), torch.zeros(1, dtype=torch.bfloat16)], [None, 1, [1.0], "t"]),
        ("MASK", [torch.zeros(1, 8, 8)], [None, [[0]]]),
        (
            "IMAGE",
            [torch.zeros(1, 2, 3, 3), torch.zeros(0, 2, 3, 1), torch.zeros(2, 2, 2, 4, dtype=torch.float16)],
            [torch.zeros(2, 3, 3), torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, 3, dtype=torch.uint8), None, b"png"],
        ),
        (
            "LATENT",
            [LATENT, {"samples": torch.zeros(1, 4, 9), "batch_index": [0]}, {"samples": torch.zeros(1, 4, 2, 2, 2)}],
            [torch.zeros(1, 4, 2, 2), {}, {"samples": None}, {"samples": torch.zeros(4, 2)}, [LATENT], None],
        ),
        (
            "CONDITIONING",
            [COND, [(COND[0][0], {"pooled": None})], COND * 3, tuple(COND)],
            [[], None, COND[0], [[torch.zeros(1)]], [[torch.zeros(1), None]], [[1, {}]], {"a": 1}, torch.zeros(1), "x"],
        ),
        ("MODEL", [Model(), object(), {"weights": 1}, [Model()]], [None, 1, 1.5, "model", b"", True, torch.zeros(1)]),
        ("*", [None, 1, "a", torch.zeros(1), object(), []], []),
    ],
)
def test_port_types(kind: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert port_problem(Port("x", kind), value) is None
    for value in bad:
        problem = port_problem(Port("x", kind), value)
        assert problem is not None
        assert problem.startswith(f"'x' is {describe(value)}: it takes ")


def test_descriptions_are_short_and_safe() -> None:
    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError

    assert describe(Rude()) == "a Rude"
    assert describe(torch.zeros(2, 3, dtype=torch.bfloat16)) == "a tensor [2, 3] of bfloat16"
    assert describe(b"abc") == "3 bytes"
    assert describe("x" * 1000) == repr("x" * 60) + "…"
    assert describe(None) == "None"
    assert describe(True) == "True"
    assert accepted(Param("x", "CHOICE", choices=("a", "b"))) == "one of a, b"


# ------------------------------------------------------------------- outputs


def test_outputs_come_in_the_ports_order() -> None:
    result = check_outputs(SAMPLER, {"steps": 3, "latent": LATENT})
    assert list(result.items()) == [("latent", LATENT), ("steps", 3)]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "Sampler returned None: execute must return a dict by output port"),
        ((LATENT, 3), "Sampler returned a tuple: execute must return a dict"),
        (torch.zeros(2), r"Sampler returned a tensor \[2\] of float32: execute must return a dict"),
        ({}, "returned a dict that lacks latent, steps: its outputs are latent, steps"),
        ({"latent": LATENT}, "lacks steps"),
        ({"latent": LATENT, "steps": 1, "more": 2}, "has unknown 'more': its outputs are latent, steps"),
        ({"latent": LATENT, 3: 1}, "lacks steps and has unknown 3"),
        ({"latent": LATENT, "steps": None}, "returned a bad output: 'steps' is None: it takes a whole number"),
        ({"latent": LATENT, "steps": True}, "'steps' is True"),
        ({"latent": LATENT["samples"], "steps": 1}, r"'latent' is a tensor \[1, 4, 2, 2\] of float32: it takes a dict"),
    ],
)
def test_bad_outputs(result: Any, message: str) -> None:
    with pytest.raises(ExecutionError, match=message) as caught:
        check_outputs(SAMPLER, result)
    assert caught.value.code == "WK-006"


def test_a_node_without_outputs() -> None:
    assert check_outputs(OpSpec("Empty"), {}) == {}
    with pytest.raises(ExecutionError, match="has unknown 'a': its outputs are none"):
        check_outputs(OpSpec("Empty"), {"a": 1})


def test_the_supervisor_validates_without_torch() -> None:
    program = """
        import sys
        from vortex_worker.executor.ports import OpSpec, Param, Port
        from vortex_worker.executor.validation import port_problem, prepare
        spec = OpSpec("S", (Port("t", "TENSOR", optional=True),), params=(Param("n", "INT", default=1),))
        assert prepare(spec, {}, {"n": 3}) == ({}, {"n": 3})
        assert port_problem(spec.inputs[0], [1.0]) == "'t' is a list: it takes a tensor"
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
