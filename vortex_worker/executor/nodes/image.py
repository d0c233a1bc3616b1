"""Nodes on images: float tensors [batch, height, width, channels], 0 to 1."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from vortex_worker.errors import ValidationError
from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.nodes.overlay import laid_over, overlay_problems
from vortex_worker.executor.ports import Param, Port

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

_IMAGE = (Port("image", "IMAGE"),)
_MAX_PIXELS = 64 << 20  # 64 Mpx: above what cameras make, below what a decompression bomb wants
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
RESIZE_METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
_MAX_SIDE = 16384  # pixels


class LoadImage(AbstractExecutor):
    """Decode an image file's bytes. The client's side of this node reads the file."""

    op_type = "LoadImage"
    output_ports = (Port("image", "IMAGE"), Port("mask", "MASK", "1 where the image is transparent"))
    params = (Param("data", "BYTES", doc="the file's content: PNG, JPEG, WebP, BMP, TIFF or GIF"),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        image, mask = decoded(params["data"])
        return {"image": image, "mask": mask}


def decoded(data: bytes) -> tuple[Tensor, Tensor]:
    """An image file's first frame: pixels [1, height, width, 3], and a mask [1, height, width], 1 where clear.

    Raises:
        ValidationError: it is no image of a known format, damaged or too large.
    """
    import torch
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            pixels, mask = _decode(picture)
    except (ValidationError, MemoryError):
        raise
    except Image.DecompressionBombError:
        many = f"DecompressionBombError: at most {_MAX_PIXELS} pixels are decoded"  # Pillow's own limit is a higher one
        raise ValidationError(f"'data' is an image that can't be decoded: {many}") from None
    except UnidentifiedImageError:
        raise ValidationError(f"'data' is {len(data)} bytes of no image: it takes {', '.join(_FORMATS)}") from None
    except Exception as error:  # Pillow raises whatever its decoders stumble over
        raise ValidationError(f"'data' is an image that can't be decoded: {type(error).__name__}: {error}") from None
    return torch.from_numpy(pixels)[None], torch.from_numpy(mask)[None]


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
    if params["upscale_method"] == "lanczos":
        return _lanczos(planes, new_height, new_width)
    if params["upscale_method"] == "bislerp":
        from vortex_worker.executor.nodes.bislerp import bislerp

        return bislerp(planes, new_height, new_width)
    return interpolate(planes, (new_height, new_width), mode=params["upscale_method"])


def _lanczos(planes: Tensor, height: int, width: int) -> Tensor:
    import numpy as np
    import torch
    from PIL import Image

    out = torch.empty(*planes.shape[:2], height, width)
    for place in np.ndindex(*planes.shape[:2]):
        plane = Image.fromarray(planes[place].float().contiguous().numpy())
        out[place] = torch.from_numpy(np.array(plane.resize((width, height), Image.Resampling.LANCZOS)))
    return out


class ImageScaleBy(AbstractExecutor):
    """Resize images by a factor."""

    op_type = "ImageScaleBy"
    input_ports = _IMAGE
    output_ports = _IMAGE
    params = (
        Param("upscale_method", "CHOICE", default="bicubic", choices=RESIZE_METHODS),
        Param("scale_by", "FLOAT", default=1.0, minimum=0.01, maximum=8.0),
    )

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        return scale_problems("image", inputs["image"].movedim(-1, 1), params["scale_by"])

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        planes = inputs["image"].movedim(-1, 1)
        resized = resize(planes, scaled_size(planes, params))
        return {"image": resized.movedim(1, -1).clamp(0, 1)}


def scaled_size(planes: Tensor, params: dict[str, Any]) -> dict[str, Any]:
    """What ``resize`` takes for ``scale_by``: the nearest whole size."""
    height, width = (max(1, round(side * params["scale_by"])) for side in planes.shape[-2:])
    return {"upscale_method": params["upscale_method"], "width": width, "height": height, "crop": "disabled"}


def scale_problems(name: str, planes: Tensor, factor: float) -> list[str]:
    """What keeps [batch, channels, height, width] from being resized by ``factor``."""
    if planes.dim() != 4 or 0 in planes.shape:
        return [f"{name!r} is a tensor {list(planes.shape)}: there is nothing to resize"]
    if max(planes.shape[-2:]) * factor > _MAX_SIDE:
        return [f"'scale_by' is {factor:g}: a side would be longer than {_MAX_SIDE}"]
    return []


class ImagePadForOutpaint(AbstractExecutor):
    """Images with a grey border to draw on, and the mask of it, which fades into the picture."""

    op_type = "ImagePadForOutpaint"
    input_ports = _IMAGE
    output_ports = (Port("image", "IMAGE"), Port("mask", "MASK"))
    params = (
        *(Param(side, "INT", default=0, minimum=0, maximum=8192) for side in ("left", "top", "right", "bottom")),
        Param("feathering", "INT", default=40, minimum=0, maximum=8192, doc="pixels"),
    )

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        import torch

        image, feather = inputs["image"], params["feathering"]
        batch, height, width, channels = image.shape
        left, top = params["left"], params["top"]
        size = (height + top + params["bottom"], width + left + params["right"])
        out = self.context.empty((batch, *size, channels)).fill_(0.5)
        out[:, top : top + height, left : left + width] = image
        inside = torch.zeros(height, width)
        if feather and 2 * feather < min(height, width):
            # The distance to the nearest border that was added; sides that stay as they are have none.
            y, x = torch.arange(height)[:, None].float(), torch.arange(width)[None].float()
            far = torch.full((height, width), float(max(height, width)))
            for added, distance in (
                (left, x), (top, y), (params["right"], width - x), (params["bottom"], height - y),
            ):  # fmt: skip
                far = torch.minimum(far, distance.expand(height, width)) if added else far
            inside = ((feather - far).clamp(min=0) / feather) ** 2
        mask = torch.ones(size)
        mask[top : top + height, left : left + width] = inside
        return {"image": out, "mask": mask[None]}


class ImageInvert(AbstractExecutor):
    """Turn light to dark and dark to light."""

    op_type = "ImageInvert"
    input_ports = _IMAGE
    output_ports = _IMAGE

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"image": 1 - inputs["image"]}


class EmptyImage(AbstractExecutor):
    """Images of one colour."""

    op_type = "EmptyImage"
    output_ports = _IMAGE
    params = (
        Param("width", "INT", default=512, minimum=1, maximum=_MAX_SIDE),
        Param("height", "INT", default=512, minimum=1, maximum=_MAX_SIDE),
        Param("batch_size", "INT", default=1, minimum=1, maximum=4096),
        Param("color", "INT", default=0, minimum=0, maximum=0xFFFFFF, doc="0xRRGGBB"),
    )

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        image = self.context.empty((params["batch_size"], params["height"], params["width"], 3))
        for channel, value in enumerate(params["color"].to_bytes(3, "big")):
            image[..., channel] = value / 255
        return {"image": image}


class ImageBatch(AbstractExecutor):
    """One batch of two; the second is resized to the first's size, its edges cut off where proportions differ."""

    op_type = "ImageBatch"
    input_ports = (Port("image1", "IMAGE"), Port("image2", "IMAGE"))
    output_ports = _IMAGE

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        return [
            f"{name!r} is a tensor {list(image.shape)}: there is nothing in it"
            for name, image in inputs.items()
            if 0 in image.shape
        ]

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        import torch
        from torch.nn.functional import pad

        first, second = inputs["image1"], inputs["image2"].to(inputs["image1"].dtype)
        height, width = first.shape[1:3]
        if second.shape[1:3] != first.shape[1:3]:
            size = {"width": width, "height": height, "upscale_method": "bilinear", "crop": "center"}
            second = resize(second.movedim(-1, 1), size).movedim(1, -1)
        channels = max(first.shape[-1], second.shape[-1])
        if channels == 4:  # what has no alpha is opaque
            first, second = (
                image if image.shape[-1] == 4 else pad(image.expand(-1, -1, -1, 3), (0, 1), value=1.0)
                for image in (first, second)
            )
        first, second = (image.expand(-1, -1, -1, channels) for image in (first, second))
        return {"image": torch.cat([first, second])}


class ImageCrop(AbstractExecutor):
    """Cut a rectangle out of images; what of it lies outside is left out."""

    op_type = "ImageCrop"
    input_ports = _IMAGE
    output_ports = _IMAGE
    params = (
        Param("width", "INT", default=512, minimum=1, maximum=_MAX_SIDE),
        Param("height", "INT", default=512, minimum=1, maximum=_MAX_SIDE),
        Param("x", "INT", default=0, minimum=0, maximum=_MAX_SIDE),
        Param("y", "INT", default=0, minimum=0, maximum=_MAX_SIDE),
    )

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        height, width = inputs["image"].shape[1:3]
        x, y = min(params["x"], width - 1), min(params["y"], height - 1)
        return {"image": inputs["image"][:, y : y + params["height"], x : x + params["width"]]}


class ImageCompositeMasked(AbstractExecutor):
    """Lay images over others, where a mask says; alpha is the lower ones'."""

    op_type = "ImageCompositeMasked"
    input_ports = (Port("destination", "IMAGE"), Port("source", "IMAGE"), Port("mask", "MASK", optional=True))
    output_ports = _IMAGE
    params = (
        Param("x", "INT", default=0, minimum=0, maximum=_MAX_SIDE),
        Param("y", "INT", default=0, minimum=0, maximum=_MAX_SIDE),
        Param("resize_source", "BOOLEAN", default=False, doc="to the size of destination"),
    )

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        return overlay_problems(inputs["destination"], inputs["source"], inputs.get("mask"))

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from torch.nn.functional import pad

        below, above = inputs["destination"], inputs["source"]
        channels = below.shape[-1]
        if above.shape[-1] == 1:
            above = above.expand(-1, -1, -1, min(channels, 3))
        if above.shape[-1] < channels:  # what has no alpha is opaque
            above = pad(above, (0, 1), value=1.0)
        below, above = (image.movedim(-1, 1) for image in (below, above[..., :channels]))
        x, y, resized = params["x"], params["y"], params["resize_source"]
        return {"image": laid_over(below, above, x, y, inputs.get("mask"), resized=resized).movedim(1, -1)}


EXECUTORS = (
    LoadImage,
    ImageScale,
    ImageScaleBy,
    ImageInvert,
    ImagePadForOutpaint,
    EmptyImage,
    ImageBatch,
    ImageCrop,
    ImageCompositeMasked,
)
