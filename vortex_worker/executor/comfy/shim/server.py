"""Stands in for ComfyUI's ``server``: there is none, so what is sent to it is dropped and no route is ever asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class _Routes:
    def __getattr__(self, method: str) -> Callable[..., Callable[[Any], Any]]:
        return lambda *args, **kwargs: lambda handler: handler


class PromptServer:
    instance: PromptServer

    def __init__(self) -> None:
        self.routes = _Routes()
        self.client_id: str | None = None
        self.last_node_id: str | None = None
        self.supports: list[str] = []

    def send_sync(self, event: str, data: Any = None, sid: Any = None) -> None:
        pass

    def send_progress_text(self, text: str, node_id: Any = None, sid: Any = None) -> None:
        pass

    def add_on_prompt_handler(self, handler: Any) -> None:
        pass


PromptServer.instance = PromptServer()
