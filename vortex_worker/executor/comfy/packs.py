"""Which plugins are packs. Told by their text: whoever asks must know before their code runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

MAPPINGS = "NODE_CLASS_MAPPINGS"
_MAX_TEXT = 4 << 20  # bytes looked at of one module


def pack_roots(folders: Iterable[str]) -> list[str]:
    """The folders and files of packs directly in ``folders``; or one of these itself, where it is a pack."""
    return [root for folder in folders for root in ([folder] if is_pack(folder) else _inside(folder))]


def is_pack(path: str) -> bool:
    """Whether a package's folder, or a module's file, names :data:`MAPPINGS`."""
    file = os.path.join(path, "__init__.py") if os.path.isdir(path) else path
    try:
        with open(file, "rb") as opened:
            return MAPPINGS.encode() in opened.read(_MAX_TEXT)
    except OSError:
        return False


def _inside(folder: str) -> Iterator[str]:
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return
    for entry in entries:
        path = os.path.join(folder, entry)
        if (entry.endswith(".py") or os.path.isdir(path)) and not entry.startswith((".", "_")) and is_pack(path):
            yield path
