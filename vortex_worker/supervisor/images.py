"""The client's half of the nodes on picture files. ComfyUI finds the workflow in the files that are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vortex_worker.errors import ValidationError
from vortex_worker.executor.ports import OpSpec, Param, Port
from vortex_worker.supervisor.files import (
    IMAGE,
    ClientNode,
    Place,
    check_extent,
    check_writable,
    new_files,
    read_input,
    whole,
)
from vortex_worker.supervisor.plain import as_json

if TYPE_CHECKING:
    from PIL.Image import Exif, Image
    from PIL.PngImagePlugin import PngInfo

_EXIF_MODEL, _EXIF_MAKE = 0x0110, 0x010F  # where ComfyUI's own nodes put it: "prompt:{…}", "workflow:{…}", …
_SUFFIX = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
_MOST_SIDE = {"webp": 16383, "jpeg": 65500}  # pixels: 14 bits of the format; what libjpeg writes
_MOST_EXIF = 65533  # bytes: a segment of a JPEG has 16 bits for its length


def _read(params: Mapping[str, Any], place: Place) -> dict[str, Any]:
    rest = {name: value for name, value in params.items() if name not in ("image", "upload")}
    return {"data": read_input(IMAGE, params["image"], place), **rest}


def _place(params: Mapping[str, Any], place: Place) -> dict[str, Any]:
    if params.get("format") == "jpeg" and (size := len(_exif(place).tobytes())) > _MOST_EXIF:
        raise ValidationError(
            f"the workflow takes {size} bytes, and a JPEG has room for {_MOST_EXIF} beside the picture: "
            "PNG and WebP have room for more"
        )
    check_writable(params["filename_prefix"], place)
    return dict(params)


def size_problem(size: tuple[int, int], form: str) -> str:
    """Why pictures of that width and height can't be saved in a format, or ""."""
    most = _MOST_SIDE.get(form)
    if most is None or max(size) <= most:
        return ""
    return (
        f"{size[0]} × {size[1]} pixels can't be saved as {form}, which has sides of {most} at most; PNG has longer ones"
    )


def _check_size(pictures: list[Image], form: str) -> None:
    if pictures and (problem := size_problem(pictures[0].size, form)):
        raise ValidationError(f"images: {problem}")


def _save(inputs: Mapping[str, Any], params: Mapping[str, Any], place: Place) -> list[str]:
    form, quality = params.get("format", "png"), params.get("quality", 90)
    pictures = _pictures(inputs["images"])
    _check_size(pictures, form)
    try:
        files = new_files(params["filename_prefix"], _SUFFIX[form], place, *(pictures[0].size if pictures else (0, 0)))
        written = []
        for picture, file in zip(pictures, files, strict=False):
            with whole(file):
                if form == "png":
                    picture.save(file, format="PNG", pnginfo=_png_texts(place))
                else:
                    picture = picture.convert("RGB") if form == "jpeg" else picture
                    picture.save(file, format=form.upper(), quality=quality, exif=_exif(place))
            written.append(file.name)
    except (OSError, ValueError) as error:
        raise ValidationError(f"pictures can't be written to {place.output_dir!r}: {_why(error)}") from None
    return written


def _save_animated(inputs: Mapping[str, Any], params: Mapping[str, Any], place: Place) -> list[str]:
    pictures = _pictures(inputs["images"])
    if not pictures:
        raise ValidationError("images has no picture: there is nothing to animate")
    _check_size(pictures, "webp")
    try:
        with whole(next(new_files(params["filename_prefix"], ".webp", place, *pictures[0].size))) as file:
            pictures[0].save(
                file, format="WEBP", save_all=True, append_images=pictures[1:], duration=int(1000 / params["fps"]),
                lossless=params["lossless"], quality=params["quality"], exif=_exif(place),
            )  # fmt: skip
    except (OSError, ValueError) as error:
        raise ValidationError(f"pictures can't be written to {place.output_dir!r}: {_why(error)}") from None
    return [file.name]


def _why(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _pictures(images: Any) -> list[Image]:
    import numpy as np
    from PIL import Image

    shape = tuple(getattr(images, "shape", ()))
    if len(shape) != 4 or shape[3] not in (1, 3, 4) or 0 in shape[1:]:
        raise ValidationError(f"images is {shape}: it takes a float tensor [batch, height, width, 1, 3 or 4]")
    check_extent("images", images)
    pixels = np.asarray(images.float())  # a view: NumPy has no bfloat16, torch's own float has all
    pixels = (np.nan_to_num(pixels).clip(0, 1) * 255).round().astype(np.uint8)
    pixels = pixels[..., 0] if shape[3] == 1 else pixels
    return [Image.fromarray(np.ascontiguousarray(frame)) for frame in pixels]


def _png_texts(place: Place) -> PngInfo:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, value in {"prompt": place.prompt, **place.extra}.items():
        if value:
            info.add_text(name[:79], as_json(value))
    return info


def _exif(place: Place) -> Exif:
    from PIL.Image import Exif

    exif = Exif()
    if place.prompt:
        exif[_EXIF_MODEL] = f"prompt:{as_json(place.prompt)}"
    for tag, (name, value) in zip(range(_EXIF_MAKE, 0, -1), place.extra.items(), strict=False):
        exif[tag] = f"{name}:{as_json(value)}"
    return exif


_FILE = Param("image", "STRING", doc="file name, below the workflow's folder")
_UPLOAD = Param("upload", "ANY", default=None, doc="of no meaning: ComfyUI's editor writes it")
_PREFIX = Param("filename_prefix", "STRING", default="vortex", doc="may have folders, and %width%, %year%, …")
_IMAGES = (Port("images", "IMAGE"),)

NODES: dict[str, ClientNode] = {
    "LoadImage": ClientNode(
        OpSpec(
            "LoadImage",
            outputs=(Port("image", "IMAGE"), Port("mask", "MASK")),
            params=(_FILE, _UPLOAD),
            source="builtin",
            doc="Read an image file; it is decoded in the worker.",
        ),
        prepare=_read,
        names="image",
    ),
    "LoadImageMask": ClientNode(
        OpSpec(
            "LoadImageMask",
            outputs=(Port("mask", "MASK"),),
            params=(
                _FILE,
                Param("channel", "CHOICE", default="alpha", choices=("alpha", "red", "green", "blue")),
                _UPLOAD,
            ),
            source="builtin",
            doc="Read one channel of an image file as a mask; it is decoded in the worker.",
        ),
        prepare=_read,
        names="image",
    ),
    "SaveImage": ClientNode(
        OpSpec(
            "SaveImage",
            inputs=_IMAGES,
            params=(
                _PREFIX,
                Param("format", "CHOICE", default="png", choices=tuple(_SUFFIX)),
                Param("quality", "INT", default=90, minimum=1, maximum=100, doc="of WebP and JPEG"),
            ),
            source="builtin",
            doc="Write images into the output folder, with the workflow inside, as ComfyUI reads it.",
            output_node=True,
        ),
        prepare=_place,
        names="filename_prefix",
        finish=_save,
    ),
    "SaveAnimatedWEBP": ClientNode(
        OpSpec(
            "SaveAnimatedWEBP",
            inputs=_IMAGES,
            params=(
                _PREFIX,
                Param("fps", "FLOAT", default=6.0, minimum=0.01, maximum=1000.0),
                Param("lossless", "BOOLEAN", default=True),
                Param("quality", "INT", default=80, minimum=0, maximum=100),
                Param("method", "ANY", default="default", doc="of no meaning here"),
            ),
            source="builtin",
            doc="Write images as one animated WebP file into the output folder.",
            output_node=True,
        ),
        prepare=_place,
        names="filename_prefix",
        finish=_save_animated,
    ),
    "PreviewImage": ClientNode(
        OpSpec(
            "PreviewImage",
            inputs=_IMAGES,
            source="builtin",
            doc="Write images as PNG files into the output folder's folder preview.",
            output_node=True,
        ),
        prepare=lambda params, place: _place({"filename_prefix": "preview/image"}, place),
        finish=_save,
    ),
}
