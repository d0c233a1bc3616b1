from collections.abc import Iterable, Mapping
from typing import Final

from vortex_worker._core.slots import Slot

EXECUTE: Final[int]
WRITE_FILE: Final[int]
READ_FILE: Final[int]
READ_DIR: Final[int]
REMOVE_DIR: Final[int]
REMOVE_FILE: Final[int]
MAKE_CHAR: Final[int]
MAKE_DIR: Final[int]
MAKE_REG: Final[int]
MAKE_SOCK: Final[int]
MAKE_FIFO: Final[int]
MAKE_BLOCK: Final[int]
MAKE_SYM: Final[int]
REFER: Final[int]
TRUNCATE: Final[int]
IOCTL_DEV: Final[int]

def isolate(
    keep: Iterable[int],
    *,
    limits: Mapping[str, int | None] | None = None,
    user: int | None = None,
    group: int | None = None,
) -> None: ...
def enter_view(shown: Iterable[bytes], links: Iterable[tuple[bytes, bytes]] = ()) -> None: ...
def thread_count() -> int: ...
def landlock_abi() -> int: ...
def landlock_rights(abi: int) -> int: ...
def landlock_restrict(rules: Iterable[tuple[bytes, int]], abi: int | None = None) -> int: ...
def install_filter(program: bytes, *, all_threads: bool, listener: bool = False) -> int | None: ...
def freeze_code(maps: int) -> None: ...
def canary(path: bytes, expected: tuple[int, ...] = ...) -> None: ...
def install_fault_handler(slot: Slot, regions: Iterable[tuple[int, int, int]] | None = None) -> None: ...
