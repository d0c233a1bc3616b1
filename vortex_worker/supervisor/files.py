"""Nodes with a half on the client's side: they read and write files, which workers never do.

``LoadImage`` reads bytes here and decodes them in the worker; ``SaveImage`` takes pixels, which
are plain numbers by then, and writes them here.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from vortex_worker.errors import ValidationError
from vortex_worker.executor.ports import OpSpec
from vortex_worker.ipc.protocol import printable

_MAX_FILE = 15 << 20  # 15 MiB: what a control frame carries
_OPENING = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY  # a FIFO doesn't block
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


def read_input(kind: str, name: str, place: Place, is_one: Callable[[bytes], bool]) -> bytes:
    """A file's content, from below the input folder. ComfyUI's ``cat.png [input]`` is ``cat.png``.

    The name may be a worker's, and what is read goes to one: so it has to be what ``is_one`` takes for a ``kind``.

    Raises:
        ValidationError: it isn't there, lies elsewhere, is hidden, of another kind, or too large.
    """
    shown = printable(repr(name), 500)
    bare = name.removesuffix("[input]").rstrip()
    folder = os.path.realpath(place.input_dir)
    try:
        path = os.path.realpath(os.path.join(folder, bare))
    except ValueError:  # a null byte, half a character
        raise ValidationError(f"{kind} is {shown}: no file has such a name") from None
    if path == folder or not _lies_in(path, folder):
        raise ValidationError(f"{kind} is {shown}: it takes a file under {place.input_dir}")
    if any(part.startswith(".") for part in os.path.relpath(path, folder).split(os.sep)):
        raise ValidationError(f"{kind} is {shown}: hidden files and folders aren't read")
    try:
        with open(path, "rb", opener=lambda path, _: os.open(path, _OPENING)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValidationError(f"{kind} {shown} can't be read: it is no regular file")
            if status.st_size > _MAX_FILE:
                raise ValidationError(f"{kind} {shown} has {status.st_size} bytes: at most {_MAX_FILE} are read")
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ValidationError(f"{kind} {shown} can't be read: {error.strerror}") from None
    if not is_one(data):
        raise ValidationError(f"{kind} {shown} is not sent to a worker: its content is no {kind}'s")
    return data


def is_image(data: bytes) -> bool:
    """Whether it begins as a PNG, JPEG, GIF, TIFF, WebP or BMP file does."""
    if data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")):
        return True
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return True
    if data.startswith(b"RIFF"):
        return data[8:12] == b"WEBP"
    # Two letters are little to go by: the size of the header behind the file's is one of few.
    return data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in (12, 40, 52, 56, 64, 108, 124)


def is_safetensors(data: bytes) -> bool:
    """Whether it begins with a header of safetensors: its length, and an object of JSON."""
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= len(data) - 8 or data[8:9] != b"{":
        return False
    try:
        return isinstance(json.loads(data[8 : 8 + length]), dict)
    except (ValueError, RecursionError):
        return False


def _lies_in(path: str, folder: str) -> bool:
    """Of two real paths, whether one is the other or below it."""
    return os.path.commonpath([path, folder]) == folder


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
    if not _lies_in(os.path.realpath(folder), os.path.realpath(place.output_dir)):  # links that are there are followed
        raise ValidationError(f"filename_prefix is {prefix!r}: it leads out of {place.output_dir}")
    os.makedirs(folder, exist_ok=True)
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
