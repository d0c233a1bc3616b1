"""The registry: how nodes are found, and what becomes of plugins that are no good."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vortex_worker.errors import ExecutionError, ExecutorNotFound
from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.ports import Param, Port
from vortex_worker.executor.registry import Registry

Write = Callable[..., str]

NODE = """
    from vortex_worker.executor import AbstractExecutor, Param, Port

    class {name}(AbstractExecutor):
        op_type = "{name}"
        output_ports = ("value",)

        def execute(self, inputs, params):
            return {{"value": {value}}}
"""


def node(name: str, value: str = "None") -> str:
    return textwrap.dedent(NODE).format(name=name, value=value)


@pytest.fixture(autouse=True)
def _clean_imports() -> Iterator[None]:
    """Folders stay importable for good in a worker; not from test to test."""
    path, modules = list(sys.path), dict(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]
    sys.modules.update(modules)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a folder of files and return its path."""

    def make(folder: str = "custom", **files: str) -> str:
        root = tmp_path / folder
        for name, source in files.items():
            path = root / (name.replace("__", "/") + ".py" if "__init" not in name else name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source))
        return str(root)

    return make


def loaded(*folders: str) -> Registry:
    registry = Registry()
    for folder in folders:
        registry.load_folder(folder)
    return registry


def result(registry: Registry, op_type: str) -> object:
    return registry.get(op_type)[0].execute({}, {})["value"]


def names(registry: Registry) -> list[str]:
    return [spec.name for spec in registry.specs()]


# ------------------------------------------------------------------ built-in


def test_declarations_need_no_torch() -> None:
    program = """
        import sys
        from vortex_worker.executor.registry import Registry
        registry = Registry()
        registry.load_builtin()
        assert len(registry.specs()) > 5
        for heavy in ("torch", "numpy", "PIL"):
            assert heavy not in sys.modules, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_builtin_nodes() -> None:
    registry = Registry()
    registry.load_builtin()
    assert {"Identity", "KSampler", "EmptyLatentImage", "LoadImage", "Sleep"} <= set(names(registry))
    assert names(registry) == sorted(names(registry))
    for spec in registry.specs():
        assert spec.source == "builtin"
        assert spec.doc, spec.name
        assert spec.doc.endswith("."), spec.name
        assert spec.outputs, spec.name
    executor, spec = registry.get("Identity")
    assert spec.inputs == (Port("tensor", "*"),)
    assert registry.get("Identity")[0] is executor
    assert not registry.failures


def test_unknown_name_offers_the_nearest() -> None:
    registry = Registry()
    registry.load_builtin()
    with pytest.raises(ExecutorNotFound, match="there is no node 'KSampleer'; did you mean 'KSampler'") as caught:
        registry.get("KSampleer")
    assert caught.value.code == "WK-003"
    assert "KSampler" in caught.value.details["nearest"]
    with pytest.raises(ExecutorNotFound, match=r"there is no node 'zzzzzzzz'$"):
        registry.get("zzzzzzzz")
    with pytest.raises(ExecutorNotFound) as caught:
        registry.get("x" * 1_000_000)
    assert len(str(caught.value)) < 200


# ------------------------------------------------------------------- folders


def test_files_and_packages(write: Write, tmp_path: Path) -> None:
    folder = write(
        one=node("One"),
        two=node("Two") + node("Three"),
        _hidden=node("Hidden"),
        pack__nodes=node("Packed"),
        helper="X = 1",
    )
    (tmp_path / "custom" / "pack" / "__init__.py").write_text("from .nodes import Packed\n")
    (tmp_path / "custom" / "notes").mkdir()
    (tmp_path / "custom" / "notes" / "node.py").write_text(node("NotAPackage"))
    (tmp_path / "custom" / ".dotted.py").write_text(node("Dotted"))
    (tmp_path / "custom" / "weights.bin").write_bytes(b"\0")
    registry = loaded(folder)
    assert not registry.failures
    assert names(registry) == ["One", "Packed", "Three", "Two"]
    assert {spec.name: spec.source for spec in registry.specs()} == {
        "One": "custom/one",
        "Two": "custom/two",
        "Three": "custom/two",
        "Packed": "custom/pack",
    }


def test_path_may_end_in_a_slash(write: Write) -> None:
    registry = loaded(write(one=node("One")) + "/")
    assert registry.specs()[0].source == "custom/one"


def test_siblings_by_plain_name(write: Write) -> None:
    folder = write(
        a_node="from z_network import COUNT\nimport z_network\n" + node("A", "COUNT"),
        b_node=node("B", "__import__('z_network').COUNT"),
        z_network="import builtins\nbuiltins.vw_loads = getattr(builtins, 'vw_loads', 0) + 1\nCOUNT = vw_loads\n"
        + node("Z"),
    )
    import builtins

    try:
        registry = loaded(folder)
        assert not registry.failures
        assert (result(registry, "A"), result(registry, "B")) == (1, 1)
        assert builtins.vw_loads == 1  # type: ignore[attr-defined]
        assert names(registry) == ["A", "B", "Z"]  # Z once, though A's module imported its module first
    finally:
        del builtins.vw_loads  # type: ignore[attr-defined]


@pytest.mark.parametrize("lazy", [False, True], ids=["at once", "when run"])
def test_two_folders_with_modules_of_one_name(write: Write, lazy: bool) -> None:
    def files(name: str) -> dict[str, str]:
        top = "" if lazy else "from network import NAME\nfrom shapes.round import CIRCLE\n"
        value = "(__import__('network').NAME, __import__('shapes.round').round.CIRCLE)" if lazy else "(NAME, CIRCLE)"
        return {
            "nodes": top + node(name, value),
            "network": f"NAME = {name!r}",
            "shapes__round": f"CIRCLE = 'circle of {name}'",
        }

    registry = loaded(write("first", **files("One")), write("second", **files("Two")))
    assert not registry.failures
    for name in ("One", "Two", "One", "One", "Two"):
        assert result(registry, name) == (name, f"circle of {name}")


def test_entering_a_folder_leaves_other_names_alone(write: Write) -> None:
    first = write("first", nodes=node("One", "__import__('only_here').X"), only_here="X = []")
    second = write("second", nodes=node("Two", "__import__('only_here').X"))
    registry = loaded(first, second)
    kept = result(registry, "One")
    assert result(registry, "Two") is kept
    assert result(registry, "One") is kept


def test_a_folder_whose_name_begins_like_another(write: Write) -> None:
    registry = loaded(write("nodes2", shared=node("Two", "2")), write("nodes", shared=node("One", "1")))
    assert not registry.failures
    assert (result(registry, "One"), result(registry, "Two")) == (1, 2)


@pytest.mark.parametrize("name", ["json", "vortex_worker", "string", "pytest"])
def test_a_file_named_like_a_library_does_not_replace_it(write: Write, name: str) -> None:
    library = __import__(name)
    registry = loaded(write(**{name: node("Mine", "__name__")}))
    assert sys.modules[name] is library
    assert not registry.failures
    assert result(registry, "Mine") != name
    assert sys.modules[str(result(registry, "Mine"))]


def test_dataclasses_and_late_annotations_in_plugins(write: Write) -> None:
    source = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    source += "from typing import ClassVar\n@dataclass\nclass Size:\n    w: int = 3\n    k: ClassVar[int] = 4\n"
    registry = loaded(write(nodes=source + node("N", "Size().w"), string=source + node("M", "Size(5).w")))
    assert not registry.failures
    assert (result(registry, "N"), result(registry, "M")) == (3, 5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("def broken(:", "SyntaxError: "),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import sys; sys.exit()", "SystemExit"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("def f(): f()\nf()", "RecursionError: "),
        ("raise MemoryError", "MemoryError"),
        ("class E(Exception):\n    def __str__(self): 1 / 0\nraise E", "E"),
        ("class E(BaseException):\n    __str__ = None\nraise E", "E"),
        ("raise ValueError('\\udcff')", "ValueError: \\udcff"),
        ("raise ExceptionGroup('several', [ValueError(1), OSError(2)])", "ExceptionGroup: several"),
        ("raise ValueError('x' * 100_000)", "ValueError: xxx"),
        ("\0", "SyntaxError: "),
        ("\\", "SyntaxError: "),
    ],
)
def test_a_plugin_that_fails_is_reported_and_others_load(write: Write, source: str, message: str) -> None:
    registry = loaded(write(a=node("A"), bad=source, z=node("Z")))
    (failure,) = registry.failures
    assert failure.plugin == "custom/bad"
    assert failure.message.startswith(message)
    assert len(failure.message) < 2100
    assert "registry.py" not in failure.traceback
    assert "importlib" not in failure.traceback
    assert len(failure.traceback) < 13_000
    for text in failure:
        text.encode("utf-8")
    assert names(registry) == ["A", "Z"]
    assert "bad" not in sys.modules


def test_the_traceback_has_the_plugin_s_lines(write: Write) -> None:
    folder = write(bad="def inner():\n    return {}['missing']\n\ninner()\n")
    (failure,) = loaded(folder).failures
    assert f'File "{folder}/bad.py", line 4, in <module>' in failure.traceback
    assert "return {}['missing']" in failure.traceback
    assert failure.traceback.endswith("KeyError: 'missing'\n")


def test_a_sibling_s_failure_is_told_of_both(write: Write) -> None:
    registry = loaded(write(a="import broken\n" + node("A"), broken="raise RuntimeError('no')"))
    assert [failure.plugin for failure in registry.failures] == ["custom/a", "custom/broken"]
    assert registry.specs() == []


def test_keyboard_interrupt_ends_loading(write: Write) -> None:
    with pytest.raises(KeyboardInterrupt):
        loaded(write(bad="raise KeyboardInterrupt"))


def test_a_file_name_that_is_not_utf8(write: Write, tmp_path: Path) -> None:
    folder = write(good=node("Good"))
    try:
        (tmp_path / "custom" / "bad\udcff.py").write_text("1/0")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    registry = loaded(folder)
    (failure,) = registry.failures
    assert failure.plugin.encode() == b"custom/bad\\udcff"
    assert names(registry) == ["Good"]


@pytest.mark.parametrize("path", ["/no/such/folder", __file__])
def test_a_folder_that_is_none_is_reported(path: str) -> None:
    registry = loaded(path)
    (failure,) = registry.failures
    assert failure.plugin == path
    assert "Error" in failure.message
    assert path not in sys.path


def test_two_nodes_of_one_name(write: Write) -> None:
    registry = Registry()
    registry.load_builtin()
    registry.load_folder(write("first", a=node("Same", "1"), b=node("Identity")))
    registry.load_folder(write("second", c=node("Same", "2") + node("Other")))
    assert [(failure.plugin, failure.message) for failure in registry.failures] == [
        ("first/b", "ValueError: there are two nodes 'Identity': one of builtin, one of first/b"),
        ("second/c", "ValueError: there are two nodes 'Same': one of first/a, one of second/c"),
    ]
    assert result(registry, "Same") == 1
    assert {"Other", "Identity"} <= set(names(registry))
    assert registry.get("Identity")[1].source == "builtin"


def test_one_class_under_two_names_is_one_node(write: Write) -> None:
    registry = loaded(write(a=node("New") + "\nOld = New\n", b="from a import New\n"))
    assert not registry.failures
    assert names(registry) == ["New"]


def test_bases_are_not_nodes(write: Write) -> None:
    source = """
        from vortex_worker.executor import AbstractExecutor

        class Base(AbstractExecutor):
            input_ports = ("x",)

        class _Common(AbstractExecutor):
            def execute(self, inputs, params):
                return {"value": self.op_type}

        class One(_Common):
            op_type = "One"
            output_ports = ("value",)

        class Two(Base):
            op_type = "Two"
            def execute(self, inputs, params): ...
    """
    registry = loaded(write(nodes=source))
    assert not registry.failures
    assert names(registry) == ["One", "Two"]


# -------------------------------------------------------------- declarations


class Fine(AbstractExecutor):
    """What it does.

    And more of it.
    """

    op_type = "Fine"
    input_ports = ("x", Port("y", "LATENT", aliases=("why",)))
    output_ports = ("z",)
    params = (Param("n", "INT", default=3, minimum=1, maximum=5), Param("s", "STRING", default=None))

    def execute(self, inputs: dict, params: dict) -> dict:
        return {}


def declared(**fields: object) -> type[AbstractExecutor]:
    return type("Node", (Fine,), {"op_type": "Node", **fields})


def test_specification() -> None:
    registry = Registry()
    spec = registry.add(Fine, "here")
    assert spec.inputs == (Port("x", "*"), Port("y", "LATENT", aliases=("why",)))
    assert spec.outputs == (Port("z"),)
    assert spec.params == Fine.params
    assert spec.doc == "What it does."
    assert spec.source == "here"
    assert not spec.mutates_inputs
    assert registry.specs() == [spec]


def test_a_doc_is_the_class_s_own() -> None:
    assert Registry().add(declared(), "here").doc == ""
    odd = declared()
    odd.__doc__ = "bad \udcff."
    assert Registry().add(odd, "here").doc == "bad ?."
    assert Registry().add(declared(__doc__=3), "here").doc == ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"op_type": None}, "Node has no op_type: it must be a string"),
        ({"op_type": ""}, "Node has no op_type"),
        ({"op_type": 7}, "Node has no op_type"),
        ({"op_type": "a\udc00"}, "op_type of Node is .*: it must be text that UTF-8 can carry"),
        ({"execute": AbstractExecutor.execute}, r"Node \(Node\) has no execute method"),
        ({"input_ports": "image"}, "Node: input_ports must be a tuple or list of Port or str"),
        ({"input_ports": None}, "Node: input_ports must be a tuple or list of Port or str"),
        ({"input_ports": {"a": "IMAGE"}}, "Node: input_ports must be a tuple or list"),
        ({"input_ports": (Param("x"),)}, "Node: input_ports must be a tuple or list of Port or str"),
        ({"output_ports": ("a", 3)}, "Node: output_ports must be a tuple or list of Port or str"),
        ({"output_ports": ("",)}, "Node: output_ports: a port's name, type and aliases must be strings, not empty"),
        ({"output_ports": (Port("a", None),)}, "a port's name, type and aliases must be strings"),
        ({"input_ports": (Port("a", aliases="bc"),)}, "aliases of 'a' must be a tuple of strings"),
        ({"input_ports": (Port("a", aliases=(1,)),)}, "aliases of 'a' must be a tuple of strings"),
        ({"input_ports": (Port("a", doc=4),)}, "doc of 'a' is a int: it must be a string"),
        ({"params": ("steps",)}, "Node: params must be a tuple or list of Param"),
        ({"params": (Port("steps"),)}, "Node: params must be a tuple or list of Param"),
        ({"params": (Param(""),)}, "a param's name must be a string"),
        ({"params": (Param("x", doc=None),)}, "param 'x' is a NoneType: it must be a string"),
        ({"input_ports": ("x", "x"), "params": ()}, "two inputs or params are called 'x'"),
        ({"params": (Param("x"),)}, "two inputs or params are called 'x'"),
        ({"params": (Param("why"),)}, "two inputs or params are called 'why'"),
        ({"params": (Param("n"), Param("n"))}, "two inputs or params are called 'n'"),
        ({"output_ports": ("z", "z")}, "Node: two outputs have one name"),
        ({"params": (Param("n", "INT", default=9, maximum=5),)}, "'n': the default of 'n' is 9: it takes a whole"),
        ({"params": (Param("n", "INT", default="9"),)}, "the default of 'n' is '9': it takes a whole number"),
        ({"params": (Param("n", "CHOICE", default="c", choices=("a", "b")),)}, "the default of 'n' is 'c'"),
        ({"params": (Param("n", "CHOICE", choices=("a", 3)),)}, "choices must be strings"),
        ({"params": (Param("n", "INT", minimum=0.5),)}, "param 'n': 'bound' is 0.5"),
        ({"params": (Param("n", "FLOAT", minimum=float("nan")),)}, "'bound' is nan"),
        ({"params": (Param("n", "STRING", minimum=1),)}, "minimum and maximum go with INT and FLOAT only"),
        ({"params": (Param("n", "INT", minimum=2, maximum=1),)}, "minimum 2 is above maximum 1"),
        ({"params": (Param("n", default=object()),)}, "the default must be plain data"),
        ({"params": (Param("n", default={1: 2}),)}, "the default must be plain data"),
        ({"params": (Param("n", default=1 << 64),)}, "the default must be plain data"),
        ({"params": (Param("n", default=["\udc00"]),)}, "the default must be plain data"),
    ],
)
def test_malformed_declarations(fields: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Registry().add(declared(**fields), "here")


@pytest.mark.parametrize("thing", [int, 3, None, "Node"])
def test_what_is_no_node(thing: object) -> None:
    with pytest.raises(TypeError, match="no subclass of AbstractExecutor"):
        Registry().add(thing, "here")  # type: ignore[arg-type]


def test_a_malformed_class_is_a_failure_and_its_neighbours_load(write: Write) -> None:
    bad = "\nclass Bad(A):\n    op_type = 'Bad'\n    input_ports = 'image'\n"
    unnamed = "\nclass Unnamed(AbstractExecutor):\n    def execute(self, inputs, params): ...\n"
    registry = loaded(write(nodes=node("A") + bad + unnamed + node("B")))
    assert names(registry) == ["A", "B"]
    assert [(failure.plugin, failure.message) for failure in registry.failures] == [
        ("custom/nodes", "TypeError: Bad: input_ports must be a tuple or list of Port or str"),
        ("custom/nodes", "TypeError: Unnamed has no op_type: it must be a string"),
    ]


# ----------------------------------------------------------------- instances


@pytest.mark.parametrize("what", ["SystemExit(1)", "KeyboardInterrupt", "ValueError('no weights')"])
def test_an_init_that_raises(write: Write, what: str) -> None:
    source = node("A") + f"\n    def __init__(self):\n        raise {what}\n"
    registry = loaded(write(nodes=source))
    for _ in range(2):
        with pytest.raises(ExecutionError, match=r"A\.__init__ raised") as caught:
            registry.get("A")
        assert "nodes.py" in caught.value.details["traceback"]
        assert "registry.py" not in caught.value.details["traceback"]


def test_cleanup(write: Write) -> None:
    text = "\n    def cleanup(self):\n        print('cleaned', self.op_type)\n"
    bad = "\n    def cleanup(self):\n        raise SystemExit\n"
    registry = loaded(write(nodes=node("A") + bad + node("B") + text + node("C") + text))
    registry.get("A")
    registry.get("B")
    registry.cleanup()
    assert [failure.plugin for failure in registry.failures] == ["A"]


# -------------------------------------------------------------- entry points


def test_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    info = site / "their_nodes-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-nodes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[vortex_worker.executors]\none = their_nodes.impl:One\nall = their_nodes\n"
        "gone = their_nodes.missing\nodd = their_nodes:NUMBER\n"
    )
    package = site / "their_nodes"
    package.mkdir()
    (package / "impl.py").write_text(node("One") + node("Two"))
    (package / "__init__.py").write_text("from .impl import Two\nNUMBER = 3\n")
    monkeypatch.syspath_prepend(str(site))
    registry = Registry()
    registry.load_entry_points()
    assert names(registry) == ["One", "Two"]
    assert {spec.source for spec in registry.specs()} == {"their-nodes"}
    assert sorted(failure.message for failure in registry.failures) == [
        "ModuleNotFoundError: No module named 'their_nodes.missing'",
        "TypeError: their_nodes:NUMBER is a int: it must be a class or a module",
    ]


@pytest.mark.parametrize("kind", ["dist-info", "egg-info", "egg", "archive", "nobody's"])
def test_entry_points_are_found_however_a_package_was_installed(tmp_path: Path, kind: str) -> None:
    """Most packages have none of ours, and are not asked for more than that. Those that may are read by the library."""
    site = tmp_path / "site"
    place = {"egg": "theirs-1.0-py3.egg/EGG-INFO", "egg-info": "theirs-1.0.egg-info"}.get(kind, "theirs-1.0.dist-info")
    (info := site / place).mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    group = "console_scripts" if kind == "nobody's" else "vortex_worker.executors"
    (info / "entry_points.txt").write_text(f"[{group}]\none = theirs:One\n")
    on_path = str(info.parent)
    if kind == "archive":
        on_path = shutil.make_archive(str(tmp_path / "packed"), "zip", site)
    program = "from vortex_worker.executor.registry import installed; print([point.value for point in installed()])"
    paths = filter(None, [on_path, os.environ.get("PYTHONPATH")])
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.stdout.strip() == ("[]" if kind == "nobody's" else "['theirs:One']")
