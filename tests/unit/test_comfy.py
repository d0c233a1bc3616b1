"""ComfyUI's contract as pack authors really write it, and the modules that stand in for ComfyUI's."""

import sys
from types import SimpleNamespace

import pytest
import torch

from vortex_worker.errors import ExecutionError
from vortex_worker.executor.comfy import adapter, job, packs, stand_in
from vortex_worker.executor.comfy.inputs import inputs_of, type_name
from vortex_worker.executor.comfy.shim.comfy import utils
from vortex_worker.executor.context import JobContext
from vortex_worker.executor.declaration import spec_of
from vortex_worker.executor.ports import REQUIRED


def pack_class(inputs, **attributes):
    found = {"INPUT_TYPES": classmethod(lambda cls: inputs), "RETURN_TYPES": (), "FUNCTION": "run"}
    return type("Node", (), {**found, "run": lambda self, **given: (), **attributes})


def params_of(**inputs):
    return {param.name: param for param in inputs_of(pack_class({"required": inputs})).params}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("INT", {"default": 5, "min": 1, "max": 9}), ("INT", 5, 1, 9)),
        (("INT",), ("INT", REQUIRED, None, None)),
        (("INT", {"default": 50, "min": 1, "max": 9}), ("INT", REQUIRED, 1, 9)),  # a default that nobody may give
        (("INT", {"default": 0, "min": 0.5, "max": 2**64 - 1}), ("INT", REQUIRED, 1, 2**64 - 1)),
        (("INT", {"default": 0, "min": -(10**30), "max": float("inf")}), ("INT", 0, None, None)),
        (("INT", {"default": 1, "min": 5, "max": 2}), ("INT", 1, None, None)),  # bounds the wrong way round
        (("FLOAT", {"default": 1, "min": 0, "max": 10}), ("FLOAT", 1.0, 0.0, 10.0)),
        (("FLOAT", {"default": 1.0, "max": float("nan")}), ("FLOAT", 1.0, None, None)),
        (("STRING", {"default": "x", "multiline": True}), ("STRING", "x", None, None)),
        (("BOOLEAN", {"default": True}), ("BOOLEAN", True, None, None)),
        ((["a", "b"],), ("CHOICE", "a", None, None)),
        ((["a", "b"], {"default": "z"}), ("CHOICE", "a", None, None)),
        (("COMBO", {"options": ["a", "b"], "default": "b"}), ("CHOICE", "b", None, None)),
        (([1, 2], {"default": 2}), ("ANY", 2, None, None)),
        (([],), ("ANY", REQUIRED, None, None)),
    ],
)
def test_controls_become_params(given, expected):
    param = params_of(x=given)["x"]
    assert (param.type, param.default, param.minimum, param.maximum) == expected
    assert type(param.default) is type(expected[1])


def test_optional_ones_are_left_to_the_function():
    class Node:
        RETURN_TYPES, FUNCTION = ("INT",), "run"

        @classmethod
        def INPUT_TYPES(cls):
            return {
                "required": {"a": ("INT",)},
                "optional": {"a": ("FLOAT",), "b": ("INT", {"default": 3}), "c": ("X",)},
            }

        def run(self, a, b=7, c="nothing"):
            return (a * b,)

    node = adapter.executor_of("Node", Node)()
    node.context = JobContext()
    assert node.execute({}, {"a": 2, "b": None}) == {"INT": 14}
    assert node.execute({}, {"a": 2, "b": 0}) == {"INT": 0}


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"INPUT_TYPES": classmethod(lambda cls: [])}, "INPUT_TYPES gave a list"),
        ({"INPUT_TYPES": classmethod(lambda cls: {"required": []}), "x": 1}, None),
        ({"INPUT_TYPES": classmethod(lambda cls: {"required": ["a"]})}, "required is a list"),
        ({"INPUT_TYPES": classmethod(lambda cls: {"required": {"a": ()}})}, "'a' is a tuple"),
        ({"INPUT_TYPES": classmethod(lambda cls: {"required": {3: ("INT",)}})}, "3 is no name"),
        ({"RETURN_TYPES": "IMAGE"}, "RETURN_TYPES is a str"),
        ({"FUNCTION": 3}, "FUNCTION is 3"),
        ({"FUNCTION": "fly"}, "no such method"),
    ],
)
def test_what_is_malformed_is_told_in_a_sentence(attributes, said):
    node = pack_class({}, **attributes)
    if said is None:
        adapter.executor_of("Node", node)
        return
    with pytest.raises(TypeError, match=said):
        adapter.executor_of("Node", node)


def test_other_kinds_of_nodes_are_named():
    with pytest.raises(TypeError, match="V3"):
        adapter.executor_of("Node", type("V3", (), {"define_schema": None}))
    with pytest.raises(TypeError, match="it must be a class"):
        adapter.executor_of("Node", SimpleNamespace())


def test_outputs_have_names_of_their_own():
    node = pack_class(
        {}, RETURN_TYPES=("IMAGE", "IMAGE", ["a", "b"], "ui", ""), RETURN_NAMES=("pic",), OUTPUT_NODE=True
    )
    ports = spec_of(adapter.executor_of("Node", node), "here").outputs
    assert [(port.name, port.type) for port in ports] == [
        ("pic", "IMAGE"), ("IMAGE", "IMAGE"), ("STRING", "STRING"), ("ui_4", "ui"), ("*", "*"), ("ui", "*"),
    ]  # fmt: skip


def test_outputs_are_made_plain_and_own_types_are_held():
    import numpy as np

    node = pack_class({}, RETURN_TYPES=("INT", "FLOAT", "STRING", "THING"))
    node.run = lambda self: (np.int64(3), torch.tensor(0.5), Exception("x"), [1])
    executor = adapter.executor_of("Node", node)()
    executor.context = JobContext()
    assert executor.execute({}, {}) == {"INT": 3, "FLOAT": 0.5, "STRING": "x", "THING": [1]}
    node.run = lambda self: (1, 1, "x", 5)
    held = executor.execute({}, {})["THING"]
    assert (type(held), held.value) == (adapter.Held, 5)


@pytest.mark.parametrize("result", [{"expand": {}}, 5, (1,), "ab"])
def test_results_that_make_no_sense_are_told(result):
    executor = adapter.executor_of("Node", pack_class({}, RETURN_TYPES=("INT", "INT"), run=lambda self: result))()
    executor.context = JobContext()
    with pytest.raises(TypeError, match=r"return|expand"):
        executor.execute({}, {})


def test_an_async_function_that_waits_is_told():
    async def waits(self):
        import asyncio

        await asyncio.sleep(0)

    executor = adapter.executor_of("Node", pack_class({}, run=waits))()
    executor.context = JobContext()
    with pytest.raises(RuntimeError, match="no event loop"):
        executor.execute({}, {})


def test_a_type_that_equals_everything_is_a_star():
    anything = type("Any", (str,), {"__ne__": lambda self, other: False})("*")
    assert type(type_name(anything)) is str
    assert type_name(anything) == "*"


def test_packs_are_told_by_their_text(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}")
    (tmp_path / "native.py").write_text("x = 1")
    (tmp_path / "single.py").write_text("NODE_CLASS_MAPPINGS = {}")
    assert packs.pack_roots([str(tmp_path)]) == [str(tmp_path / "pack"), str(tmp_path / "single.py")]
    assert packs.pack_roots([str(tmp_path / "pack")]) == [str(tmp_path / "pack")]
    assert packs.pack_roots(["/nonexistent"]) == []


def test_the_stand_ins_come_and_go_and_what_was_there_comes_back():
    mine = sys.modules["nodes"] = SimpleNamespace()
    try:
        with stand_in.visible():
            import nodes

            assert nodes.MAX_RESOLUTION == 16384
            with stand_in.visible():
                import comfy.utils as inner
            import comfy.utils as outer

            assert inner is outer is utils
        assert sys.modules["nodes"] is mine
        assert not [name for name in sys.modules if name.partition(".")[0] in ("comfy", "folder_paths", "server")]
    finally:
        del sys.modules["nodes"]


def test_what_a_pack_leaves_under_their_names_goes():
    mine = {name: SimpleNamespace() for name in ("server", "server.own")}
    sys.modules.update(mine)
    try:
        with stand_in.visible():
            assert "server.own" not in sys.modules
            sys.modules["comfy.left"] = sys.modules["nodes.left"] = sys.modules["elsewhere"] = SimpleNamespace()
            del sys.modules["folder_paths"]
        left = {name for name in sys.modules if name.partition(".")[0] in ("comfy", "folder_paths", "nodes", "server")}
        assert left == mine.keys()
        assert "elsewhere" in sys.modules
    finally:
        for name in (*mine, "elsewhere"):
            sys.modules.pop(name, None)


def test_a_node_does_not_pay_for_every_module_there_is():
    class Name(str):
        looks = 0

        def partition(self, separator):
            Name.looks += 1
            return str.partition(self, separator)

    many = [Name(f"some.module{number}") for number in range(1000)]
    try:
        sys.modules.update(dict.fromkeys(many))
        with stand_in.visible():
            pass
        assert Name.looks == 0
    finally:
        for name in many:
            del sys.modules[name]


def test_progress_is_the_running_jobs():
    told = []
    with job.running(JobContext(report=lambda step, total, message: told.append((step, total)))):
        bar = utils.ProgressBar(3)
        bar.update(1)
        bar.update_absolute(7, 4)
    assert told == [(1, 3), (4, 4)]
    utils.ProgressBar(1).update(1)  # outside of any job: nobody hears


def test_tiles_equal_the_whole_where_nothing_reaches_across():
    picture = torch.rand(2, 3, 70, 50)
    tiled = utils.tiled_scale(
        picture, lambda tile: tile.repeat_interleave(2, -1).repeat_interleave(2, -2), 32, 24, 8, upscale_amount=2
    )
    torch.testing.assert_close(tiled, picture.repeat_interleave(2, -1).repeat_interleave(2, -2))
    bar = utils.ProgressBar(utils.get_tiled_scale_steps(50, 70, 32, 24, 8))
    utils.tiled_scale(picture[:1], lambda tile: tile, 32, 24, 8, upscale_amount=1, pbar=bar)
    assert bar.current == bar.total


def test_batches_and_state_dicts():
    assert utils.repeat_to_batch_size(torch.arange(3), 5).tolist() == [0, 1, 2, 0, 1]
    assert utils.repeat_to_batch_size(torch.arange(3), 2).tolist() == [0, 1]
    weights = {"a.x": torch.ones(2), "b": torch.ones(3)}
    assert utils.calculate_parameters(weights, "a.") == 2
    assert set(utils.state_dict_prefix_replace(dict(weights), {"a.": "c."})) == {"c.x", "b"}
    assert set(utils.state_dict_prefix_replace(dict(weights), {"a.": "c."}, filter_keys=True)) == {"c.x"}


def asked_class(question, answer, **attributes):
    inputs = {"required": {"strength": ("FLOAT", {"default": 0.5}), "image": ("IMAGE",)}}
    return adapter.executor_of("Asked", pack_class(inputs, **{question: classmethod(answer)}, **attributes))()


def test_questions_of_a_node_that_takes_lists_get_lists_before_the_run_too():
    got = []
    node = asked_class("VALIDATE_INPUTS", lambda cls, strength: got.append(strength) or True, INPUT_IS_LIST=True)
    assert node.precheck({"strength": 0.7}) == node.validate({}, {"strength": [0.7]}) == []
    assert got == [[0.7], [0.7]]
    node = asked_class("IS_CHANGED", lambda cls, strength, image: [strength, image], INPUT_IS_LIST=True)
    assert node.changed({"strength": 0.7, "image": None}) == [[0.7], [None]]
    node = asked_class("IS_CHANGED", lambda cls, strength, image: [strength, image])
    assert node.changed({"strength": 0.7}) == [0.7, None]


def test_choices_of_a_node_that_takes_lists_are_checked_one_by_one():
    node = adapter.executor_of("N", pack_class({"required": {"size": ([1, 2],)}}, INPUT_IS_LIST=True))()
    assert node.validate({}, {"size": [1, 2]}) == []
    assert "'size' is 3" in node.validate({}, {"size": [1, 3]})[0]


@pytest.mark.parametrize("question", ["VALIDATE_INPUTS", "IS_CHANGED"])
def test_a_question_that_raises_is_named_with_its_place(question):
    def fail(cls, strength):
        return 1 / 0

    node = asked_class(question, fail)
    ask = node.precheck if question == "VALIDATE_INPUTS" else node.changed
    place = f"{__file__}:{fail.__code__.co_firstlineno + 1}"
    with pytest.raises(ExecutionError, match=f"Asked: {question} raised ZeroDivisionError: .*{place}"):
        ask({"strength": 0.5})
    node = asked_class(question, lambda cls, strength, other: True)
    ask = node.precheck if question == "VALIDATE_INPUTS" else node.changed
    with pytest.raises(ExecutionError, match=f"{question} raised TypeError: .*{__file__}:"):
        ask({})


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (False, "VALIDATE_INPUTS of Asked said no"),
        ("too much", "too much"),
        ("", "VALIDATE_INPUTS of Asked returned"),
        (None, "VALIDATE_INPUTS of Asked returned None: it must return True"),
        (5, "VALIDATE_INPUTS of Asked returned 5"),
        (b"no", "VALIDATE_INPUTS of Asked returned"),
    ],
)
def test_only_true_is_approval(verdict, said):
    assert asked_class("VALIDATE_INPUTS", lambda cls, strength: True).precheck({"strength": 1.0}) == []
    (problem,) = asked_class("VALIDATE_INPUTS", lambda cls, strength: verdict).precheck({"strength": 1.0})
    assert problem.startswith(said)
