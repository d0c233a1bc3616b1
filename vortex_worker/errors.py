"""Every error that vortex-worker raises or reports, by code.

::

    Exception
    └── VortexError
        ├── ConfigError            a setting is missing or bad (no job involved)
        ├── WorkflowError          a workflow is malformed: every problem, by node id
        ├── FabricClosed           the fabric was closed, or is closing
        ├── QueueFull              the bounded queue is full and the caller would not wait
        ├── LaunchError            a worker could not be started, or refused to start
        │   └── SettingRefused     for a setting (a ConfigError, too)
        └── JobError               a job did not give its result
            ├── OOMSoft            WK-001  memory is short, after unloading and one retry
            ├── InvalidHandle      WK-002  offset, size, dtype, shape or alignment is bad
            ├── ExecutorNotFound   WK-003  no node of that name
            ├── ValidationError    WK-004  inputs or params: all problems, by port
            ├── CUDAError          WK-005  a device operation failed
            ├── ExecutionError     WK-006  the node raised
            ├── Cancelled          WK-007  by the caller
            ├── DeadlineExceeded   WK-008  the job's time was up
            ├── WorkerLost         WK-009  the process died: signal or exit status
            ├── SandboxViolation   WK-010  the kernel killed it for a denied system call
            ├── OutOfArena         WK-011  a lease or the arena is full
            ├── ObjectLost         WK-012  a resident object is gone
            └── ProtocolError      WK-013  malformed traffic

Imports nothing of the package, so that every part of it can import this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

_MOST_SHOWN = 100  # problems of a workflow in a message
_LONGEST_ID = 100  # letters of a node's id there


class VortexError(Exception):
    """Base of every error of this package."""


class ConfigError(VortexError):
    """A setting is missing or bad. The message names it, what it held and what it takes."""


def shown_id(node: str) -> str:
    """A node's id as a message may have it: a stranger's workflow may call a node a page of text, and forge lines."""
    shown = node[:_LONGEST_ID]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return shown if len(node) <= _LONGEST_ID else shown + "…"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a workflow.

    ``type`` is ComfyUI's name of the kind: ``required_input_missing``, ``value_not_in_list``, …
    """

    node: str  # its id; "" for the file as a whole
    text: str
    type: str = "invalid_prompt"
    input: str = ""
    received: Any = None
    class_type: str = ""


class WorkflowError(VortexError):
    """A workflow can't run as written.

    ``problems`` is a list of ``(node id, message)``, the id ``""`` for the file as a whole; ``found`` has
    the same with more detail, and ``node_errors`` is ComfyUI's form of it. The message shows the first hundred.
    """

    def __init__(self, problems: Iterable[Problem | tuple[str, str]]) -> None:
        self.found = [given if isinstance(given, Problem) else Problem(*given) for given in problems]
        lines = [f"node {shown_id(p.node)}: {p.text}" if p.node else p.text for p in self.found[:_MOST_SHOWN]]
        if len(self.found) > _MOST_SHOWN:
            lines.append(f"and {len(self.found) - _MOST_SHOWN} more problems")
        super().__init__("\n".join(lines))

    @property
    def problems(self) -> list[tuple[str, str]]:
        return [(problem.node, problem.text) for problem in self.found]

    @property
    def node_errors(self) -> dict[str, Any]:
        """Lists by node, as ComfyUI's ``/prompt`` answers them: ``{"3": {"errors": […], "class_type": …}}``."""
        nodes: dict[str, Any] = {}
        for problem in self.found:
            if problem.node:
                about = nodes.setdefault(problem.node, {"errors": [], "class_type": problem.class_type})
                extra = {"input_name": problem.input, "received_value": problem.received} if problem.input else {}
                about["errors"].append(
                    {"type": problem.type, "message": problem.text, "details": problem.input, "extra_info": extra}
                )
        return nodes


class FabricClosed(VortexError):
    """The fabric was closed before, or while, this was asked of it."""


class QueueFull(VortexError):
    """The fabric's bounded queue is full, and the caller asked not to wait for a place."""


class LaunchError(VortexError):
    """A worker could not be started, or refused to start."""


class SettingRefused(LaunchError, ConfigError):
    """Workers refuse a setting that they alone could judge, such as a device that is not here."""


class JobError(VortexError):
    """A job ended without its result. ``code`` is the ``WK-…`` code that travels on the wire.

    ``details`` holds strings a program may read (``signal``, ``port``, ``traceback``, …);
    ``retryable`` says whether running the same job again could help.
    """

    code: ClassVar[str] = "WK-006"
    default_retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        details: Mapping[str, str] | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = dict(details or {})
        self.retryable = self.default_retryable if retryable is None else retryable

    def __str__(self) -> str:
        return f"{self.code} {type(self).__name__}: {self.message}"


class OOMSoft(JobError):
    """WK-001. The allocator is full, after unloading idle models and one retry."""

    code = "WK-001"
    default_retryable = True


class InvalidHandle(JobError):
    """WK-002. A tensor handle's offset, size, dtype, shape or alignment is bad."""

    code = "WK-002"


class ExecutorNotFound(JobError):
    """WK-003. No node of that op_type; the message offers the nearest names."""

    code = "WK-003"


class ValidationError(JobError):
    """WK-004. Bad or missing inputs or params; ``problems`` lists every one, by port."""

    code = "WK-004"

    def __init__(
        self,
        message: str,
        details: Mapping[str, str] | None = None,
        retryable: bool | None = None,
        *,
        problems: list[str] | None = None,
    ) -> None:
        super().__init__(message, details, retryable)
        self.problems = list(problems) if problems is not None else message.split("\n")


class CUDAError(JobError):
    """WK-005. A device operation failed; ``details["sticky"]`` tells whether the worker retires."""

    code = "WK-005"


class ExecutionError(JobError):
    """WK-006. The node raised: ``details`` has its type and its own traceback."""

    code = "WK-006"


class Cancelled(JobError):
    """WK-007. Cancelled by the caller."""

    code = "WK-007"


class DeadlineExceeded(JobError):
    """WK-008. The job's deadline passed."""

    code = "WK-008"


class WorkerLost(JobError):
    """WK-009. The worker died under the job: ``details`` has the signal or the exit status."""

    code = "WK-009"
    default_retryable = True


class SandboxViolation(JobError):
    """WK-010. The kernel killed the worker for a system call that its policy denies."""

    code = "WK-010"


class OutOfArena(JobError):
    """WK-011. A lease, or the arena, has no room for the tensor."""

    code = "WK-011"


class ObjectLost(JobError):
    """WK-012. An object that lived in a worker is gone and can't be made again."""

    code = "WK-012"
    default_retryable = True


class ProtocolError(JobError):
    """WK-013. Malformed traffic: framing, encoding, or a message that makes no sense here."""

    code = "WK-013"


JOB_ERRORS: dict[str, type[JobError]] = {
    cls.code: cls
    for cls in (
        OOMSoft,
        InvalidHandle,
        ExecutorNotFound,
        ValidationError,
        CUDAError,
        ExecutionError,
        Cancelled,
        DeadlineExceeded,
        WorkerLost,
        SandboxViolation,
        OutOfArena,
        ObjectLost,
        ProtocolError,
    )
}
