"""Stands in for ComfyUI's ``nodes``: a limit, and empty tables. Native nodes are reached through workflows."""

from __future__ import annotations

from typing import Any

MAX_RESOLUTION = 16384
NODE_CLASS_MAPPINGS: dict[str, Any] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
EXTENSION_WEB_DIRS: dict[str, str] = {}
