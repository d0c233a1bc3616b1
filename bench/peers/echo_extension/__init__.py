"""The extension that ``peers/comfy.py`` loads: pyisolate imports it in a process of its own."""

from typing import Any

from pyisolate import ExtensionBase


class Echo(ExtensionBase):
    async def on_module_loaded(self, module: Any) -> None:
        """Awaited, whatever its documentation shows."""
        import torch

        square = torch.ones(128, 128)
        (square @ square).sum()

    async def echo(self, tensor: Any) -> Any:
        return tensor
