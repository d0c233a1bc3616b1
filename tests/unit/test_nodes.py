"""The built-in nodes, run as a worker runs them: declared ports, checked outputs."""

from __future__ import annotations

import contextlib
import io
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from vortex_worker.errors import Cancelled, DeadlineExceeded, ExecutionError, OOMSoft, ValidationError
from vortex_worker.executor.context import JobContext
from vortex_worker.executor.nodes import image as image_nodes
from vortex_worker.executor.registry import Registry
from vortex_worker.executor.runner import run

REGISTRY = Registry()
REGISTRY.load_builtin()


def go(op_type: str, context: JobContext | None = None, /, **values: Any) -> dict[str, Any]:
    executor, spec = REGISTRY.get(op_type)
    done = run(
        executor, spec, {}, values, context or JobContext(), save=lambda outputs: outputs, free_memory=lambda: None
    )
    outputs: dict[str, Any] = done.saved
    return outputs


def problems(op_type: str, **values: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        go(op_type, **values)
    return caught.value.problems


# ------------------------------------------------------------------- tensors


@pytest.mark.parametrize("value", [torch.arange(3), None, 7, "text", {"a": [1]}, b"x"])
def test_identity(value: Any) -> None:
    assert go("Identity", tensor=value)["tensor"] is value


def test_add() -> None:
    a, b = torch.arange(6.0).reshape(2, 3), torch.tensor([10.0, 20.0, 30.0])
    assert torch.equal(go("Add", a=a, b=b)["tensor"], a + b)
    assert go("Add", a=torch.tensor(1), b=torch.zeros(0))["tensor"].shape == (0,)
    assert go("Add", a=torch.zeros(4, 1), b=torch.zeros(1, 5))["tensor"].shape == (4, 5)
    assert problems("Add", a=torch.zeros(2, 3), b=torch.zeros(2)) == [
        "'a' is [2, 3] and 'b' is [2]: dimensions, from the last on, must be equal or 1"
    ]
    assert len(problems("Add", a=1)) == 2


def test_scale() -> None:
    x = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    out = go("Scale", tensor=x, factor=3, offset=-1.0)["tensor"]
    assert out.tolist() == [2.0, 5.0]
    assert out.dtype is torch.bfloat16
    assert torch.equal(go("Scale", tensor=x)["tensor"], x)
    assert problems("Scale", tensor=x, factor=float("inf"), offset="1") == [
        "parameter 'factor' is inf: it takes a finite number",
        "parameter 'offset' is '1': it takes a finite number",
    ]


@pytest.mark.parametrize(
    ("a", "b"), [((2, 3), (3, 4)), ((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 4)), ((5, 2, 3), (3, 4)), ((0, 3), (3, 2))]
)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    x, y = torch.randn(a), torch.randn(b)
    torch.testing.assert_close(go("Matmul", a=x, b=y)["tensor"], x @ y)


@pytest.mark.parametrize(("a", "b"), [((2, 3), (2, 3)), ((), (3,)), ((3,), ()), ((2, 3), (4,))])
def test_matmul_of_what_does_not_fit(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    (problem,) = problems("Matmul", a=torch.zeros(a), b=torch.zeros(b))
    assert problem.startswith(f"'a' is {list(a)} and 'b' is {list(b)}: ")


def test_matmul_of_two_dtypes_says_what_torch_says() -> None:
    with pytest.raises(ExecutionError, match=r"Matmul raised RuntimeError: expected .* same dtype"):
        go("Matmul", a=torch.zeros(2, 2), b=torch.zeros(2, 2, dtype=torch.float64))


def test_random_tensor() -> None:
    first = go("RandomTensor", shape=[64, 65], seed=7)["tensor"]
    assert first.shape == (64, 65)
    assert first.dtype is torch.float32
    assert torch.equal(first, torch.randn(64, 65, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(first, go("RandomTensor", shape=[64, 65], seed=7)["tensor"])
    assert not torch.equal(first, go("RandomTensor", shape=[64, 65], seed=8)["tensor"])
    assert go("RandomTensor", shape=[8], seed=(1 << 64) - 1)["tensor"].isfinite().all()
    assert go("RandomTensor", shape=[])["tensor"].shape == ()
    assert go("RandomTensor", shape=[0, 3])["tensor"].shape == (0, 3)


@pytest.mark.parametrize("shape", [[-1], [1.5], ["2"], [True], [None], [[2]], [1] * 33])
def test_random_tensor_of_a_bad_shape(shape: list[Any]) -> None:
    (problem,) = problems("RandomTensor", shape=shape)
    assert problem.startswith("'shape' is [")
    assert len(problem) < 200


def test_random_tensor_of_no_sense() -> None:
    assert problems("RandomTensor", shape="8") == ["parameter 'shape' is '8': it takes a list"]
    assert "'seed' is -1" in problems("RandomTensor", shape=[1], seed=-1)[0]
    with pytest.raises(OOMSoft):
        go("RandomTensor", shape=[1 << 53])


def test_sleep() -> None:
    reports: list[tuple[int, int, str]] = []
    begun = time.monotonic()
    out = go("Sleep", JobContext(report=lambda *report: reports.append(report)), seconds=0.3, tensor=5)
    assert time.monotonic() - begun >= 0.3
    assert out == {"tensor": 5}
    assert reports == [(0, 3, ""), (1, 3, ""), (2, 3, ""), (3, 3, "")]
    assert go("Sleep", seconds=0) == {"tensor": None}
    assert len(problems("Sleep", seconds=-1)) == 1


def test_sleep_is_cut_short() -> None:
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        go("Sleep", JobContext(deadline=time.monotonic_ns() + 50_000_000), seconds=60)
    with pytest.raises(Cancelled):
        go("Sleep", JobContext(cancelled=lambda: True), seconds=60)
    assert time.monotonic() - begun < 5


# ------------------------------------------------------------------- latents


def test_empty_latent_image() -> None:
    samples = go("EmptyLatentImage", width=64, height=100, batch_size=3)["latent"]["samples"]
    assert samples.shape == (3, 4, 12, 8)
    assert samples.dtype is torch.float32
    assert not samples.any()
    assert go("EmptyLatentImage")["latent"]["samples"].shape == (1, 4, 64, 64)
    assert len(problems("EmptyLatentImage", width=8, height=1 << 20, batch_size=0)) == 3


def test_empty_latent_image_is_made_in_the_lease() -> None:
    asked: list[Any] = []

    def allocate(shape: Any, dtype: Any) -> torch.Tensor:
        asked.append((shape, dtype))
        return torch.full(shape, float("nan"), dtype=dtype)

    assert not go("EmptyLatentImage", JobContext(allocate=allocate))["latent"]["samples"].any()
    assert asked == [((1, 4, 64, 64), torch.float32)]


def latent(batch: int, **more: Any) -> dict[str, Any]:
    return {"samples": torch.arange(batch * 4.0).reshape(batch, 1, 2, 2), **more}


def test_repeat_latent_batch() -> None:
    out = go("RepeatLatentBatch", samples=latent(2), amount=3)["latent"]
    assert list(out) == ["samples"]
    assert torch.equal(out["samples"], torch.cat([latent(2)["samples"]] * 3))
    mask = torch.rand(2, 1, 16, 16)
    out = go("RepeatLatentBatch", samples=latent(2, batch_index=[3, 5], noise_mask=mask), amount=2)["latent"]
    assert out["batch_index"] == [3, 5, 6, 8]
    assert torch.equal(out["noise_mask"], torch.cat([mask, mask]))
    one = torch.rand(1, 1, 16, 16)
    assert go("RepeatLatentBatch", samples=latent(2, noise_mask=one), amount=2)["latent"]["noise_mask"] is one


def test_latent_from_batch() -> None:
    given = latent(4, noise_mask=torch.rand(4, 1, 2, 2))
    out = go("LatentFromBatch", samples=given, batch_index=1, length=2)["latent"]
    assert torch.equal(out["samples"], given["samples"][1:3])
    assert torch.equal(out["noise_mask"], given["noise_mask"][1:3])
    assert out["samples"].data_ptr() == given["samples"][1].data_ptr()
    assert out["batch_index"] == [1, 2]
    again = go("LatentFromBatch", samples=out, batch_index=1, length=99)["latent"]
    assert (again["batch_index"], again["samples"].shape[0]) == ([2], 1)
    assert "batch_index" not in given
    assert problems("LatentFromBatch", samples=given, batch_index=4) == ["'batch_index' is 4: the batch has 4"]


def test_latent_upscale() -> None:
    samples = torch.rand(2, 4, 8, 6)
    for method in ("nearest-exact", "bilinear", "area", "bicubic"):
        out = go("LatentUpscale", samples={"samples": samples, "k": 1}, upscale_method=method, width=96, height=128)[
            "latent"
        ]
        assert torch.equal(out["samples"], interpolate(samples, (16, 12), mode=method))
        assert out["k"] == 1
    out = go("LatentUpscale", samples={"samples": samples}, width=0, height=128)["latent"]["samples"]
    assert out.shape == (2, 4, 16, 12)
    assert go("LatentUpscale", samples={"samples": samples}, width=1, height=1)["latent"]["samples"].shape[2:] == (1, 1)
    same = go("LatentUpscale", samples={"samples": samples}, width=0, height=0)["latent"]["samples"]
    assert torch.equal(same, samples)
    assert len(problems("LatentUpscale", samples={"samples": torch.zeros(1, 4, 8)})) == 1


# -------------------------------------------------------------------- images


def test_image_scale() -> None:
    image = torch.rand(2, 6, 4, 3)
    out = go("ImageScale", image=image, width=8, height=12, upscale_method="bilinear")["image"]
    wanted = interpolate(image.movedim(-1, 1), (12, 8), mode="bilinear").movedim(1, -1)
    assert torch.equal(out, wanted)
    assert go("ImageScale", image=image, width=8, height=0)["image"].shape == (2, 12, 8, 3)
    assert go("ImageScale", image=image, width=0, height=3)["image"].shape == (2, 3, 2, 3)
    assert go("ImageScale", image=image, width=0, height=0)["image"].shape == image.shape
    step = torch.zeros(1, 2, 2, 1)
    step[:, :, 1] = 1
    out = go("ImageScale", image=step, width=9, height=9, upscale_method="bicubic")["image"]
    assert (out.min(), out.max()) == (0, 1)  # bicubic overshoots; an image doesn't


def test_image_scale_crops_the_middle() -> None:
    image = torch.arange(8.0).div(8).expand(1, 4, 8)[..., None]
    out = go("ImageScale", image=image, width=4, height=4, upscale_method="nearest-exact", crop="center")["image"]
    assert torch.equal(out, image[:, :, 2:6])
    tall = go("ImageScale", image=image.transpose(1, 2), width=2, height=2, crop="center")["image"]
    assert tall.shape == (1, 2, 2, 1)


def test_image_scale_of_nothing() -> None:
    assert problems("ImageScale", image=torch.zeros(0, 4, 4, 3)) == [
        "'image' is a tensor [0, 4, 4, 3]: there is nothing to resize"
    ]
    assert len(problems("ImageScale", image=torch.zeros(1, 4, 4, 3), crop="top", width=-1, upscale_method="x")) == 3


def test_image_invert() -> None:
    image = torch.rand(1, 2, 2, 3)
    assert torch.equal(go("ImageInvert", image=image)["image"], 1 - image)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_load_image(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    out = go("LoadImage", data=encoded(Image.fromarray(PIXELS), kind, **options))
    assert out["image"].shape == (1, 5, 7, 3)
    assert torch.equal(out["image"][0], torch.from_numpy(PIXELS).float() / 255)
    assert torch.equal(out["mask"], torch.zeros(1, 64, 64))


def test_load_jpeg_and_gif() -> None:
    picture = Image.new("RGB", (16, 8), (200, 100, 50))
    for kind in ("JPEG", "GIF"):
        image = go("LoadImage", data=encoded(picture, kind))["image"]
        assert image.shape == (1, 8, 16, 3)
        torch.testing.assert_close(image[0, 3, 3], torch.tensor([200, 100, 50]) / 255, atol=0.02, rtol=0)


def test_transparency_becomes_the_mask() -> None:
    rgba = np.dstack([PIXELS, np.full((5, 7), 255, np.uint8)])
    rgba[0, 0, 3], rgba[1, 1, 3] = 0, 51
    out = go("LoadImage", data=encoded(Image.fromarray(rgba)))
    assert out["mask"].shape == (1, 5, 7)
    assert out["mask"][0, 0, 0] == 1
    assert out["mask"][0, 1, 1] == pytest.approx(0.8)
    assert out["mask"].sum() == pytest.approx(1.8)
    palette = Image.new("P", (3, 2), 0)
    palette.putpalette([9, 9, 9, 200, 200, 200])
    palette.putpixel((2, 1), 1)
    out = go("LoadImage", data=encoded(palette, "GIF", transparency=1))
    assert out["mask"][0].tolist() == [[0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I;16"])
def test_other_modes(mode: str) -> None:
    if mode == "I;16":
        picture = Image.fromarray(np.full((2, 3), 0x8000, np.uint16))
    else:
        picture = Image.new("L", (3, 2), 128).convert(mode)
    image = go("LoadImage", data=encoded(picture, "TIFF" if mode == "CMYK" else "PNG"))["image"]
    assert image.shape == (1, 2, 3, 3)
    assert image.dtype is torch.float32
    assert image.mean() == pytest.approx(0.5, abs=0.01 if mode != "1" else 0.5)


def test_exif_orientation() -> None:
    picture = Image.fromarray(PIXELS)
    exif = picture.getexif()
    exif[0x0112] = 6  # turned a quarter
    image = go("LoadImage", data=encoded(picture, "PNG", exif=exif))["image"]
    assert image.shape == (1, 7, 5, 3)


def png_of(width: int, height: int) -> bytes:
    """A PNG's header that promises a size, and a few bytes of pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


WHOLE = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "'data' is 0 bytes of no image: it takes PNG, JPEG"),
        (b"not an image at all", "'data' is 19 bytes of no image"),
        (b"\x89PNG\r\n\x1a\n", "'data' is "),
        (b"%PDF-1.4\n", "of no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "of no image"),  # would start Ghostscript
        (b"P6 2 2 255\n" + b"\0" * 12, "of no image"),  # PPM: a format nobody asked for
        (WHOLE[:2000], "can't be decoded: OSError: "),
        (WHOLE[:3000] + b"\xff" * 200 + WHOLE[3200:], "can't be decoded"),
        (png_of(64, 64), "can't be decoded: OSError: "),
        (png_of(8200, 8200), "is an image of 8200×8200: at most 67108864 pixels are decoded"),
        (png_of(10_000, 10_000), "DecompressionBombWarning|at most 67108864 pixels"),
        (png_of(100_000, 100_000), "DecompressionBombError: at most 67108864 pixels are decoded"),
        (png_of(0, 5), "'data' is "),
        (png_of(1 << 31, 1 << 31), "'data' is "),
    ],
)
def test_bad_images(data: bytes, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        go("LoadImage", data=data)
    assert caught.value.code == "WK-004"
    assert "0x" not in caught.value.message


def test_every_cut_of_an_image_is_an_image_or_an_error() -> None:
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        data = encoded(Image.fromarray(PIXELS), kind)
        for end in range(0, len(data), max(1, len(data) // 40)):
            with contextlib.suppress(ValidationError):
                assert go("LoadImage", data=data[:end])["image"].shape == (1, 5, 7, 3)


def test_memory_is_not_the_image_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(picture: Image.Image) -> Any:
        raise MemoryError

    monkeypatch.setattr(image_nodes, "_decode", short)
    with pytest.raises(OOMSoft):
        go("LoadImage", data=WHOLE)


def test_load_image_takes_bytes() -> None:
    assert problems("LoadImage", data="picture.png") == ["parameter 'data' is 'picture.png': it takes bytes"]
    assert problems("LoadImage") == ["parameter 'data' is missing: it takes bytes"]


# ------------------------------------------------------- masks, borders, layers


def test_scale_by() -> None:
    image = torch.rand(2, 6, 4, 3)
    for method in image_nodes.RESIZE_METHODS:
        assert go("ImageScaleBy", image=image, upscale_method=method, scale_by=2.5)["image"].shape == (2, 15, 10, 3)
    assert go("LatentUpscaleBy", samples=latent(2), scale_by=0.01)["latent"]["samples"].shape[2:] == (1, 1)
    assert len(problems("ImageScaleBy", image=torch.zeros(1, 4000, 4, 3), scale_by=8.0)) == 1


def test_lanczos_keeps_a_constant_and_sharpens_an_edge() -> None:
    flat = torch.full((1, 8, 8, 3), 0.3)
    torch.testing.assert_close(
        go("ImageScale", image=flat, upscale_method="lanczos", width=13, height=5)["image"],
        torch.full((1, 5, 13, 3), 0.3),
    )


def test_masks() -> None:
    image = torch.rand(2, 4, 5, 3)
    mask = go("ImageToMask", image=image, channel="green")["mask"]
    assert torch.equal(mask, image[..., 1])
    assert torch.equal(go("InvertMask", mask=mask)["mask"], 1 - mask)
    assert torch.equal(go("MaskToImage", mask=mask)["image"], mask[..., None].expand(2, 4, 5, 3))
    assert torch.equal(go("SolidMask", value=0.5, width=3, height=2)["mask"], torch.full((1, 2, 3), 0.5))
    assert problems("ImageToMask", image=image, channel="alpha") == ["'channel' is alpha: 'image' has 3 channels"]
    data = io.BytesIO()
    Image.new("RGBA", (3, 2), (255, 0, 51, 102)).save(data, "PNG")
    for channel, value in {"red": 1.0, "green": 0.0, "blue": 0.2, "alpha": 0.6}.items():
        found = go("LoadImageMask", data=data.getvalue(), channel=channel)["mask"]
        torch.testing.assert_close(found, torch.full((1, 2, 3), value))


def test_noise_masks_are_kept_for_the_sampler() -> None:
    out = go("SetLatentNoiseMask", samples=latent(2, k=1), mask=torch.ones(16, 16))["latent"]
    assert out["noise_mask"].shape == (1, 1, 16, 16)
    assert out["k"] == 1
    assert len(problems("SetLatentNoiseMask", samples=latent(2), mask=torch.ones(3, 16, 16))) == 1


def test_a_border_to_draw_on() -> None:
    image = torch.rand(1, 32, 32, 3)
    out = go("ImagePadForOutpaint", image=image, left=8, feathering=4)
    assert torch.equal(out["image"][:, :, 8:], image)
    assert torch.equal(out["image"][:, :, :8], torch.full((1, 32, 8, 3), 0.5))
    mask = out["mask"][0, 0]
    assert mask[:8].min() == 1
    assert mask[8:13].tolist() == pytest.approx([1, (3 / 4) ** 2, (2 / 4) ** 2, (1 / 4) ** 2, 0])
    assert mask[13:].max() == 0


def test_one_latent_over_another() -> None:
    below, above = torch.zeros(1, 4, 8, 8), torch.ones(1, 4, 4, 4)
    values = {"samples_to": {"samples": below}, "samples_from": {"samples": above}, "x": 16, "y": 48}
    out = go("LatentComposite", **values)["latent"]["samples"]
    expected = below.clone()
    expected[..., 6:, 2:6] = 1  # what lies outside is cut off
    assert torch.equal(out, expected)
    faded = go("LatentComposite", **values, feather=16)["latent"]["samples"][0, 0]
    assert faded[7, 2:6].tolist() == [0.5, 1.0, 1.0, 0.5]
    assert faded[6, 2:6].tolist() == [0.25, 0.5, 0.5, 0.25]
    assert not below.any()
    wrong = {"samples": torch.ones(1, 3, 4, 4)}
    assert len(problems("LatentComposite", samples_to={"samples": below}, samples_from=wrong)) == 1


def test_empty_latents_of_16_channels() -> None:
    samples = go("EmptySD3LatentImage", width=64, height=32, batch_size=2)["latent"]["samples"]
    assert samples.shape == (2, 16, 4, 8)
    assert not samples.any()
