"""A folder of custom nodes, whose modules import each other by plain name.

Plain names are the process's: two folders that both have a ``network.py`` mean two modules by one
name in ``sys.modules``. A worker runs one node at a time, so the folder whose node is to run is
*entered*: its modules take their names, and those of other folders that have the same names step
aside until their folder is entered again. So imports inside functions find the right sibling, too.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from types import ModuleType

from vortex_worker.executor.comfy.packs import is_pack


class NodeFolder:
    """One folder; ``plugins`` are the names of what is to be loaded in it."""

    def __init__(self, path: str, number: int) -> None:
        self.path = os.path.abspath(path)
        self.name = os.path.basename(self.path)
        self._number = number
        # The folder may be a pack itself, which others would have among their own.
        self._files = (
            {self.name: os.path.join(self.path, "__init__.py")} if is_pack(self.path) else _modules_in(self.path)
        )
        self._aside: dict[str, ModuleType] = {}
        self.plugins = [name for name, file in self._files.items() if file and not name.startswith("_")]
        importlib.invalidate_caches()

    def load(self, name: str) -> ModuleType:
        """Import a module of this folder, or take it as it is if a sibling imported it. Enter it first.

        Raises:
            Whatever the module does.
        """
        taken = sys.modules.get(name)
        if taken is not None and self.holds(taken):
            return taken
        # A file may be called as a library is. It does not replace the library that others have loaded.
        full_name = name.replace(".", "_") if taken is None else f"_custom{self._number}_{name}"
        spec = importlib.util.spec_from_file_location(full_name, self._files[name])
        if spec is None or spec.loader is None:
            raise ImportError(f"{self._files[name]} can't be imported")
        sys.modules[full_name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(full_name, None)
            raise
        return sys.modules.get(full_name, module)

    def is_pack(self, name: str) -> bool:
        """Whether a plugin is a pack of ComfyUI's, by its text."""
        return is_pack(self._files[name])

    def enter(self, others: Iterable[NodeFolder]) -> None:
        """Let plain names mean this folder's modules, and let imports look here first."""
        for other in others:
            other._step_aside(self._files)
        sys.modules.update(self._aside)
        self._aside.clear()
        if self.path in sys.path:
            sys.path.remove(self.path)
        sys.path.insert(0, self.path)

    def _step_aside(self, names: Iterable[str]) -> None:
        clashing = self._files.keys() & set(names)
        if not clashing:
            return
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] in clashing and self.holds(module):
                self._aside[name] = sys.modules.pop(name)

    def holds(self, module: object) -> bool:
        """Whether a module is of this folder: a file of it, or a folder in it without ``__init__.py``."""
        places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
        return any(isinstance(place, str) and place.startswith(self.path + os.sep) for place in places)


def _modules_in(path: str) -> dict[str, str]:
    """Every name directly in a folder that can be imported, and its file; ``""`` for a bare folder."""
    files: dict[str, str] = {}
    for entry in sorted(os.listdir(path)):
        name, suffix = os.path.splitext(entry)
        place = os.path.join(path, entry)
        if entry.startswith(".") or entry.endswith(".disabled"):  # as ComfyUI's users put a pack aside
            continue
        if os.path.isdir(place):
            inside = os.path.join(place, "__init__.py")
            files[entry] = inside if os.path.isfile(inside) else ""
        elif suffix == ".py" and not files.get(name):  # a package goes before a file of its name
            files[name] = place
    return files
