"""Who may import whom, and who may import torch: the rules in ``vortex_worker/__init__.py``."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vortex_worker

ROOT = Path(vortex_worker.__file__).parent

#: Part → parts it may import. Type-checking imports do not count.
MAY_IMPORT = {
    "errors": set(),
    "defaults": set(),
    "config": {"defaults", "errors"},
    "logging": set(),
    "_core": {"_core", "errors"},
    "ipc": {"ipc", "_core", "errors", "executor.ports"},
    "shm": {"shm", "_core", "errors"},
    "bridge": {"bridge", "_core", "errors"},
    "device": {"device", "errors"},
    "sandbox": {"sandbox", "_core", "config", "errors"},
    "executor": {"executor", "bridge", "device", "errors"},
    "membership": {"ipc", "_core", "errors"},
    "engine": {"executor", "ipc", "bridge", "errors"},
    "main": {"config", "errors", "logging", "sandbox", "membership", "executor", "device", "engine", "ipc"},
    "zygote": {
        "main", "membership", "engine", "executor", "device", "ipc", "sandbox", "_core", "config", "defaults",
        "errors", "logging",
    },
    "supervisor": {
        "supervisor", "ipc", "shm", "bridge", "sandbox", "_core", "config", "defaults",
        "errors", "logging",
        "executor.ports", "executor.validation",
    },
    "examples": {"executor"},
    "observe": {"supervisor", "errors"},
    "bench": {"bench", "supervisor", "ipc", "bridge", "_core", "sandbox", "config", "errors", "executor"},
    "cli": {
        "cli", "bench", "supervisor", "shm", "sandbox", "_core", "errors", "executor.ports", "executor.validation",
        "ipc.protocol",
    },
}  # fmt: skip
MAY_IMPORT_TORCH = {"bridge", "device", "executor", "bench", "examples"}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        if (not path.name.endswith("_pb2.py") and path.parent != ROOT) or path.name in {f"{p}.py" for p in MAY_IMPORT}:
            yield path


def imports_of(path):
    """Absolute names that a module imports when it runs, also inside functions."""
    tree = ast.parse(path.read_text())
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped |= {id(inner) for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.count(".") < 2 and node.module.startswith("vortex_worker"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", list(modules()), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    allowed = MAY_IMPORT[part]
    for name in imports_of(path):
        if name.split(".")[0] == "torch":
            assert part in MAY_IMPORT_TORCH, f"{path.name} imports torch"
        if not name.startswith("vortex_worker."):
            continue
        target = name.removeprefix("vortex_worker.").split(".")
        if target[0] == "__version__":
            continue
        assert target[0] in allowed or ".".join(target[:2]) in allowed, f"{part} imports {name}"


@pytest.mark.parametrize(
    "module",
    [
        "vortex_worker",
        "vortex_worker.cli",
        "vortex_worker.supervisor.fabric",
        "vortex_worker.supervisor.workflow",
        "vortex_worker.membership",
        "vortex_worker.executor.nodes.sampling.ksampler",
        "vortex_worker.executor.nodes.sampling.patches",
    ],
)
def test_torch_is_not_imported_until_a_tensor_is_touched(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_builtin_nodes_are_declared_without_torch():
    code = (
        "import sys; from vortex_worker.executor.registry import Registry\n"
        "r = Registry(); r.load_builtin(); print(len(r.specs()) > 5, r.failures, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True [] False\n"


def test_every_module_is_installed():
    """The package is tested as it is installed: a module that the build doesn't list would be missing."""
    source = Path(__file__).parents[2] / "vortex_worker"
    have = {str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.suffix in (".py", ".pyi", ".toml", ".plist")}
    want = {str(p.relative_to(source)) for p in source.rglob("*") if p.suffix in (".py", ".pyi", ".toml", ".plist")}
    assert want - have == set()
