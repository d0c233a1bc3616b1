"""Nodes with a half on the client's side: they read and write files, which workers never do.

``LoadImage`` reads bytes here and decodes them in the worker; ``SaveImage`` takes pixels, which
are plain numbers by then, and writes them here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO

from vortex_worker.errors import ValidationError
from vortex_worker.executor.ports import OpSpec
from vortex_worker.executor.validation import few
from vortex_worker.ipc.protocol import printable

_MAX_FILE = 15 << 20  # 15 MiB: what a control frame carries
_OPENING = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY  # a FIFO doesn't block
_MOST_REPEATED = 256 << 20  # bytes of a tensor that shows the same memory more than once
_MOST_LISTED = 10_000  # files looked at to tell the nearest names
_LONGEST = 240  # bytes of a prefix: its last part gets a number and a suffix, in the 255 that names may have
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

    ``prepare`` turns the workflow's params into what the worker's half takes, and raises ValidationError where
    there is no such file, or no place for it; ``finish``, where there is one, is the whole node: it writes files and
    returns their paths. ``names`` is the param that names the file.
    """

    spec: OpSpec
    prepare: Callable[[Mapping[str, Any], Place], dict[str, Any]]
    finish: Callable[[Mapping[str, Any], Mapping[str, Any], Place], list[str]] | None = None
    names: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file that is read for workers: how its content begins, and how its names end as a rule."""

    name: str
    is_one: Callable[[bytes], bool]
    ends: tuple[str, ...]


def read_input(kind: Kind, name: str, place: Place) -> bytes:
    """A file's content, from below the input folder. ComfyUI's ``cat.png [input]`` is ``cat.png``.

    The name may be a worker's, and what is read goes to one: so it has to be of this ``kind``.

    Raises:
        ValidationError: it isn't there, and ``details`` says ``value_not_in_list``; it lies elsewhere, is hidden, of
            another kind, or too large.
    """
    shown = printable(repr(name), 500)
    bare = name.removesuffix("[input]").rstrip()
    folder = os.path.realpath(place.input_dir)
    try:
        path = os.path.realpath(os.path.join(folder, bare))
    except ValueError:  # a null byte, half a character
        raise ValidationError(f"{kind.name} is {shown}: no file has such a name") from None
    if path == folder or not _lies_in(path, folder):
        raise ValidationError(f"{kind.name} is {shown}: it takes a file under {place.input_dir}")
    if any(part.startswith(".") for part in os.path.relpath(path, folder).split(os.sep)):
        raise ValidationError(f"{kind.name} is {shown}: hidden files and folders aren't read")
    try:
        data = read_regular(path, _MAX_FILE, os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        others = _instead(bare, folder, kind)
        text = f"{kind.name} is {shown}: there is no such file in {place.input_dir}{others}"
        raise ValidationError(text, {"type": "value_not_in_list"}) from None
    except OSError as error:
        raise ValidationError(f"{kind.name} {shown} can't be read: {error.strerror}") from None
    except ValueError as error:
        raise ValidationError(f"{kind.name} {shown} can't be read: {error}") from None
    if not kind.is_one(data):
        raise ValidationError(f"{kind.name} {shown} is not sent to a worker: its content is no {kind.name}'s")
    return data


def read_regular(path: str | os.PathLike[str], most: int, flags: int = 0) -> bytes:
    """A file's content. Neither a pipe that nobody writes to nor a terminal is waited for.

    Args:
        most: bytes it may have.
        flags: of open(2), beside those for reading.

    Raises:
        OSError: it can't be opened or read.
        ValueError: it is no regular file, or larger, in a sentence.
    """
    with open(path, "rb", opener=lambda path, _: os.open(path, _OPENING | flags)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        data = file.read(most + 1) if status.st_size <= most else b""
    size = max(status.st_size, len(data))
    if size > most:
        raise ValueError(f"it has {size} bytes: at most {most} are read")
    return data


def _instead(name: str, folder: str, kind: Kind) -> str:
    """``; there are: cat.png, dog.png, …``: by the ends of their names, for nobody wants them all read for this."""
    there = sorted(path for path in islice(_visible(folder), _MOST_LISTED) if path.lower().endswith(kind.ends))
    return printable(f"; there are: {few(name, there)}", 2000) if there else ""


def _visible(folder: str) -> Iterator[str]:
    """Files below a folder, none of them hidden, as workflows name them."""
    for here, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(here, name), folder)


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


IMAGE = Kind("image", is_image, (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"))
LATENT = Kind("latent", is_safetensors, (".latent", ".safetensors", ".sft"))


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
    path = _path_of(prefix, place, width, height)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    number = 0
    while True:
        number += 1
        try:
            file = open(f"{path}_{number:05d}{suffix}", "xb")  # noqa: SIM115 - the caller closes it
        except FileExistsError:
            continue
        yield file


@contextlib.contextmanager
def whole(file: BinaryIO) -> Iterator[BinaryIO]:
    """Close it in the end; if it could not be written, there is no such file."""
    try:
        with file:
            yield file
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(file.name)
        raise


def check_extent(name: str, tensor: Any) -> None:
    """See that a copy of a tensor takes no more than it has itself, or little: a worker's view of one number may show
    it as often as it likes.

    Raises:
        ValidationError: it would take more.
    """
    size, own = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if size > max(own, _MOST_REPEATED):
        raise ValidationError(
            f"{name} is a tensor of {size} bytes, of which {own} bytes are its own: "
            f"a view is copied up to {_MOST_REPEATED}"
        )


def check_writable(prefix: str, place: Place) -> None:
    """See that ``new_files`` could write there, and leave nothing behind.

    Raises:
        ValidationError: the prefix is bad, or its folder can't be made or written to.
    """
    folder = os.path.dirname(_path_of(prefix, place))
    there = folder
    while not os.path.lexists(there):
        there = os.path.dirname(there) or os.curdir
    try:  # not os.access: it knows nothing of full disks and of file systems that refuse
        with tempfile.TemporaryDirectory(prefix=".vortex-", dir=there):
            pass
    except OSError as error:
        made = "written to" if there == folder else "made"
        raise ValidationError(
            f"output folder {printable(repr(folder), 500)} can't be {made}: {error.strerror}"
        ) from None


def _path_of(prefix: str, place: Place, width: int = 0, height: int = 0) -> str:
    """The path that a prefix stands for, without number and suffix. Raises ValidationError."""
    filled = _filled(prefix, width, height)
    shown = repr(prefix) if len(prefix) <= _LONGEST else f"{prefix[:60]!r}…"
    if (size := len(filled.encode("utf-8", "surrogatepass"))) > _LONGEST:
        raise ValidationError(f"filename_prefix is {shown}, of {size} bytes: it takes {_LONGEST} at most")
    parts = filled.split("/")
    if not all(_PART.fullmatch(part) for part in parts):
        raise ValidationError(
            f"filename_prefix is {shown}: it takes letters, digits, '-', '_', '.' and spaces, and '/' for folders; "
            "each part has 1 to 100 of them and begins with a letter, a digit, '-' or '_'. "
            f"These are filled in: {', '.join(f'%{name}%' for name in _FILLED_IN)}"
        )
    path = os.path.join(place.output_dir, *parts)
    # Links that are there are followed.
    if not _lies_in(os.path.realpath(os.path.dirname(path)), os.path.realpath(place.output_dir)):
        raise ValidationError(f"filename_prefix is {prefix!r}: it leads out of {place.output_dir}")
    return path


_FILLED_IN = ("width", "height", "year", "month", "day", "hour", "minute", "second")


def _filled(prefix: str, width: int, height: int) -> str:
    now = time.localtime()
    known = {
        "width": width, "height": height, "year": now.tm_year,
        "month": f"{now.tm_mon:02d}", "day": f"{now.tm_mday:02d}",
        "hour": f"{now.tm_hour:02d}", "minute": f"{now.tm_min:02d}", "second": f"{now.tm_sec:02d}",
    }  # fmt: skip
    return re.sub(r"%(\w+)%", lambda found: str(known.get(found[1], found[0])), prefix)
