"""A clear ImportError for custom nodes that import what can't work in a worker.

This is a courtesy, not a boundary. A node that imports ``subprocess`` would otherwise fail later, at its
first call, by the death of its process; here its author is told at once, by name, why and what to use
instead. Code that wants around it gets around it (``sys.modules["os"]``, a frame of somebody else's,
``__subclasses__``), and meets the kernel's filter, which is the boundary. ``docs/sandbox.md`` lists the
known ways and where each ends.

Who imports decides, not what is imported: torch, numpy and the standard library go on importing ``os``
freely.
"""

from __future__ import annotations

import builtins
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType, ModuleType
from typing import Any

__all__ = ["DEFAULT_BLOCKED", "ImportHook", "install"]

_NO_NETWORK = "workers have no network: fetch it before the workflow runs, and pass it in as an input"

#: Module → why a node can't use it, and what it can use.
DEFAULT_BLOCKED: Mapping[str, str] = {
    "os": "workers write no files and start no programs: read files with pathlib or open() below the "
    "folders of models and custom nodes, and return results as outputs",
    "subprocess": "workers start no other program: do it before the workflow runs, or in Python",
    "socket": _NO_NETWORK,
    "http": _NO_NETWORK,
    "urllib": _NO_NETWORK,
    "ftplib": _NO_NETWORK,
    "telnetlib": _NO_NETWORK,
    "smtplib": _NO_NETWORK,
    "multiprocessing": "workers start no other process: use threads (concurrent.futures.ThreadPoolExecutor), "
    "or torch's own parallelism",
    "ctypes.util": "it runs programs to find libraries: name the library itself, or import the package of it",
}

# Frames between an import statement and a finder: the import system's own.
_IMPORT_MACHINERY = ("<frozen importlib", "<frozen runpy", importlib.__file__)


class ImportHook:
    """The installed hook, which :meth:`uninstall` takes back. Also a finder, for modules not loaded yet."""

    def __init__(
        self,
        blocked: Mapping[str, str] | Iterable[str],
        custom_roots: Iterable[str | os.PathLike[str]],
        but: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        self.blocked = (
            dict(blocked)
            if isinstance(blocked, Mapping)
            else {name: DEFAULT_BLOCKED.get(name, "the configuration blocks it") for name in blocked}
        )
        self.roots = tuple(dict.fromkeys(prefix for root in custom_roots for prefix in _prefixes(os.fspath(root))))
        self.spared = tuple(dict.fromkeys(prefix for root in but for prefix in _prefixes(os.fspath(root))))
        self._import = builtins.__import__
        self._import_module = importlib.import_module
        self._installed = False

    def install(self) -> None:
        """Stand in the three ways in: the statement, ``importlib.import_module``, a finder."""
        if self._installed:
            return
        builtins.__import__ = self._statement
        importlib.import_module = self._function
        sys.meta_path.insert(0, self)
        self._installed = True

    def uninstall(self) -> None:
        if not self._installed:
            return
        builtins.__import__ = self._import
        importlib.import_module = self._import_module
        sys.meta_path.remove(self)
        self._installed = False

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        """Never finds anything. Refuses when the nearest frame outside the import system is a node's."""
        why = self._why(name)
        if why is None:
            return
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and (
            frame.f_code.co_filename.startswith(_IMPORT_MACHINERY) or frame.f_globals is globals()
        ):
            frame = frame.f_back
        if frame is not None and self._is_custom(frame):
            raise self._refusal(frame, name, why)

    def _statement(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        # Runs for every import statement of the process, torch's in-function ones too: the usual case costs
        # one comparison of prefixes.
        frame = sys._getframe(1)
        if level == 0 and self._is_custom(frame):
            self._check(frame, name)
            for attribute in fromlist or ():
                self._check(frame, f"{name}.{attribute}")
        return self._import(name, globals, locals, fromlist or (), level)

    def _function(self, name: str, package: str | None = None) -> ModuleType:
        frame = sys._getframe(1)
        if not name.startswith(".") and self._is_custom(frame):
            self._check(frame, name)
        return self._import_module(name, package)

    def _is_custom(self, frame: FrameType) -> bool:
        file: object = frame.f_code.co_filename
        if not frame.f_code.co_filename.startswith(self.roots):
            file = frame.f_globals.get("__file__")  # code that a node hands to exec() has the node's globals
            if not isinstance(file, str) or not file.startswith(self.roots):
                return False
        return not (isinstance(file, str) and file.startswith(self.spared))

    def _why(self, name: str) -> str | None:
        while name:
            if name in self.blocked:
                return self.blocked[name]
            name = name.rpartition(".")[0]
        return None

    def _check(self, frame: FrameType, name: str) -> None:
        why = self._why(name)
        if why is not None:
            raise self._refusal(frame, name, why)

    def _refusal(self, frame: FrameType, name: str, why: str) -> ImportError:
        where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        return ImportError(f"custom node {where} can't import {name!r}: {why}", name=name)


def install(
    blocked: Mapping[str, str] | Iterable[str] = DEFAULT_BLOCKED,
    custom_roots: Iterable[str | os.PathLike[str]] = (),
    but: Iterable[str | os.PathLike[str]] = (),
) -> ImportHook:
    """Install the hook for code below ``custom_roots``, before the first custom node is loaded.

    Args:
        blocked: names of modules, best with a reason for each. A name covers its submodules.
        custom_roots: folders (or single files) of custom nodes. One that begins with ``<`` stands for itself:
            the made-up file name of code that came as bytes.
        but: folders or files below those whose code may import anything: ``pack_guard`` looks after it.
    """
    hook = ImportHook(blocked, custom_roots, but)
    if hook.roots:
        hook.install()
    return hook


def _prefixes(root: str) -> Iterable[str]:
    """How the file names of code below ``root`` may begin: as written and with links resolved."""
    if root.startswith("<"):
        return (root,)
    made: list[str] = []
    resolve: Callable[[str], str]
    for resolve in (os.path.abspath, os.path.realpath):
        path = resolve(root)
        made.append(path if os.path.isfile(path) else path.rstrip(os.sep) + os.sep)
    return made
