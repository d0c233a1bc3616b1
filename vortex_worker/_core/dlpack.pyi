from collections.abc import Callable
from typing import Any

from typing_extensions import Buffer

from vortex_worker._core.arena import Arena
from vortex_worker._core.handle import TensorHandle

class Importer:
    def __init__(self, table: Any, adopt: Callable[[Any], Any]) -> None: ...
    @property
    def direct(self) -> bool: ...
    # Any: a tensor of whatever framework the table and the function are of.
    def view(self, arena: Arena, handle: TensorHandle, owner: Any = None) -> Any: ...
    def over(self, source: Buffer, handle: TensorHandle) -> Any: ...

def capsule(arena: Arena, handle: TensorHandle, owner: Any = None) -> Any: ...
