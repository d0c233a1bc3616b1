"""Nodes on lists, and one that takes only what it needs."""

import torch


class AnyType(str):
    """Fits everything: packs have this trick from one another."""

    def __ne__(self, other):
        return False


class Split:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"count": ("INT", {"default": 3, "min": 0, "max": 16})}}

    RETURN_TYPES = ("IMAGE", "INT", "PACK_THING")
    OUTPUT_IS_LIST = (True, True, True)
    FUNCTION = "split"

    def split(self, count):
        images = [torch.full((1, 2, 2 + n, 3), float(n)) for n in range(count)]  # of different sizes: no batch
        return (images, list(range(count)), [f"thing {n}" for n in range(count)])


class Join:
    INPUT_IS_LIST = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"images": ("IMAGE",), "factor": ("FLOAT", {"default": 1.0})},
            "optional": {"things": ("PACK_THING",), "absent": ("INT", {"default": 7})},
            "hidden": {"node": "UNIQUE_ID"},
        }

    RETURN_TYPES = ("STRING",)
    FUNCTION = "join"

    def join(self, images, factor, node, things=(), absent=None):
        widths = [image.shape[2] for image in images]
        return (f"{node} {widths} x {factor} {list(things)} {absent}",)


class Switch:
    @classmethod
    def INPUT_TYPES(cls):
        lazy = {"lazy": True}
        return {
            "required": {"on": ("BOOLEAN", {"default": True}), "yes": (AnyType("*"), lazy), "no": (AnyType("*"), lazy)}
        }

    RETURN_TYPES = (AnyType("*"),)
    RETURN_NAMES = ("value",)
    FUNCTION = "switch"

    def check_lazy_status(self, on, yes=None, no=None):
        return [name for name, value in (("yes", yes), ("no", no)) if value is None and (name == "yes") == on]

    def switch(self, on, yes, no):
        return (yes if on else no,)


class Gadget:
    """What no wire carries: an object with a class of its own."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"optional": {"gadget": ("GADGET",)}}

    RETURN_TYPES = ("GADGET", "BOOLEAN")
    FUNCTION = "keep"

    def keep(self, gadget=None):
        return (gadget or self, gadget is not None)


class Levels:
    """Tensors under types of the pack's own."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    RETURN_TYPES = ("PACK_LEVELS", "PACK_PIPE")
    FUNCTION = "make"

    def make(self):
        return (torch.ones(3), (torch.ones(2), "settings", [torch.ones(1)]))


class Spoil:
    """Adds them up, and leaves nothing of what it was given."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"levels": ("PACK_LEVELS",), "pipe": ("PACK_PIPE",), "place": ("INT", {"default": 0})}}

    RETURN_TYPES = ("FLOAT",)
    FUNCTION = "spoil"

    def spoil(self, levels, pipe, place):
        tensors = [levels, pipe[0], pipe[2][0]]
        total = float(sum(tensor.sum() for tensor in tensors))
        for tensor in tensors:
            tensor.zero_()
        return (total,)


MAPPINGS = {
    "PackLevels": Levels,
    "PackSpoil": Spoil,
    "PackGadget": Gadget,
    "PackSplit": Split,
    "PackJoin": Join,
    "PackSwitch": Switch,
}
