"""What a node takes and gives: ports for values that flow between nodes, params for settings.

Both are plain data, read by validation, by ``vortex-worker nodes`` and by workflows. Type names
are ComfyUI's where it has one: ``TENSOR`` is ours, for a bare tensor; ``"*"`` takes anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

#: The default of a Param that has none: the caller must give a value.
REQUIRED: Final = type("Required", (), {"__repr__": lambda self: "REQUIRED"})()

BUILTIN: Final = "builtin"  # the source of nodes that come with the package

#: What a runner of workflows tells a node that wants to know: its id, the workflow, what goes into pictures, and the
#: types of what its inputs are linked to, by input.
HIDDEN: Final = ("UNIQUE_ID", "PROMPT", "EXTRA_PNGINFO", "INPUT_TYPES")

#: Whether it would give something else now; which lazy inputs it needs; what is wrong before anything runs.
QUESTIONS: Final = ("CHANGED", "NEEDS", "PRECHECK")

#: ComfyUI's names of what ``precheck`` may say is wrong.
PRECHECK_TYPES: Final = ("custom_validation_failed", "value_not_in_list")

PARAM_TYPES: Final = ("INT", "FLOAT", "STRING", "BOOLEAN", "CHOICE", "BYTES", "LIST", "ANY")


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a node.

    Args:
        name: what the value is called in ``inputs`` and in the returned dict.
        type: ``TENSOR``; ``IMAGE`` (float tensor ``[B, H, W, C]``, 0 to 1); ``LATENT`` (dict with
            ``samples``, a tensor ``[B, C, H, W]``); ``MASK``; ``CONDITIONING`` (list of
            ``[tensor, dict]``); ``MODEL`` and any other name: a resident object of that type;
            ``INT``, ``FLOAT``, ``STRING``, ``BOOLEAN``; ``"*"``: anything.
        optional: inputs only: the node runs without it.
        aliases: other names under which workflows may give it.
        lazy: inputs only: a workflow computes it when the node says that it needs it.
        is_list: outputs only: a list of values of this type; what it is linked to runs once for each.
        loose: inputs only: of a resident type, but plain data and tensors are as welcome. Not told to others.
    """

    name: str
    type: str = "*"
    doc: str = ""
    optional: bool = False
    aliases: tuple[str, ...] = ()
    lazy: bool = False
    is_list: bool = False
    loose: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Param:
    """One setting of a node.

    Args:
        type: one of ``PARAM_TYPES``. ``INT`` is a 64-bit integer, signed or unsigned, exact.
        default: used when the caller gives none; ``REQUIRED`` if there must be a value.
        minimum, maximum: inclusive bounds of an ``INT`` or ``FLOAT``.
        choices: what a ``CHOICE`` may be.
        lazy: as a port's, where it is linked.
    """

    name: str
    type: str = "ANY"
    default: Any = REQUIRED
    minimum: int | float | None = None
    maximum: int | float | None = None
    choices: tuple[str, ...] = field(default=())
    doc: str = ""
    lazy: bool = False

    def __post_init__(self) -> None:
        if self.type not in PARAM_TYPES:
            raise ValueError(f"param {self.name!r}: type {self.type!r} is none of {', '.join(PARAM_TYPES)}")
        if (self.type == "CHOICE") != bool(self.choices):
            raise ValueError(f"param {self.name!r}: choices go with type CHOICE, and only with it")


def as_ports(ports: Sequence[Port | str]) -> tuple[Port, ...]:
    """Ports, where a bare string is short for a port of that name that takes anything."""
    return tuple(Port(port) if isinstance(port, str) else port for port in ports)


@dataclass(frozen=True, slots=True)
class OpSpec:
    """What a node declares, without the node: enough to validate, to list and to document it."""

    name: str
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    params: tuple[Param, ...] = ()
    mutates_inputs: bool = False
    source: str = ""
    doc: str = ""
    category: str = ""
    #: A workflow runs for the sake of it, also where nothing is linked to it.
    output_node: bool = False
    #: Takes each input and param as a list. Any other node is run once for each item of a list.
    input_is_list: bool = False
    #: Params that the workflow's runner fills, and with what: one of ``HIDDEN``.
    hidden: Mapping[str, str] = field(default_factory=dict, hash=False)
    #: What it may be asked beside being run: of ``QUESTIONS``.
    answers: frozenset[str] = frozenset()
    #: Input ports by each of their names, and params by name.
    known_ports: dict[str, Port] = field(init=False, repr=False, compare=False)
    known_params: dict[str, Param] = field(init=False, repr=False, compare=False)
    #: Output ports by name.
    known_outputs: dict[str, Port] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ports = {name: port for port in self.inputs for name in (port.name, *port.aliases)}
        object.__setattr__(self, "known_ports", ports)
        object.__setattr__(self, "known_params", {param.name: param for param in self.params})
        object.__setattr__(self, "known_outputs", {port.name: port for port in self.outputs})

    @property
    def lazy(self) -> frozenset[str]:
        """Inputs and params that are computed only when the node needs them."""
        ports = {port.name for port in self.inputs if port.lazy}
        return frozenset(ports | {param.name for param in self.params if param.lazy})
