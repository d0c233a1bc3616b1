"""Nodes that change their inputs, ask who they are, and say when they have changed."""

import comfy.model_management
import torch
from comfy.utils import ProgressBar


class Brighten:
    """Brighten a picture, in place."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "image": ("IMAGE",),
                "amount": ("FLOAT", {"default": 0.1, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": "how much"}),
            },
            "optional": {"times": ("INT", {"default": 1, "min": 1, "max": 8}), "mask": ("MASK",)},
        }

    RETURN_TYPES = ("IMAGE", "INT")
    RETURN_NAMES = ("brighter", "steps")
    FUNCTION = "brighten"
    CATEGORY = "tests/maths"

    def brighten(self, image, amount, times=2, mask=None):
        bar = ProgressBar(times)
        for _ in range(times):
            comfy.model_management.throw_exception_if_processing_interrupted()
            image += amount  # its own copy: nobody else sees it
            bar.update(1)
        if mask is not None:
            image *= mask[..., None]
        return (image.to(comfy.model_management.get_torch_device()), times)


class WhoAmI:
    """What the workflow says of itself."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {},
            "hidden": {
                "node": "UNIQUE_ID",
                "graph": "PROMPT",
                "extra": "EXTRA_PNGINFO",
                "secret": "AUTH_TOKEN_COMFY_ORG",
            },
        }

    RETURN_TYPES = ("STRING",)
    FUNCTION = "tell"
    OUTPUT_NODE = True

    def tell(self, node=None, graph=None, extra=None, secret=None):
        text = f"{node} of {sorted(graph or {})}, {secret}"
        return {"ui": {"text": [text]}, "result": (text,)}


class Count:
    """How often it ran in this worker; runs again when ``version`` says so."""

    ran = 0

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING", {"default": ""}), "always": ("BOOLEAN", {"default": False})}}

    RETURN_TYPES = ("INT",)
    FUNCTION = "count"

    @classmethod
    def IS_CHANGED(cls, name, always):
        return float("nan") if always else len(name)

    def count(self, name, always):
        Count.ran += 1
        return (torch.tensor(Count.ran),)


class Pick:
    """One of its choices, checked by itself."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"size": ([1, 2, 4], {"default": 2}), "even": ("INT", {"default": 0, "max": 10})}}

    RETURN_TYPES = ("PACK_BOX",)
    FUNCTION = "pick"

    @classmethod
    def VALIDATE_INPUTS(cls, even):
        return True if even % 2 == 0 else f"{even} is odd" + "\x1b[31m" * (even == 9)

    async def pick(self, size, even):
        return ([size, even],)


class Unpick:
    """What is in a box of the pack's own type."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"box": ("PACK_BOX",)}}

    RETURN_TYPES = ("INT",)
    FUNCTION = "unpick"

    def unpick(self, box):
        return (sum(box),)


class Add:
    """Numbers of either kind."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"a": ("INT,FLOAT",), "b": ("INT,FLOAT", {"default": 1})}}

    RETURN_TYPES = ("FLOAT", "INT,FLOAT")
    FUNCTION = "add"

    def add(self, a, b):
        return (float(a + b), a + b)


class Measure:
    """The length of whatever has one, as it judges by itself."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("STRING,LATENT", {"forceInput": True}), "times": ("INT", {"default": 1})}}

    RETURN_TYPES = ("INT",)
    FUNCTION = "measure"

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        kind = input_types["value"]
        return kind in ("STRING", "IMAGE") or f"{kind} has no length"

    def measure(self, value, times):
        return (len(value) * times,)


MAPPINGS = {
    "PackBrighten": Brighten,
    "PackWho": WhoAmI,
    "PackCount": Count,
    "PackPick": Pick,
    "PackUnpick": Unpick,
    "PackAdd": Add,
    "PackMeasure": Measure,
}
