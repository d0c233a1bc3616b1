"""A pack of pure tensor nodes, as ComfyUI's users write them."""

from .lists import MAPPINGS as LISTS
from .maths import MAPPINGS as MATHS

NODE_CLASS_MAPPINGS = {**MATHS, **LISTS}
NODE_DISPLAY_NAME_MAPPINGS = {"PackBrighten": "Brighten"}
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
