"""Where a worker's model files are: the configured folders, laid out as ComfyUI's ``models`` or flat."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from vortex_worker.errors import ValidationError
from vortex_worker.executor.validation import few, near

#: Kind of file → folders it may lie in, below a configured one.
KINDS: dict[str, tuple[str, ...]] = {
    "checkpoints": ("checkpoints",),
    "diffusers": ("diffusers", "checkpoints"),
    "diffusion_models": ("diffusion_models", "unet"),
    "text_encoders": ("text_encoders", "clip"),
    "controlnet": ("controlnet",),
    "loras": ("loras",),
    "vae": ("vae",),
    "embeddings": ("embeddings",),
}
_MOST_LISTED = 10_000  # files looked at to tell the nearest names

_folders: tuple[str, ...] = ()


def use(folders: Iterable[str]) -> None:
    """Look in these from now on: what the worker was configured with, and its sandbox lets it read."""
    global _folders
    _folders = tuple(folders)


def folders() -> tuple[str, ...]:
    """The configured folders."""
    return _folders


def find(kind: str, name: str, ends: Sequence[str] = ("",)) -> Path:
    """The file or folder of that name, as workflows give it: relative, ``/`` between its parts.

    Args:
        ends: what may be missing at the name's end, in the order they are tried.

    Raises:
        ValidationError: there is none; the message offers the nearest names.
    """
    parts = name.replace("\\", "/").split("/")
    if not name or "\0" in name or os.path.isabs(name) or ".." in parts:
        raise ValidationError(f"{name[:200]!r} is no name of a model: it takes a path below a folder of models")
    for root in _roots(kind):
        for end in ends:
            path = root.joinpath(*parts[:-1], parts[-1] + end)
            if os.path.isfile(path) or os.path.isdir(path):  # a Path's own methods raise at a name that is too long
                return path
            if os.path.islink(path) and not os.path.exists(path):
                raise ValidationError(f"{name[:200]!r} is a link to what isn't there, or can't be seen by a worker")
            if os.path.exists(path):  # a pipe would keep who opens it waiting
                raise ValidationError(f"{name[:200]!r} is no regular file")
    if not _folders:
        raise ValidationError(
            f"there is no model {name[:200]!r}, for no folder of models is configured (models=, --models)"
        )
    there = listed(kind)
    hint = near(name, there, cutoff=0.4)
    hint += f"{'' if hint else ';'} There are: {few(name, there)}" if there else ": it has none of this kind"
    raise ValidationError(f"there is no {name[:200]!r} in the folders of models{hint.replace('; There', '; there')}")


def listed(kind: str) -> list[str]:
    """Names that `find` knows, sorted: safetensors files, and folders of diffusers."""
    subs = {sub for of_kind in KINDS.values() for sub in of_kind}  # looked into as roots, where they are of this kind
    names = (name for root in _roots(kind) for name in _below(root) if name.partition("/")[0] not in subs)
    return sorted(set(islice(names, _MOST_LISTED)))


def stamp(kind: str, names: Sequence[str | None] | Sequence[str], ends: Sequence[str] = ("",)) -> str:
    """What changes when other content comes under these names: of each file its inode, size and times.

    Args:
        names: None stands for every name, where nobody knows yet which it will be.
        ends: as of `find`.
    """
    digest = hashlib.sha256()
    for name in names:
        if name is None:
            paths = sorted(islice((path for root in _roots(kind) for path in _all_below(root)), _MOST_LISTED))
        else:
            try:
                paths = _parts(find(kind, name, ends))
            except ValidationError:  # it is told when it is to be loaded
                paths = []
        for path in paths:
            try:
                status = os.stat(path)
            except OSError:
                continue
            # The kernel sets the last one: a tool that copies dates can't.
            times = status.st_mtime_ns, status.st_ctime_ns
            digest.update(repr((os.fspath(path), status.st_dev, status.st_ino, status.st_size, times)).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _parts(path: Path) -> list[Path]:
    """A file; of a diffusers folder all that its parts' folders hold."""
    if not path.is_dir():
        return [path]
    return sorted(islice((inner for depth in ("*", "*/*") for inner in path.glob(depth)), _MOST_LISTED))


def _roots(kind: str) -> Iterator[Path]:
    for folder in map(Path, _folders):
        yield from (folder / sub for sub in KINDS[kind] if (folder / sub).is_dir())
        yield folder


def _all_below(root: Path) -> Iterator[Path]:
    others = {root / sub for of_kind in KINDS.values() for sub in of_kind}
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if Path(folder, name) not in others]
        yield from (Path(folder, file) for file in files)


def _below(root: Path) -> Iterator[str]:
    for folder, inner, files in os.walk(root):
        here = Path(folder).relative_to(root)
        if "model_index.json" in files:
            inner.clear()  # its parts are no models by themselves
            yield here.as_posix()
            continue
        yield from ((here / file).as_posix() for file in files if file.endswith((".safetensors", ".sft")))
