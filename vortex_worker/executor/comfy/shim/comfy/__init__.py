"""Stands in for ComfyUI's ``comfy``."""

from vortex_worker.executor.comfy.shim.comfy import model_management, samplers, utils

__all__ = ["model_management", "samplers", "utils"]
