"""Finds nodes: built-in ones, folders of files, installed packages.

A plugin that can't be loaded is reported by name with its traceback, and the others load. A second
node of one name is refused, and the refusal names both.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from vortex_worker.errors import ExecutorNotFound
from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.ports import OpSpec, Param, Port, as_ports

ENTRY_POINTS = "vortex_worker.executors"
BUILTIN = (
    "vortex_worker.executor.nodes.tensor",
    "vortex_worker.executor.nodes.latent",
    "vortex_worker.executor.nodes.image",
    "vortex_worker.executor.nodes.sampling.ksampler",
)


class PluginFailure(NamedTuple):
    """A plugin, or a node of one, that was not loaded."""

    plugin: str
    message: str
    traceback: str


class Registry:
    """The nodes of one worker, an instance of each, made at its first use."""

    def __init__(self) -> None:
        self.failures: list[PluginFailure] = []
        self._classes: dict[str, type[AbstractExecutor]] = {}
        self._specs: dict[str, OpSpec] = {}
        self._instances: dict[str, AbstractExecutor] = {}

    def load_builtin(self) -> None:
        """The nodes that come with the package. Imports no torch."""
        for name in BUILTIN:
            for cls in importlib.import_module(name).EXECUTORS:
                self.add(cls, "builtin")

    def load_folder(self, folder: str) -> None:
        """Every module and package of a folder, but those whose names begin with ``_`` or ``.``.

        Modules of the folder import each other by plain name.
        """
        names = []
        for entry in sorted(os.listdir(folder)):
            path = os.path.join(folder, entry)
            if entry.startswith(("_", ".")):
                continue
            if entry.endswith(".py"):
                names.append(entry[:-3])
            elif os.path.isfile(os.path.join(path, "__init__.py")):
                names.append(entry)
        # For good: a node may import a sibling when it first runs.
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        for name in names:
            plugin = f"{os.path.basename(folder)}/{name}"
            with self._reporting(plugin):
                self._add_all(_classes_of(_import_from(folder, name)), plugin)

    def load_entry_points(self) -> None:
        """Installed plugins: entry points that name an executor class, or a module of some."""
        from importlib.metadata import entry_points

        for point in entry_points(group=ENTRY_POINTS):
            plugin = point.dist.name if point.dist else point.name
            with self._reporting(plugin):
                found = point.load()
                self._add_all([found] if inspect.isclass(found) else _classes_of(found), plugin)

    @contextmanager
    def _reporting(self, plugin: str) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit as much as a SyntaxError: a plugin ends nobody but itself
            try:
                message = f"{type(error).__name__}: {error}"
            except BaseException:
                message = type(error).__name__
            self.failures.append(PluginFailure(plugin, message, traceback.format_exc()))

    def _add_all(self, classes: Iterable[type[AbstractExecutor]], plugin: str) -> None:
        for cls in classes:
            with self._reporting(plugin):
                self.add(cls, plugin)

    def add(self, cls: type[AbstractExecutor], source: str) -> None:
        """Add one node.

        Raises:
            TypeError, ValueError: the class does not declare what a node must, or its name is taken.
        """
        spec = spec_of(cls, source)
        if spec.name in self._specs:
            raise ValueError(f"there are two nodes {spec.name!r}: one of {self._specs[spec.name].source}, one of {source}")
        self._specs[spec.name] = spec
        self._classes[spec.name] = cls

    def get(self, op_type: str) -> tuple[AbstractExecutor, OpSpec]:
        """The node of that name and its specification.

        Raises:
            ExecutorNotFound: there is none; the message offers the nearest names.
        """
        spec = self._specs.get(op_type)
        if spec is None:
            near = difflib.get_close_matches(op_type, self._specs, n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ExecutorNotFound(f"there is no node {op_type[:80]!r}{hint}", {"nearest": ", ".join(near)})
        executor = self._instances.get(op_type)
        if executor is None:
            executor = self._instances[op_type] = self._classes[op_type]()
        return executor, spec

    def specs(self) -> list[OpSpec]:
        """Every node's specification, by name."""
        return [self._specs[name] for name in sorted(self._specs)]

    def cleanup(self) -> None:
        """Let every node that was used tidy up. One that fails does not keep the others from it."""
        for name, executor in self._instances.items():
            with self._reporting(name):
                executor.cleanup()


def spec_of(cls: type[AbstractExecutor], source: str) -> OpSpec:
    """What a node's class declares, checked.

    Raises:
        TypeError, ValueError: a sentence that says what is wrong with the declaration.
    """
    name = getattr(cls, "op_type", None)
    if not isinstance(name, str) or not name:
        raise TypeError(f"{cls.__name__} has no op_type: it must be a string")
    if inspect.isabstract(cls):
        raise TypeError(f"{name} ({cls.__name__}) has no execute method")
    for field in ("input_ports", "output_ports", "params"):
        wanted = (Param,) if field == "params" else (Port, str)
        items = getattr(cls, field)
        if isinstance(items, str) or not all(isinstance(item, wanted) for item in items):
            raise TypeError(f"{name}: {field} must be a sequence of {' or '.join(w.__name__ for w in wanted)}")
    inputs, outputs, params = as_ports(cls.input_ports), as_ports(cls.output_ports), tuple(cls.params)
    taken: set[str] = set()
    for given in [n for port in inputs for n in (port.name, *port.aliases)] + [param.name for param in params]:
        if given in taken:
            raise ValueError(f"{name}: two inputs or params are called {given!r}")
        taken.add(given)
    if len({port.name for port in outputs}) != len(outputs):
        raise ValueError(f"{name}: two outputs have one name")
    doc = inspect.getdoc(cls) if cls.__doc__ else None
    return OpSpec(name, inputs, outputs, params, bool(cls.mutates_inputs), source, (doc or "").split("\n")[0])


def _import_from(folder: str, name: str) -> object:
    """Import a module of a folder by its plain name, also where another folder had one of that name."""
    loaded = sys.modules.get(name)
    if loaded is not None and os.path.dirname(getattr(loaded, "__file__", None) or "").startswith(folder):
        return loaded  # a sibling imported it already
    path = os.path.join(folder, name)
    path = os.path.join(path, "__init__.py") if os.path.isdir(path) else path + ".py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if loaded is None or not _is_foreign(loaded):
        sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _is_foreign(module: object) -> bool:
    """Whether it is no plugin's: a plugin file named like a library must not replace the library."""
    path = getattr(module, "__file__", None)
    return path is None or path.startswith((sys.prefix, sys.base_prefix))


def _classes_of(module: object) -> list[type[AbstractExecutor]]:
    """The executors that a module defines itself."""
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, AbstractExecutor)
        and value is not AbstractExecutor
        and value.__module__ == getattr(module, "__name__", None)
    ]
