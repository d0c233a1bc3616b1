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
            there = {name: sys.modules[name] for name in _names() if name in sys.modules}
            for name in there:
                del sys.modules[name]
            sys.modules.update(modules())
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            for name in _names():
                del sys.modules[name]
            sys.modules.update(there)


def _names() -> list[str]:
    """Every module under one of our names, submodules too."""
    tops = {name.partition(".")[0] for name in MODULES}
    return [name for name in sys.modules if name.partition(".")[0] in tops]


def explained(error: ImportError) -> ImportError:
    """The same error, from the same place, saying why the module isn't here, and what is."""
    more = _explanation(error)
    if not more:
        return error
    kind = ModuleNotFoundError if isinstance(error, ModuleNotFoundError) else ImportError
    return kind(f"{error}: {more}", name=error.name).with_traceback(error.__traceback__)


def _explanation(error: ImportError) -> str:
    top = (error.name or "").partition(".")[0]
    if top in {module.partition(".")[0] for module in MODULES} or top.startswith(
        ("comfy", "node_helpers", "execution")
    ):
        return f"of ComfyUI itself there are {', '.join(MODULES)} here, and of these what most packs use"
    if "failed to map segment" in str(error):
        return (
            "compiled modules can't be loaded after lockdown; name the package in Fabric(modules=…) or --module, and "
            "it is loaded before"
        )
    if isinstance(error, ModuleNotFoundError):
        return "install it beside vortex-worker (workers install nothing)"
    return ""
