"""A custom-node pack as ComfyUI has them. Nothing in it knows of vortex-worker."""

import os

import comfy.utils
import numpy as np
import torch
from PIL import Image, ImageDraw

WEB_DIRECTORY = os.path.join(os.path.dirname(__file__), "web")


class Sunset:
    """Skies, one for each colour, as a list."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "width": ("INT", {"default": 320, "min": 16, "max": 4096}),
                "height": ("INT", {"default": 180, "min": 16, "max": 4096}),
                "skies": ("INT", {"default": 3, "min": 1, "max": 16}),
            }
        }

    RETURN_TYPES = ("IMAGE",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "paint"
    CATEGORY = "film look"

    def paint(self, width, height, skies):
        down = torch.linspace(0, 1, height)[:, None, None].expand(height, width, 1)
        pictures = []
        for sky in range(skies):
            above = torch.tensor([0.1 + 0.2 * sky / skies, 0.15, 0.45])
            below = torch.tensor([1.0, 0.55 - 0.2 * sky / skies, 0.2])
            pictures.append(torch.lerp(above, below, down)[None])
        return (pictures,)


class Grain:
    """Film grain, added in place."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "image": ("IMAGE",),
                "strength": ("FLOAT", {"default": 0.08, "min": 0.0, "max": 1.0, "step": 0.01}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF}),
            }
        }

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "add"
    CATEGORY = "film look"

    def add(self, image, strength, seed):
        bar = comfy.utils.ProgressBar(len(image))
        generator = torch.Generator().manual_seed(seed)
        for frame in image:
            frame += strength * torch.randn(frame.shape[:2], generator=generator)[..., None]
            bar.update(1)
        return (image.clamp_(0, 1),)


class Caption:
    """Text at the foot of a picture."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"image": ("IMAGE",), "text": ("STRING", {"default": "35 mm"})},
            "optional": {"shade": (["white", "black"],)},
        }

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "write"
    CATEGORY = "film look"

    @classmethod
    def VALIDATE_INPUTS(cls, text):
        return True if len(text) < 80 else "the text is too long for a caption"

    def write(self, image, text, shade="white"):
        pictures = []
        for frame in image:
            picture = Image.fromarray((frame.numpy() * 255).astype(np.uint8))
            ImageDraw.Draw(picture).text((8, picture.height - 18), text, fill=shade)
            pictures.append(torch.from_numpy(np.asarray(picture).astype(np.float32) / 255))
        return (torch.stack(pictures),)


NODE_CLASS_MAPPINGS = {"FilmSunset": Sunset, "FilmGrain": Grain, "FilmCaption": Caption}
NODE_DISPLAY_NAME_MAPPINGS = {"FilmSunset": "Sunset", "FilmGrain": "Film Grain", "FilmCaption": "Caption"}
