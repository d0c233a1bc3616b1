"""What a worker can do, as the handshake says it: node specifications ⇄ messages.

The only part of ``ipc`` that knows the executors' declarations; those are plain data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from vortex_worker.errors import ProtocolError
from vortex_worker.executor.ports import BUILTIN, HIDDEN, PARAM_TYPES, QUESTIONS, REQUIRED, OpSpec, Param, Port
from vortex_worker.ipc import control_pb2 as pb
from vortex_worker.ipc import protocol

_MAX_OPS = 10_000
_MAX_NAME = 200  # characters


_builtin: dict[str, bytes] = {}  # by name: each is said twice, by every worker that a zygote forks


def pack_ops(specs: Iterable[OpSpec]) -> bytes:
    """Specifications for the wire: the bytes of a Capabilities that has these ``op_types`` and nothing else."""
    return b"".join(map(_packed, specs))


def _packed(spec: OpSpec) -> bytes:
    packed = _builtin.get(spec.name) if spec.source == BUILTIN else None
    if packed is None:
        packed = pb.Capabilities(op_types=[_pack_op(spec)]).SerializeToString()
        if spec.source == BUILTIN:
            _builtin[spec.name] = packed
    return packed


def _pack_op(spec: OpSpec) -> pb.OpType:
    op = pb.OpType(
        name=spec.name, mutates_inputs=spec.mutates_inputs, source=spec.source, doc=spec.doc,
        inputs=[_pack_port(port) for port in spec.inputs],
        outputs=[_pack_port(port) for port in spec.outputs],
        category=spec.category, output_node=spec.output_node, input_is_list=spec.input_is_list, hidden=spec.hidden,
        answers=sorted(spec.answers),
    )  # fmt: skip
    for param in spec.params:
        into = op.params.add(name=param.name, type=param.type, choices=param.choices, doc=param.doc, lazy=param.lazy)
        if param.default is not REQUIRED:
            into.default.ParseFromString(protocol.pack(param.default, _refuse))
        if param.minimum is not None:
            into.minimum.ParseFromString(protocol.pack(param.minimum, _refuse))
        if param.maximum is not None:
            into.maximum.ParseFromString(protocol.pack(param.maximum, _refuse))
    return op


def _pack_port(port: Port) -> pb.Port:
    return pb.Port(
        name=port.name, type=port.type, optional=port.optional, doc=port.doc, aliases=port.aliases,
        lazy=port.lazy, is_list=port.is_list,
    )  # fmt: skip


def unpack_ops(message: pb.Capabilities) -> dict[str, OpSpec]:
    """Specifications by op type, as a worker tells them. They come from untrusted code.

    Raises:
        ProtocolError: one makes no sense.
    """
    if len(message.op_types) > _MAX_OPS:
        raise ProtocolError(f"a worker announces {len(message.op_types)} op types: at most {_MAX_OPS}")
    return {protocol.printable(op.name, _MAX_NAME): _unpack_op(op) for op in message.op_types}


def _unpack_op(op: pb.OpType) -> OpSpec:
    return OpSpec(
        name=_name(op.name),
        inputs=tuple(_unpack_port(port) for port in op.inputs),
        outputs=tuple(_unpack_port(port) for port in op.outputs),
        params=tuple(_unpack_param(op.name, param) for param in op.params),
        mutates_inputs=op.mutates_inputs,
        source=_name(op.source),
        doc=protocol.printable(op.doc),
        category=_name(op.category),
        output_node=op.output_node,
        input_is_list=op.input_is_list,
        hidden={_name(param): kind for param, kind in op.hidden.items() if kind in HIDDEN},
        answers=frozenset(name for name in QUESTIONS if pb.Question.Value(name) in op.answers),
    )


def _name(text: str) -> str:
    return protocol.printable(text, _MAX_NAME)


def _unpack_port(port: pb.Port) -> Port:
    aliases = tuple(_name(alias) for alias in port.aliases)
    return Port(
        _name(port.name), _name(port.type), protocol.printable(port.doc), port.optional, aliases,
        lazy=port.lazy, is_list=port.is_list,
    )  # fmt: skip


def _unpack_param(op: str, message: pb.Param) -> Param:
    def value(field: str) -> Any:
        return protocol.unpack(getattr(message, field), _refuse_handle, _refuse_object)

    if message.type not in PARAM_TYPES or (message.type == "CHOICE") != bool(message.choices):
        raise ProtocolError(f"{op!r:.80}: parameter {message.name!r:.80} has type {message.type!r:.40}")
    return Param(
        _name(message.name),
        message.type,
        default=value("default") if message.HasField("default") else REQUIRED,
        minimum=value("minimum") if message.HasField("minimum") else None,
        maximum=value("maximum") if message.HasField("maximum") else None,
        choices=tuple(_name(choice) for choice in message.choices),
        doc=protocol.printable(message.doc),
        lazy=message.lazy,
    )


def _refuse(value: Any) -> NoReturn:
    raise TypeError(f"a parameter's default or bound is plain data, not {type(value).__name__}")


def _refuse_handle(handle: Any) -> Any:
    raise ProtocolError("a parameter's default or bound can't be a tensor")


def _refuse_object(object_id: int, type: str) -> Any:
    raise ProtocolError("a parameter's default or bound can't be an object")
