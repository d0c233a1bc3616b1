"""What packs import of ComfyUI, under its names, while their code runs and only then.

``folder_paths`` and ``nodes`` are names that other people's modules have, too. So the modules of
``shim`` stand in ``sys.modules`` while a pack is loaded or one of its nodes runs, and whatever
was there by their names comes back afterwards.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_SHIM = __package__ + ".shim"
#: Module of ComfyUI → what of it is there, for the message when something else is asked for.
MODULES = (
    "comfy",
    "comfy.model_management",
    "comfy.samplers",
    "comfy.utils",
    "folder_paths",
    "nodes",
    "server",
)
_TOPS = {name.partition(".")[0] for name in MODULES}
_depth = 0


@functools.cache
def modules() -> dict[str, ModuleType]:
    """The stand-ins by ComfyUI's names."""
    return {name: importlib.import_module(f"{_SHIM}.{name}") for name in MODULES}


@contextmanager
def visible() -> Iterator[None]:
    """Let ``import comfy.utils`` find the stand-in. Nests."""
    global _depth
    _depth += 1
    there: dict[str, ModuleType] = {}
    try:
        if _depth == 1:
            there = {name: sys.modules[name] for name in _names_there()}
            for name in there:
                del sys.modules[name]
            sys.modules.update(modules())
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            for name in _names_since():
                del sys.modules[name]
            sys.modules.update(there)


# There are thousands of modules, and many nodes take microseconds: not all are looked at for each.


def _names_there() -> list[str]:
    """Every module under one of our names, submodules too: none of these comes without its parent."""
    return [name for name in sys.modules if _is_ours(name)] if any(top in sys.modules for top in _TOPS) else []


def _names_since() -> list[str]:
    """Those that are there since ours are: a dict has the new ones last."""
    missing, found = set(MODULES), []
    for name in reversed(sys.modules):
        if _is_ours(name):
            found.append(name)
            missing.discard(name)
            if not missing:
                break
    return found


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in _TOPS


def explained(error: ImportError) -> ImportError:
    """The same error, from the same place, saying why the module isn't here, and what is."""
    more = _explanation(error)
    if not more:
        return error
    kind = ModuleNotFoundError if isinstance(error, ModuleNotFoundError) else ImportError
    return kind(f"{error}: {more}", name=error.name).with_traceback(error.__traceback__)


def _explanation(error: ImportError) -> str:
    top = (error.name or "").partition(".")[0]
    if top in _TOPS or top.startswith(("comfy", "node_helpers", "execution")):
        return f"of ComfyUI itself there are {', '.join(MODULES)} here, and of these what most packs use"
    if "failed to map segment" in str(error):
        return (
            "compiled modules can't be loaded after lockdown; name the package in Fabric(modules=…) or --module, and "
            "it is loaded before"
        )
    if isinstance(error, ModuleNotFoundError):
        return "install it beside vortex-worker (workers install nothing)"
    return ""
