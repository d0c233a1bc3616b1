"""Nodes with a half on the client's side: they read and write files, which workers never do.

``LoadImage`` reads bytes here and decodes them in the worker; ``SaveImage`` takes pixels, which
are plain numbers by then, and writes them here.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from vortex_worker.errors import ValidationError
from vortex_worker.executor.ports import OpSpec

_MAX_FILE = 15 << 20  # 15 MiB: what a control frame carries
_PART = re.compile(r"[\w\-][\w\-. ]{0,99}")  # of a prefix, between slashes


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run may read and write, and what it puts into the files it makes."""

    output_dir: str
    input_dir: str
    prompt: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientNode:
    """The client's half of a node.

    ``prepare`` turns the workflow's params into what the worker's half takes; ``finish``, where
    there is one, is the whole node: it writes files and returns their paths.
    """

    spec: OpSpec
    prepare: Callable[[Mapping[str, Any], Place], dict[str, Any]]
    finish: Callable[[Mapping[str, Any], Mapping[str, Any], Place], list[str]] | None = None


def read_input(kind: str, name: str, place: Place) -> bytes:
    """A file's content, from below the input folder. ComfyUI's ``cat.png [input]`` is ``cat.png``.

    Raises:
        ValidationError: it isn't there, lies elsewhere, or is too large.
    """
    bare = name.removesuffix("[input]").rstrip()
    path = os.path.realpath(os.path.join(place.input_dir, bare))
    if not path.startswith(os.path.realpath(place.input_dir) + os.sep):
        raise ValidationError(f"{kind} is {name!r}: it takes a file under {place.input_dir}")
    try:
        size = os.path.getsize(path)
        if size > _MAX_FILE:
            raise ValidationError(f"{kind} {name!r} has {size} bytes: at most {_MAX_FILE} are read")
        with open(path, "rb") as file:
            return file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ValidationError(f"{kind} {name!r} can't be read: {error.strerror}") from None


def new_files(prefix: str, suffix: str, place: Place, width: int = 0, height: int = 0) -> Iterator[BinaryIO]:
    """Open new files for writing, one after the other: ``prefix_00001.png``, …; never one that is there already.

    ``prefix`` may have folders, and ComfyUI's ``%width%``, ``%height%``, ``%year%``, ``%month%``, ``%day%``,
    ``%hour%``, ``%minute%`` and ``%second%``.

    Raises:
        ValidationError: the prefix leads elsewhere, or has other characters.
        OSError: the folder or a file can't be made.
    """
    stem = _filled(prefix, width, height)
    parts = stem.split("/")
    if not all(_PART.fullmatch(part) for part in parts):
        raise ValidationError(
            f"filename_prefix is {prefix!r}: it takes letters, digits, '-', '_', '.' and spaces, and '/' for folders"
        )
    path = os.path.join(place.output_dir, *parts)
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    if not os.path.realpath(folder).startswith(os.path.realpath(place.output_dir)):
        raise ValidationError(f"filename_prefix is {prefix!r}: it leads out of {place.output_dir}")
    number = 0
    while True:
        number += 1
        try:
            file = open(f"{path}_{number:05d}{suffix}", "xb")  # noqa: SIM115 - the caller closes it
        except FileExistsError:
            continue
        yield file


def _filled(prefix: str, width: int, height: int) -> str:
    now = time.localtime()
    known = {
        "width": width, "height": height, "year": now.tm_year,
        "month": f"{now.tm_mon:02d}", "day": f"{now.tm_mday:02d}",
        "hour": f"{now.tm_hour:02d}", "minute": f"{now.tm_min:02d}", "second": f"{now.tm_sec:02d}",
    }  # fmt: skip
    return re.sub(r"%(\w+)%", lambda found: str(known.get(found[1], found[0])), prefix)
