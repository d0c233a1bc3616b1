"""A clear error for packs of ComfyUI's that do what a worker can't: network, programs, writing.

Packs import ``os``, ``subprocess`` and ``requests`` at their top, whether they use them or not, so the import hook
would keep most of them from loading. They may import what they like; here, what they *do* is told from
Python's own audit events, before the kernel would end the worker for it or answer a bare
"Permission denied". As the import hook this is a courtesy, not a boundary: calls that raise no audit event
(from machine code, say) meet the kernel's filter and Landlock all the same.

Only code that a pack is on the stack of is looked at; torch and the rest go on as they did.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

__all__ = ["install"]

_NETWORK = (
    "reach the network",
    "workers have none, and no setting of a worker opens it: fetch the data before the workflow runs, and put it in a "
    "folder of models (Fabric(models=…), --models) or pass it in as an input",
)
_PROGRAM = (
    "start a program",
    "workers start none, and no setting of a worker allows it: run it before the workflow, or install what it would "
    "install (pip) beside vortex-worker",
)
_WRITE = (
    "write files",
    "no setting of a worker allows it: return what it makes as an output, and let SaveImage, SaveLatent or your "
    "program write it",
)

#: Audit event of Python's → what a pack wants to do, and what its user can do instead.
DENIED: dict[str, tuple[str, str]] = {
    "socket.__new__": _NETWORK,
    "socket.connect": _NETWORK,
    "socket.getaddrinfo": _NETWORK,
    "socket.gethostbyname": _NETWORK,
    "urllib.Request": _NETWORK,
    "http.client.connect": _NETWORK,
    "subprocess.Popen": _PROGRAM,
    "os.system": _PROGRAM,
    "os.exec": _PROGRAM,
    "os.fork": _PROGRAM,
    "os.forkpty": _PROGRAM,
    "os.posix_spawn": _PROGRAM,
    "os.spawn": _PROGRAM,
    "pty.spawn": _PROGRAM,
    "os.mkdir": _WRITE,
    "os.remove": _WRITE,
    "os.rename": _WRITE,
    "os.rmdir": _WRITE,
    "os.link": _WRITE,
    "os.symlink": _WRITE,
    "os.truncate": _WRITE,
    "os.chmod": _WRITE,
    "os.utime": _WRITE,
    "tempfile.mkstemp": _WRITE,
    "tempfile.mkdtemp": _WRITE,
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_EVENT_OF_OPEN = "open"


def install(roots: Iterable[str]) -> None:
    """Guard the code below ``roots``, for the rest of the process: an audit hook can't be taken away."""
    below = tuple(
        dict.fromkeys(
            path if os.path.isfile(path) else path.rstrip(os.sep) + os.sep
            for root in roots
            for path in (os.path.abspath(root), os.path.realpath(root))
        )
    )
    if below:
        sys.addaudithook(_hook(below))


def _hook(below: tuple[str, ...]) -> Callable[[str, tuple[Any, ...]], None]:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == _EVENT_OF_OPEN:
            if not (isinstance(arguments[2], int) and arguments[2] & _WRITING) or arguments[0] == os.devnull:
                return
            wish = _WRITE
        elif event in DENIED:
            wish = DENIED[event]
        else:
            return
        frame = _frame_of_pack(below)
        if frame is not None:
            what, instead = wish
            about = f" ({arguments[0]!r:.100})" if arguments and isinstance(arguments[0], str | bytes) else ""
            where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            raise PermissionError(f"custom node {where} can't {what}{about}: {instead}")

    return hook


def _frame_of_pack(below: tuple[str, ...]) -> FrameType | None:
    """The innermost frame of a pack's code; None: there is none on the stack of this thread."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and not frame.f_code.co_filename.startswith(below):
        frame = frame.f_back
    return frame
