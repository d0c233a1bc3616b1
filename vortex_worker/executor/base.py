"""What a node is: one class, with the ports it joins by and an ``execute``.

Fifteen lines make a node::

    from vortex_worker.executor import AbstractExecutor, Param, Port

    class Brighten(AbstractExecutor):
        op_type = "Brighten"
        input_ports = (Port("image", "IMAGE"),)
        output_ports = (Port("image", "IMAGE"),)
        params = (Param("amount", "FLOAT", default=0.1, minimum=-1.0, maximum=1.0),)

        def execute(self, inputs, params):
            return {"image": (inputs["image"] + params["amount"]).clamp(0, 1)}

Module level imports of a node's file run when the worker starts; import heavy libraries inside
the methods that need them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vortex_worker.executor.ports import Param, Port

if TYPE_CHECKING:
    from vortex_worker.executor.context import JobContext


class AbstractExecutor(ABC):
    """Base of every node. A worker makes one instance of each and runs one job at a time."""

    #: The name that workflows and ``Fabric.run`` call it by. Unique in a worker.
    op_type: ClassVar[str]
    #: What it takes from other nodes. A bare string is short for ``Port(name, "*")``.
    input_ports: ClassVar[Sequence[Port | str]] = ()
    #: What it gives, in the order of a workflow's output slots.
    output_ports: ClassVar[Sequence[Port | str]] = ()
    #: Its settings, with their types, defaults and ranges.
    params: ClassVar[Sequence[Param]] = ()
    #: Inputs are mapped read-only. True: the node writes to them, and gets private copies.
    mutates_inputs: ClassVar[bool] = False
    #: Where a menu of nodes would have it: ``"image/filters"``.
    category: ClassVar[str] = ""
    #: True: a workflow runs for the sake of it. Without any such node, it runs those that nothing is linked to.
    output_node: ClassVar[bool] = False
    #: True: every input and param comes as a list. Otherwise a workflow runs the node once for each item of a list.
    input_is_list: ClassVar[bool] = False
    #: Params that a workflow fills itself, and with what: ``{"node": "UNIQUE_ID"}``; see ``ports.HIDDEN``.
    hidden: ClassVar[Mapping[str, str]] = {}

    #: The job being run: progress, cancellation, output memory, device. Set before each ``execute``.
    context: JobContext

    @abstractmethod
    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """Run the node.

        Args:
            inputs: value by input port. Tensors are views of shared memory, read-only unless
                ``mutates_inputs``; optional ports that were not given are absent.
            params: value by parameter, defaults filled in, types and ranges already checked.

        Returns:
            Value by output port: every port must be there.

        Raises:
            Any exception becomes the job's ``WK-006`` with its traceback; a ``JobError`` keeps its code.
        """

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        """Problems that the ports and params can't express; each names its port. None by default.

        Called before ``execute``, after types, ranges and missing values were checked.
        """
        return []

    def changed(self, params: dict[str, Any]) -> Any:
        """Plain data that differs from last time's when the same inputs would now give something else.

        A file's date, say. Workflows keep a node's outputs, and run it again when this, or what it is
        given, differs. NaN: always. None by default: never.

        Args:
            params: those that the workflow gives plainly; linked ones are None.
        """
        return None

    def needs(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        """The lazy inputs and params that ``execute`` will want, of those that aren't there yet.

        Asked again when they are, until it names no more.

        Args:
            inputs, params: what there is; lazy ones that were not computed are None.
        """
        return [name for given in (inputs, params) for name, value in given.items() if value is None]

    def precheck(self, params: dict[str, Any]) -> Sequence[str | Mapping[str, str]]:
        """Problems that can be told before anything of a workflow runs. None by default.

        Args:
            params: those that the workflow gives plainly.

        Returns:
            sentences; or dicts of a ``text``, the ``input`` it is about and a ``type`` of ``ports.PRECHECK_TYPES``.
        """
        return []

    def cleanup(self) -> None:  # noqa: B027 - optional, so not abstract
        """Called once when the worker shuts down in good order. Nothing by default."""
