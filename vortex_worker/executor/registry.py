"""Finds nodes: built-in ones, folders of files, installed packages.

A plugin that can't be loaded is reported by name with its traceback, and the others load. A second
node of one name is refused, and the refusal names both.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoints, entry_points
from typing import Any, NamedTuple

from vortex_worker.errors import ExecutorNotFound
from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.comfy import stand_in
from vortex_worker.executor.comfy.packs import MAPPINGS
from vortex_worker.executor.declaration import spec_of
from vortex_worker.executor.failure import as_job_error, message_of, traceback_of
from vortex_worker.executor.folder import NodeFolder
from vortex_worker.executor.ports import BUILTIN, OpSpec
from vortex_worker.executor.validation import few

ENTRY_POINTS = "vortex_worker.executors"
MODULES = (
    "vortex_worker.executor.nodes.tensor",
    "vortex_worker.executor.nodes.latent",
    "vortex_worker.executor.nodes.latent_file",
    "vortex_worker.executor.nodes.image",
    "vortex_worker.executor.nodes.mask",
    "vortex_worker.executor.nodes.controlnet",
    "vortex_worker.executor.nodes.loaders",
    "vortex_worker.executor.nodes.conditioning",
    "vortex_worker.executor.nodes.vae",
    "vortex_worker.executor.nodes.sampling.ksampler",
    "vortex_worker.executor.nodes.sampling.patches",
)


@functools.cache  # it reads what every installed package says of itself; a zygote does so before it forks
def installed() -> EntryPoints:
    """The entry points of installed plugins."""
    return entry_points(group=ENTRY_POINTS) if _is_named() else EntryPoints()


def _is_named() -> bool:
    """Whether some installed package may have such entry points. To parse them all takes several times as long."""
    if any(hasattr(finder, "find_distributions") for finder in sys.meta_path if finder is not PathFinder):
        return True
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except NotADirectoryError:  # an archive
            return True
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info", "EGG-INFO")):
                with contextlib.suppress(OSError), open(f"{folder or '.'}/{name}/entry_points.txt", "rb") as file:
                    if ENTRY_POINTS.encode() in file.read():
                        return True
    return False


@functools.cache  # specifications are made once, by a zygote for all its workers
def builtin() -> tuple[tuple[type[AbstractExecutor], OpSpec], ...]:
    """The nodes that come with the package. Imports no torch."""
    return tuple((cls, spec_of(cls, BUILTIN)) for name in MODULES for cls in importlib.import_module(name).EXECUTORS)


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
        self._folders: list[NodeFolder] = []
        self._folder_of: dict[str, NodeFolder] = {}
        self._entered: NodeFolder | None = None

    def load_builtin(self) -> None:
        """The nodes that come with the package."""
        for cls, spec in builtin():
            self._add(cls, spec)

    def load_folder(self, path: str) -> None:
        """Every module and package of a folder, but those whose names begin with ``_`` or ``.``.

        Modules of the folder import each other by plain name; two folders may use the same names.
        """
        with self._reporting(path):
            folder = NodeFolder(path, number=len(self._folders))
            self._folders.append(folder)
            self._enter(folder)
            for name in folder.plugins:
                plugin = f"{folder.name}/{name}"
                with self._reporting(plugin):
                    for node, make in _nodes_of(folder, name):
                        with self._reporting(plugin, node):
                            self._folder_of[self.add(make(), plugin).name] = folder

    def load_entry_points(self) -> None:
        """Installed plugins: entry points that name an executor class, or a module of some."""
        for point in installed():
            plugin = point.dist.name if point.dist else point.name
            with self._reporting(plugin):
                found = point.load()
                if not inspect.isclass(found) and not inspect.ismodule(found):
                    raise TypeError(f"{point.value} is a {type(found).__name__}: it must be a class or a module")
                for cls in [found] if inspect.isclass(found) else classes_of(found):
                    with self._reporting(plugin):
                        self.add(cls, plugin)

    @contextlib.contextmanager
    def _reporting(self, plugin: str, node: str = "") -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit as much as a SyntaxError: a plugin ends nobody but itself
            text = message_of(error)
            message = type(error).__name__ + (f": {text}" if text else "")
            if node not in message:  # else it says already which of the plugin's nodes it is of
                message = f"{node[:80]}: {message}"
            self.failures.append(PluginFailure(*map(_utf8, (plugin, message, traceback_of(error)))))

    def add(self, cls: type[Any], source: str) -> OpSpec:
        """Add one node.

        Raises:
            TypeError, ValueError: the class does not declare what a node must, or its name is taken.
        """
        spec = spec_of(cls, source)
        self._add(cls, spec)
        return spec

    def _add(self, cls: type[AbstractExecutor], spec: OpSpec) -> None:
        if spec.name in self._specs:
            raise ValueError(
                f"there are two nodes {spec.name!r}: one of {self._specs[spec.name].source}, one of {spec.source}"
            )
        self._specs[spec.name] = spec
        self._classes[spec.name] = cls

    def get(self, op_type: str) -> tuple[AbstractExecutor, OpSpec]:
        """The node of that name and its specification. It runs before ``get`` is called again.

        Raises:
            ExecutorNotFound: there is none; the message offers the nearest names.
            ExecutionError: its ``__init__`` raised.
        """
        spec = self._specs.get(op_type)
        if spec is None:
            near = difflib.get_close_matches(op_type[:200], self._specs, n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            if self.failures:
                names = list(dict.fromkeys(failure.plugin for failure in self.failures))
                hint += f"{'' if near else '.'} These did not load: {few(op_type, names)}"
            raise ExecutorNotFound(f"there is no node {op_type[:80]!r}{hint}", {"nearest": ", ".join(near)})
        folder = self._folder_of.get(op_type)
        if folder is not None and folder is not self._entered:
            self._enter(folder)
        executor = self._instances.get(op_type)
        if executor is None:
            try:
                executor = self._instances[op_type] = self._classes[op_type]()
            except BaseException as error:
                raise as_job_error(error, f"{op_type}.__init__") from None
        return executor, spec

    def _enter(self, folder: NodeFolder) -> None:
        folder.enter([other for other in self._folders if other is not folder])
        self._entered = folder

    def specs(self) -> list[OpSpec]:
        """Every node's specification, by name."""
        return [self._specs[name] for name in sorted(self._specs)]

    def cleanup(self) -> None:
        """Let every node that was used tidy up. One that fails does not keep the others from it."""
        for name in self._instances:
            with self._reporting(name):
                self.get(name)[0].cleanup()


def _nodes_of(folder: NodeFolder, name: str) -> Iterator[tuple[str, Callable[[], type[Any]]]]:
    """The name of each executor of a module, native ones and those of a pack, and what makes it."""
    if not folder.is_pack(name):
        try:
            module = folder.load(name)
        except ImportError as error:
            raise stand_in.explained(error) from error.__cause__
        yield from (_named(cls) for cls in classes_of(module))
        return
    from vortex_worker.executor.comfy import adapter

    with adapter.explained():
        module = folder.load(name)
    yield from (_named(cls) for cls in classes_of(module))
    for op_type, node in adapter.executors_of(getattr(module, MAPPINGS, None)):
        yield op_type, partial(adapter.executor_of, op_type, node)


def _named(cls: type[Any]) -> tuple[str, Callable[[], type[Any]]]:
    name = getattr(cls, "op_type", "")
    return name if isinstance(name, str) and name else cls.__name__, lambda: cls


def classes_of(module: object) -> Iterable[type[AbstractExecutor]]:
    """The nodes that a module, or the package it opens, defines.

    Not what it imports from elsewhere; nor bases for its own nodes: classes whose names begin with
    ``_``, and abstract ones without an ``op_type``.
    """
    package = getattr(module, "__name__", "").partition(".")[0]
    found = [
        value
        for value in list(vars(module).values())
        if inspect.isclass(value)
        and issubclass(value, AbstractExecutor)
        and value.__module__.partition(".")[0] == package
        and not value.__name__.startswith("_")
        and (hasattr(value, "op_type") or not inspect.isabstract(value))
    ]
    return dict.fromkeys(found)  # once, also where it has two names


def _utf8(text: str) -> str:
    """``text`` without lone surrogates, which file names may have and the wire can't carry."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
