"""Custom nodes that draw digits: a model loader, a prompt of digits, and a picture of the result.

They are what a stranger's nodes would be: loaded in the worker after lockdown, with read access to
this folder and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vortex_worker.executor import AbstractExecutor, Param, Port

FOLDER = Path(__file__).parent
NULL = 10  # the class that stands for none
INK = (24, 28, 38)
PAPER = (250, 249, 246)


class DigitsModelLoader(AbstractExecutor):
    """Load the digits model. It stays in the worker."""

    op_type = "DigitsModelLoader"
    output_ports = (Port("model", "MODEL"),)

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        from network import DigitsUNet
        from safetensors.torch import load

        from vortex_worker.executor.nodes.sampling.model import DiffusionModel

        network = DigitsUNet().eval().requires_grad_(False)
        weights = load((FOLDER / "digits.safetensors").read_bytes())
        network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        return {"model": DiffusionModel(network.to(self.context.device), latent_channels=1)}


class DigitsPrompt(AbstractExecutor):
    """What to draw: one digit for each character; and the same many of "no digit" to steer away from."""

    op_type = "DigitsPrompt"
    output_ports = (
        Port("digits", "CONDITIONING"),
        Port("none", "CONDITIONING"),
        Port("latent", "LATENT"),
        Port("text", "STRING"),
    )
    params = (Param("text", "STRING", default="0123456789", doc="digits; other characters are passed over"),)

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        count = len(digits_of(params["text"]))
        if 1 <= count <= 256:
            return []
        return [f"'text' has {count} digits: it takes 1 to 256"]

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        import torch

        classes = torch.tensor([[float(digit)] for digit in digits_of(params["text"])])
        return {
            "digits": [[classes, {}]],
            "none": [[torch.full_like(classes, NULL), {}]],
            "latent": {"samples": torch.zeros(len(classes), 1, 28, 28)},
            "text": params["text"],
        }


class DigitsPicture(AbstractExecutor):
    """Lay out drawn digits, a row for each word of the text; the first row gets labels."""

    op_type = "DigitsPicture"
    input_ports = (Port("latent", "LATENT"),)
    output_ports = (Port("image", "IMAGE"),)
    params = (
        Param("text", "STRING", default="0123456789", doc="the text that was drawn, separators and all"),
        Param("labels", "BOOLEAN", default=True, doc="print under the first row what each digit should be"),
        Param("title", "STRING", default=""),
        Param("size", "INT", default=84, minimum=28, maximum=280, doc="pixels of one digit"),
    )

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        samples, count = inputs["latent"]["samples"], len(digits_of(params["text"]))
        if samples.shape != (count, 1, 28, 28):
            return [
                f"'latent' has samples {list(samples.shape)}: 'text' has {count} digits, so it takes [{count}, 1, 28, 28]"  # noqa: E501
            ]
        return []

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        import numpy as np
        import torch
        from PIL import Image, ImageDraw, ImageFont

        size, gap, labels = params["size"], params["size"] // 7, params["labels"]
        large, small = ImageFont.load_default(size * 0.24), ImageFont.load_default(size * 0.2)
        # White on black, as MNIST is, becomes ink on paper; the faint haze of the background goes.
        drawn = (inputs["latent"]["samples"][:, 0].float() + 1) / 2
        ink = ((drawn - 0.1) / 0.8).clamp(0, 1).mul(255).byte().numpy()
        tiles = iter([Image.fromarray(t).resize((size, size), Image.Resampling.BICUBIC) for t in ink])

        rows = rows_of(params["text"])
        width = max(self._width(row, size, gap) for row in rows) + 6 * gap
        top = 4 * gap + (int(size * 0.3) if params["title"] else 0)
        label_height = int(size * 0.32)
        heights = [size + (label_height if i == 0 and labels else 0) for i in range(len(rows))]
        picture = Image.new("RGB", (width, top + sum(heights) + 2 * gap * len(rows) + gap), PAPER)
        draw = ImageDraw.Draw(picture)
        if params["title"]:
            draw.text((width / 2, 2 * gap), params["title"], INK, large, anchor="mt")
        y = top
        for index, row in enumerate(rows):
            x = (width - self._width(row, size, gap)) // 2
            for character in row:
                if character.isdigit():
                    picture.paste(INK, (x, y), next(tiles))
                    if index == 0 and labels:
                        draw.text((x + size / 2, y + size + gap / 2), character, (140, 140, 135), small, anchor="mt")
                    x += size + gap
                else:
                    draw.line((x, y + size // 2, x + size // 4, y + size // 2), INK, max(2, size // 22))
                    x += size // 4 + gap
            y += heights[index] + 2 * gap
        pixels = np.asarray(picture, dtype=np.float32) / 255
        return {"image": torch.from_numpy(pixels)[None]}

    @staticmethod
    def _width(row: str, size: int, gap: int) -> int:
        return sum(size if c.isdigit() else size // 4 for c in row) + gap * (len(row) - 1)


def digits_of(text: str) -> str:
    """The decimal digits in ``text``."""
    return "".join(c for c in text if c in "0123456789")


def rows_of(text: str) -> list[str]:
    """Rows of the picture: the words of ``text``; only digits and "-" are drawn."""
    rows = ["".join(c for c in line if c in "0123456789-") for line in text.split()]
    return [row for row in rows if digits_of(row)]
