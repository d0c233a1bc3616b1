"""The import hook tells custom nodes clearly; whoever gets around it meets the kernel."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from sandbox_child import KILLED, Outcome, raised, run, supported

from vortex_worker.sandbox import import_hook
from vortex_worker.sandbox.import_hook import DEFAULT_BLOCKED

Load = Callable[[str], ModuleType]
_numbers = itertools.count()


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    folder = tmp_path / "custom_nodes"
    folder.mkdir()
    return folder


@pytest.fixture
def load(nodes: Path) -> Iterator[Load]:
    """Write a custom node and import it as the registry does, with the hook in force."""
    hook = import_hook.install(custom_roots=[nodes])

    def make(source: str) -> ModuleType:
        path = nodes / f"node_{next(_numbers)}.py"
        path.write_text(textwrap.dedent(source))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield make
    hook.uninstall()


@pytest.mark.parametrize("name", DEFAULT_BLOCKED)
def test_names_the_module_and_what_to_do(load: Load, name: str) -> None:
    with pytest.raises(ImportError, match=rf"node_\d+\.py:1 can't import '{name}': .*: .") as caught:
        load(f"import {name}")
    assert caught.value.name == name


@pytest.mark.parametrize(
    "statement",
    [
        "import os",  # loaded long ago
        "import os.path",
        "import os as innocent",
        "from os import path",
        "from os import *",
        "import math, os",
        "import http.client",
        "from http import server",
        "from urllib.request import urlopen",
        "import multiprocessing.shared_memory",
        "import ctypes.util",
        "from ctypes import util",
        "def later():\n    import subprocess\nlater()",
        "import importlib\nimportlib.import_module('subprocess')",
        "from importlib import import_module\nimport_module('socket')",
        "__import__('os')",
        "import importlib\nimportlib.__import__('smtplib')",
        "exec('import os')",
        "eval('__import__(\"os\")')",
        "exec(compile('import os', '<nowhere>', 'exec'))",
        "class Node:\n    import subprocess",
    ],
)
def test_refused(load: Load, statement: str) -> None:
    sys.modules.pop("smtplib", None)
    with pytest.raises(ImportError, match=r"custom node .* can't import"):
        load(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "import math, json, pathlib, random, re, ctypes",
        "import numpy, PIL.Image",
        "import logging.handlers",  # imports socket, os and more by itself
        "import concurrent.futures",
        "import tempfile, shutil, glob",
        "import posixpath",
        "import urllib3_is_not_urllib",  # a name that only begins alike
        "try:\n    import os\nexcept ImportError:\n    os = None",
    ],
)
def test_not_disturbed(load: Load, nodes: Path, statement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (nodes.parent / "urllib3_is_not_urllib.py").write_text("import os, socket, subprocess\n")
    monkeypatch.syspath_prepend(nodes.parent)
    for name in ("logging.handlers", "urllib3_is_not_urllib"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    load(statement)


def test_relative_imports(load: Load, nodes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node pack's own module of a blocked name is its own."""
    pack = nodes / "pack"
    pack.mkdir()
    (pack / "__init__.py").write_text("from . import socket\nfrom .os import here\n")
    (pack / "socket.py").write_text("x = 1\n")
    (pack / "os.py").write_text("here = 1\n")
    monkeypatch.syspath_prepend(nodes)
    pack_module = importlib.import_module("pack")
    assert pack_module.socket.x == pack_module.here == 1
    for name in ("pack", "pack.socket", "pack.os"):
        sys.modules.pop(name)


def test_everyone_else_imports_freely(load: Load, tmp_path: Path) -> None:
    (tmp_path / "outside.py").write_text("import os, subprocess, socket\ndef late():\n    import smtplib\n")
    spec = importlib.util.spec_from_file_location("outside", tmp_path / "outside.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules.pop("smtplib", None)
    module.late()  # for the first time, and called from a node:
    sys.modules.pop("smtplib", None)
    node = load("def call(function):\n    return function()\n")
    node.call(module.late)


def test_torch_is_not_disturbed(load: Load) -> None:
    pytest.importorskip("torch")
    node = load("""
        import torch
        def run():
            return torch.einsum("ij,jk->ik", torch.ones(2, 2), torch.ones(2, 2)).sum().item()
    """)
    assert node.run() == 8


def test_install_and_uninstall(nodes: Path) -> None:
    before = (builtins.__import__, importlib.import_module, list(sys.meta_path))
    hook = import_hook.install(["json"], custom_roots=[nodes, "<workflow:"])
    hook.install()  # a second time changes nothing
    with pytest.raises(ImportError, match=r"<workflow:3>:1 can't import 'json'"):
        exec(compile("import json", "<workflow:3>", "exec"), {})
    hook.uninstall()
    hook.uninstall()
    assert (builtins.__import__, importlib.import_module, list(sys.meta_path)) == before
    import_hook.install(custom_roots=[])  # nobody to tell: nothing is touched
    assert builtins.__import__ is before[0]


def test_links_to_the_folder(nodes: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(nodes)
    (nodes / "a.py").write_text("import os")
    hook = import_hook.install(custom_roots=[tmp_path / "link"])
    try:
        for path in (nodes / "a.py", tmp_path / "link" / "a.py"):
            with pytest.raises(ImportError, match="custom node"):
                exec(compile(path.read_text(), str(path), "exec"), {"__file__": str(path)})
    finally:
        hook.uninstall()


#: Ways around the hook that are known, and that it does not try to close. Each gives the real ``os`` module.
BYPASSES = {
    "the table of modules": "import sys; os = sys.modules['os']",
    "another module's import": "import inspect; os = inspect.os",
    "torch's import": "import torch; os = torch.os",
    "a class of it": "its = [c for c in object.__subclasses__() if c.__name__ == '_wrap_close'][0]\n"
    "its = its.__init__.__globals__\n"
    "class os: system = its['system']; fork = its['fork']; open = its['open']; O_WRONLY = 1",
    "the module below it": "import posix as os",
    "a caller's frame": "import sys\nf = sys._getframe()\n"
    "while 'os' not in f.f_globals: f = f.f_back\nos = f.f_globals['os']",
    "a loader": "import importlib.util\ns = importlib.util.find_spec('os')\n"
    "os = importlib.util.module_from_spec(s); s.loader.exec_module(os)",
    "code under another name": "ns = {'__builtins__': __builtins__}\n"
    "exec(compile('import os', '/usr/lib/python3/x.py', 'exec'), ns); os = ns['os']",
    "the hook's insides": "import builtins; os = builtins.__import__.__self__._import('os')",
    "the collector": "import gc\nos = [m for m in gc.get_objects() if type(m) is type(gc) and m.__name__ == 'os'][0]",
}

HARM = {
    "a program": ("os.system('true') == 0", KILLED),
    "a process": ("os.fork() >= 0", KILLED),
    "a file": ("os.open(PATH, os.O_WRONLY | 64, 0o600) >= 0", raised("EACCES")),
}


@pytest.mark.parametrize("way", BYPASSES)
def test_bypass_gets_os(load: Load, way: str) -> None:
    """The control: these do get around the hook. One that stops doing so leaves the documentation."""
    if "torch" in way:
        pytest.importorskip("torch")
    assert callable(load(BYPASSES[way]).os.system)


@pytest.mark.skipif(not supported(), reason="this machine lacks seccomp or Landlock")
@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("way", BYPASSES)
def test_bypass_ends_in_the_kernel(load: Load, nodes: Path, way: str, harm: str) -> None:
    expression, expected = HARM[harm]
    hostile = write(nodes, way, expression)
    assert run(lambda: harm_of(hostile), readable=[str(nodes)]) == expected
    assert not (nodes / "written").exists()


@pytest.mark.parametrize("way", BYPASSES)
def test_bypass_does_harm_without_the_sandbox(load: Load, nodes: Path, way: str) -> None:
    hostile = write(nodes, way, HARM["a file"][0])
    assert run(lambda: harm_of(hostile), stages=None) == Outcome("returned", True)
    assert (nodes / "written").exists()


def write(nodes: Path, way: str, expression: str) -> Path:
    if "torch" in way:
        pytest.importorskip("torch")  # before lockdown, as a worker does
    path = nodes / "hostile.py"
    target = f"PATH = {str(nodes / 'written')!r}"
    path.write_text(f"{BYPASSES[way]}\n{target}\ndef harm():\n    return {expression}\n")
    return path


def harm_of(hostile: Path) -> bool:
    namespace = {"__file__": str(hostile), "__name__": "hostile"}
    exec(compile(hostile.read_text(), str(hostile), "exec"), namespace)
    return bool(namespace["harm"]())  # type: ignore[operator]
