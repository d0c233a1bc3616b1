"""Nodes on images: float tensors [batch, height, width, channels], 0 to 1."""

from __future__ import annotations

import io
from typing import Any

from vortex_worker.errors import ValidationError
from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.ports import Param, Port

_IMAGE = (Port("image", "IMAGE"),)
_MAX_PIXELS = 64 << 20  # 64 Mpx: above what cameras make, below what a decompression bomb wants
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")


class LoadImage(AbstractExecutor):
    """Decode an image file's bytes. The client's side of this node reads the file."""

    op_type = "LoadImage"
    output_ports = (Port("image", "IMAGE"), Port("mask", "MASK"))
    params = (Param("data", "BYTES", doc="the file's content: PNG, JPEG, WebP, BMP, TIFF or GIF"),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        import numpy as np
        import torch
        from PIL import Image, ImageOps

        try:
            with Image.open(io.BytesIO(params["data"]), formats=_FORMATS) as picture:
                if picture.width * picture.height > _MAX_PIXELS:
                    raise ValidationError(
                        f"the image is {picture.width}×{picture.height}: at most {_MAX_PIXELS} pixels are decoded"
                    )
                picture = ImageOps.exif_transpose(picture)
                alpha = picture.getchannel("A") if "A" in picture.getbands() else None
                pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
                mask = 1 - np.asarray(alpha, dtype=np.float32) / 255 if alpha else np.zeros((64, 64), np.float32)
        except ValidationError:
            raise
        except Exception as error:  # Pillow raises whatever its decoders stumble over
            raise ValidationError(f"not an image that can be decoded: {type(error).__name__}: {error}") from None
        return {"image": torch.from_numpy(pixels)[None], "mask": torch.from_numpy(np.ascontiguousarray(mask))[None]}


class ImageScale(AbstractExecutor):
    """Resize images."""

    op_type = "ImageScale"
    input_ports = _IMAGE
    output_ports = _IMAGE
    params = (
        Param("upscale_method", "CHOICE", default="bicubic", choices=("nearest-exact", "bilinear", "area", "bicubic")),
        Param("width", "INT", default=512, minimum=1, maximum=16384),
        Param("height", "INT", default=512, minimum=1, maximum=16384),
    )

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from torch.nn.functional import interpolate

        planes = inputs["image"].movedim(-1, 1)
        planes = interpolate(planes, (params["height"], params["width"]), mode=params["upscale_method"])
        return {"image": planes.movedim(1, -1).clamp(0, 1)}


class ImageInvert(AbstractExecutor):
    """Turn light to dark and dark to light."""

    op_type = "ImageInvert"
    input_ports = _IMAGE
    output_ports = _IMAGE

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"image": 1 - inputs["image"]}


EXECUTORS = (LoadImage, ImageScale, ImageInvert)
