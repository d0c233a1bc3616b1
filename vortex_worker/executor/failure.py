"""What a node's exception becomes: a job's error with its code, a message, and the node's own traceback.

A node may raise anything, exceptions that can't be shown among them; nothing here raises.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from types import CodeType, TracebackType

from vortex_worker import device
from vortex_worker.errors import JOB_ERRORS, CUDAError, ExecutionError, JobError

_MESSAGE_LIMIT = 2_000  # characters
_TRACEBACK_HEAD, _TRACEBACK_TAIL = 4_000, 8_000  # characters: where it came in, and where it is
_HERE = os.path.dirname(__file__)
#: Frames above a node's: of no use to its author.
_OURS = (
    *(os.path.join(_HERE, file) for file in ("runner.py", "registry.py", "folder.py", "comfy/adapter.py")),
    contextlib.__file__,  # of what the adapter does around a node
    "<frozen importlib",
)


def as_job_error(error: BaseException, where: str, place: str = "") -> JobError:
    """The job's error for what ``where`` raised: a JobError as it is, a device's failure, or WK-006.

    Args:
        place: ``FILE:LINE``, told at the end.
    """
    cause = unwrap(error)
    if isinstance(cause, JobError) and _is_sound(cause):
        return cause
    text = message_of(cause)
    if device.is_device_error(cause):
        sticky = "true" if device.is_sticky(cause) else "false"
        return CUDAError(f"{where}: {text}", {"sticky": sticky, "traceback": traceback_of(error)})
    kind = type(cause).__name__
    details = {"type": kind, "traceback": traceback_of(error)}
    told = f"{where} raised {kind}" + (f": {text}" if text else "") + (f" ({place})" if place else "")
    return ExecutionError(told, details)


def place_of(error: BaseException, function: object) -> str:
    """``FILE:LINE`` where it was raised, in the file that ``function`` is from; of the function itself, if it was never
    entered; "" if it has no file.
    """
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if not isinstance(code, CodeType):
        return ""
    found = f"{code.co_filename}:{code.co_firstlineno}"
    frame = unwrap(error).__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == code.co_filename:
            found = f"{code.co_filename}:{frame.tb_lineno}"
        frame = frame.tb_next
    return found


def unwrap(error: BaseException) -> BaseException:
    """The exception itself where it comes alone in an exception group, as a TaskGroup raises one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def message_of(error: BaseException) -> str:
    """What an exception says, of bounded length."""
    text = device.message_of(error)
    return text if len(text) <= _MESSAGE_LIMIT else text[:_MESSAGE_LIMIT] + "…"


def traceback_of(error: BaseException) -> str:
    """The traceback from the node's first frame on, of bounded length."""
    frame: TracebackType | None = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(_OURS):
        frame = frame.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, frame))
    except BaseException:  # __str__, __cause__ or __notes__ of a node's making
        text = "".join(traceback.format_tb(frame)) + f"{type(error).__name__}\n"
    if len(text) <= _TRACEBACK_HEAD + _TRACEBACK_TAIL:
        return text
    return f"{text[:_TRACEBACK_HEAD]}\n  […]\n{text[-_TRACEBACK_TAIL:]}"


def _is_sound(error: JobError) -> bool:
    """Whether it can go on the wire as it is: a node may subclass JobError, and do so badly."""
    try:
        return (
            error.code in JOB_ERRORS
            and isinstance(error.message, str)
            and isinstance(error.retryable, bool)
            and all(isinstance(text, str) for pair in error.details.items() for text in pair)
        )
    except Exception:
        return False
