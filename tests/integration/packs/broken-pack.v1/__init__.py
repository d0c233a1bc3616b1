"""Needs something of ComfyUI that isn't here."""

from comfy.ldm import modules

NODE_CLASS_MAPPINGS = {"PackNever": modules}
