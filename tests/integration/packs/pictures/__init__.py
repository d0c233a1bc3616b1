"""A pack of pictures with Pillow. Imports what packs import, whether it needs it or not."""

import os
import subprocess
import urllib.request

import folder_paths
import nodes
import numpy as np
import torch
from PIL import Image, ImageDraw
from server import PromptServer

HERE = os.path.dirname(os.path.realpath(__file__))


@PromptServer.instance.routes.get("/pictures/list")
async def never_asked(request):
    return subprocess, urllib.request


class Label:
    """Write text over a picture."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "image": ("IMAGE",),
                "text": ("STRING", {"multiline": True, "default": "hello"}),
                "place": (["top", "bottom"],),
                "width": ("INT", {"default": 0, "min": 0, "max": nodes.MAX_RESOLUTION}),
            },
            "hidden": {"node": "UNIQUE_ID"},
        }

    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "label"
    CATEGORY = "tests/pictures"
    DESCRIPTION = "Writes text over a picture."

    def label(self, image, text, place, width, node=None):
        labelled = []
        for frame in image:
            picture = Image.fromarray((frame.numpy() * 255).astype(np.uint8))
            if width:
                picture = picture.resize((width, picture.height))
            ImageDraw.Draw(picture).text((1, 1 if place == "top" else picture.height - 11), text, fill=(255, 0, 0))
            labelled.append(torch.from_numpy(np.asarray(picture).astype(np.float32) / 255))
        PromptServer.instance.send_sync("pictures.done", {"node": node})
        out = torch.stack(labelled)
        return (out, out.amax(-1))


class Folders:
    """Where the pack finds models."""

    @classmethod
    def INPUT_TYPES(cls):
        files = [name for name in os.listdir(folder_paths.get_input_directory()) if name.endswith(".png")]
        return {
            "required": {"upscaler": (folder_paths.get_filename_list("upscale_models"),)},
            "optional": {"picture": (files or ["none"],)},
        }

    RETURN_TYPES = ("STRING", "FLOAT")
    FUNCTION = "find"

    def find(self, upscaler, picture=None):
        import comfy.utils  # inside a function, as most do

        path = folder_paths.get_full_path_or_raise("upscale_models", upscaler)
        weights = comfy.utils.load_torch_file(path, safe_load=True)
        return (os.path.basename(path), float(sum(tensor.sum() for tensor in weights.values())))


NODE_CLASS_MAPPINGS = {"PackLabel": Label, "PackFolders": Folders}
