"""Nodes with a half on the client's side: they read and write files, which workers never do.

``LoadImage`` reads bytes here and decodes them in the worker; ``SaveImage`` takes pixels, which
are plain numbers by then, and writes them here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vortex_worker.errors import ValidationError
from vortex_worker.executor.ports import OpSpec, Param, Port

_MAX_FILE = 15 << 20  # 15 MiB: what a control frame carries


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run may read and write."""

    output_dir: str
    input_dir: str


@dataclass(frozen=True, slots=True)
class ClientNode:
    """The client's half of a node.

    ``prepare`` turns the workflow's params into what the worker's half takes; ``finish``, where
    there is one, is the whole node: it writes files and returns their paths.
    """

    spec: OpSpec
    prepare: Callable[[Mapping[str, Any], Place], dict[str, Any]]
    finish: Callable[[Mapping[str, Any], Mapping[str, Any], Place], list[str]] | None = None


def _read_image(params: Mapping[str, Any], place: Place) -> dict[str, Any]:
    name = params["image"]
    path = os.path.realpath(os.path.join(place.input_dir, name))
    if not path.startswith(os.path.realpath(place.input_dir) + os.sep):
        raise ValidationError(f"image is {name!r}: it takes a file under {place.input_dir}")
    try:
        size = os.path.getsize(path)
        if size > _MAX_FILE:
            raise ValidationError(f"image {name!r} has {size} bytes: at most {_MAX_FILE} are read")
        with open(path, "rb") as file:
            return {"data": file.read(_MAX_FILE + 1)}
    except OSError as error:
        raise ValidationError(f"image {name!r} can't be read: {error.strerror}") from None


def _save_images(inputs: Mapping[str, Any], params: Mapping[str, Any], place: Place) -> list[str]:
    import numpy as np

    images = inputs["images"]
    shape = tuple(getattr(images, "shape", ()))
    if len(shape) != 4 or shape[3] not in (1, 3, 4):
        raise ValidationError(f"images is {shape}: it takes a float tensor [batch, height, width, 1, 3 or 4]")
    prefix = params.get("filename_prefix", "vortex")
    if not re.fullmatch(r"[\w\-. ]{1,100}", prefix) or prefix.startswith("."):
        raise ValidationError(f"filename_prefix is {prefix!r}: it takes letters, digits, '-', '_', '.' and spaces")
    pixels = np.asarray(images.float())  # a view: NumPy has no bfloat16, torch's own float has all
    pixels = (np.nan_to_num(pixels).clip(0, 1) * 255).round().astype(np.uint8)
    try:
        return _write(pixels[..., 0] if shape[3] == 1 else pixels, prefix, place.output_dir)
    except OSError as error:
        raise ValidationError(f"pictures can't be written to {place.output_dir!r}: {error.strerror}") from None


def _write(pixels: Any, prefix: str, folder: str) -> list[str]:
    import numpy as np
    from PIL import Image

    os.makedirs(folder, exist_ok=True)
    files = []
    number = 1
    for frame in pixels:
        picture = Image.fromarray(np.ascontiguousarray(frame))
        while True:
            path = os.path.join(folder, f"{prefix}_{number:05d}.png")
            number += 1
            try:
                file = open(path, "xb")  # noqa: SIM115 - closed by the `with` below; "x": never over a picture that is there already
            except FileExistsError:
                continue
            with file:
                picture.save(file, format="PNG")
            files.append(path)
            break
    return files


CLIENT_NODES: dict[str, ClientNode] = {
    "LoadImage": ClientNode(
        OpSpec(
            "LoadImage",
            outputs=(Port("image", "IMAGE"), Port("mask", "MASK")),
            params=(Param("image", "STRING", doc="file name, below the workflow's folder"),),
            source="builtin",
            doc="Read an image file; it is decoded in the worker.",
        ),
        prepare=_read_image,
    ),
    "SaveImage": ClientNode(
        OpSpec(
            "SaveImage",
            inputs=(Port("images", "IMAGE"),),
            params=(Param("filename_prefix", "STRING", default="vortex"),),
            source="builtin",
            doc="Write images as PNG files into the output folder.",
        ),
        prepare=lambda params, place: dict(params),
        finish=_save_images,
    ),
}
