"""Nodes on images: float tensors [batch, height, width, channels], 0 to 1."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from vortex_worker.errors import ValidationError
from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.ports import Param, Port

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

_IMAGE = (Port("image", "IMAGE"),)
_MAX_PIXELS = 64 << 20  # 64 Mpx: above what cameras make, below what a decompression bomb wants
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
RESIZE_METHODS = ("nearest-exact", "bilinear", "area", "bicubic")


class LoadImage(AbstractExecutor):
    """Decode an image file's bytes. The client's side of this node reads the file."""

    op_type = "LoadImage"
    output_ports = (Port("image", "IMAGE"), Port("mask", "MASK", "1 where the image is transparent"))
    params = (Param("data", "BYTES", doc="the file's content: PNG, JPEG, WebP, BMP, TIFF or GIF"),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        import torch
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(params["data"]), formats=_FORMATS) as picture:
                pixels, mask = _decode(picture)
        except (ValidationError, MemoryError):
            raise
        except UnidentifiedImageError:
            raise ValidationError(
                f"'data' is {len(params['data'])} bytes of no image: it takes {', '.join(_FORMATS)}"
            ) from None
        except Exception as error:  # Pillow raises whatever its decoders stumble over
            raise ValidationError(
                f"'data' is an image that can't be decoded: {type(error).__name__}: {error}"
            ) from None
        return {"image": torch.from_numpy(pixels)[None], "mask": torch.from_numpy(mask)[None]}


def _decode(picture: Image) -> tuple[NDArray[Any], NDArray[Any]]:
    """The first frame as float32: pixels [height, width, 3], and a mask [height, width], 1 where clear."""
    import numpy as np
    from PIL import ImageOps

    if picture.width * picture.height > _MAX_PIXELS:
        size = f"{picture.width}×{picture.height}"
        raise ValidationError(f"'data' is an image of {size}: at most {_MAX_PIXELS} pixels are decoded")
    picture = ImageOps.exif_transpose(picture)
    mask: NDArray[Any] = np.zeros((64, 64), np.float32)  # what workflows expect of an image without transparency
    if picture.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to 8
        grey = np.asarray(picture).astype(np.float32).clip(0, 65535) / 65535
        return np.ascontiguousarray(grey[..., None].repeat(3, axis=-1)), mask
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        mask = 1 - np.asarray(picture.getchannel("A"), np.float32) / 255
    return np.asarray(picture.convert("RGB"), np.float32) / 255, mask


class ImageScale(AbstractExecutor):
    """Resize images. A width or height of 0 follows from the other."""

    op_type = "ImageScale"
    input_ports = _IMAGE
    output_ports = _IMAGE
    params = (
        Param("upscale_method", "CHOICE", default="bicubic", choices=RESIZE_METHODS),
        Param("width", "INT", default=512, minimum=0, maximum=16384),
        Param("height", "INT", default=512, minimum=0, maximum=16384),
        Param("crop", "CHOICE", default="disabled", choices=("disabled", "center")),
    )

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        if 0 in inputs["image"].shape:
            return [f"'image' is a tensor {list(inputs['image'].shape)}: there is nothing to resize"]
        return []

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        resized = resize(inputs["image"].movedim(-1, 1), params)
        return {"image": resized.movedim(1, -1).clamp(0, 1)}


def resize(planes: Tensor, params: dict[str, Any]) -> Tensor:
    """Resize [batch, channels, height, width] to ``width`` × ``height`` by ``upscale_method``.

    With ``crop`` "center", edges that don't have the new proportions are cut off first.
    """
    from torch.nn.functional import interpolate

    height, width = planes.shape[-2:]
    new_width, new_height = params["width"], params["height"]
    if new_width == 0 and new_height == 0:
        return planes
    new_width = new_width or max(1, round(width * new_height / height))
    new_height = new_height or max(1, round(height * new_width / width))
    if params["crop"] == "center":
        kept_width = max(1, min(width, round(height * new_width / new_height)))
        kept_height = max(1, min(height, round(width * new_height / new_width)))
        left, top = (width - kept_width) // 2, (height - kept_height) // 2
        planes = planes[..., top : top + kept_height, left : left + kept_width]
    return interpolate(planes, (new_height, new_width), mode=params["upscale_method"])


class ImageInvert(AbstractExecutor):
    """Turn light to dark and dark to light."""

    op_type = "ImageInvert"
    input_ports = _IMAGE
    output_ports = _IMAGE

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"image": 1 - inputs["image"]}


EXECUTORS = (LoadImage, ImageScale, ImageInvert)
