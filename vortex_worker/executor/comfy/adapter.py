"""A class of a pack as an executor.

A pack's node is called with keyword arguments and returns a tuple; it may change what it is given, keep
values of any type under any name, and hand pictures to an editor beside its outputs.
"""

from __future__ import annotations

import errno
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.comfy import job, stand_in
from vortex_worker.executor.comfy.inputs import LINKED_TYPES, Inputs, inputs_of, type_name
from vortex_worker.executor.comfy.packs import MAPPINGS
from vortex_worker.executor.declaration import is_plain
from vortex_worker.executor.failure import as_job_error, place_of
from vortex_worker.executor.ports import Port
from vortex_worker.executor.validation import describe, is_tensor, one_line

#: Types that travel as data. A value of any other stays in the worker, whatever it is.
_DATA = ("*", "IMAGE", "MASK", "LATENT", "CONDITIONING", "INT", "FLOAT", "STRING", "BOOLEAN")
_MOST_SAID = 4000  # letters of a failed question's error, with the place where it was raised
_UI = "ui"


class Held:
    """A plain value or tensor under a type of the pack's own, such as a ``BBOX`` that is a list."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class PackNode(AbstractExecutor):
    """Base of all; ``executor_of`` makes one for each class of a pack."""

    mutates_inputs = True  # ComfyUI's nodes own what they are given

    node: ClassVar[type[Any]]
    taken: ClassVar[Inputs]
    returned: ClassVar[tuple[Port, ...]]  # without "ui"

    def __init__(self) -> None:
        with explained():
            self._node = self.node()

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        with job.running(self.context), explained():
            function = getattr(self._node, self.node.FUNCTION)
            result = function(**self._arguments(inputs, params))
            if inspect.iscoroutine(result):
                result = _driven(result)
        return self._outputs(result)

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        problems = [
            f"{name!r} is {describe(value)}: "
            + (f"it takes one of {', '.join(map(str, choices))}" if choices else "the list of what it takes is empty")
            for name, choices in self.taken.choices.items()
            for value in (params.get(name, ()) if self.input_is_list else [params.get(name)])
            if value is not None and value not in choices
        ]
        return problems or self._verdict(params)

    def precheck(self, params: dict[str, Any]) -> list[str]:
        return self._verdict(self._as_run(params))

    def _as_run(self, params: dict[str, Any]) -> dict[str, Any]:
        """A workflow's plain values as the node gets them when it runs."""
        return {name: [value] for name, value in params.items()} if self.input_is_list else params

    def _verdict(self, params: dict[str, Any]) -> list[str]:
        """What ``VALIDATE_INPUTS`` says is wrong. As in ComfyUI, only True is approval."""
        check = getattr(self.node, "VALIDATE_INPUTS", None)
        if check is None or (
            self._asks_types() and params.get(LINKED_TYPES) in (None, [None])
        ):  # run by itself: none are linked
            return []
        verdict = self._asked("VALIDATE_INPUTS", check, self._present(params))
        if verdict is True:
            return []
        if isinstance(verdict, str) and verdict:
            return [verdict]
        said = "said no" if verdict is False else f"returned {describe(verdict)}: it must return True, or what is wrong"
        return [f"VALIDATE_INPUTS of {self.op_type} {said}"]

    def changed(self, params: dict[str, Any]) -> Any:
        question = getattr(self.node, "IS_CHANGED", None)
        if question is None:
            return None
        linked = dict.fromkeys(self.taken.names())
        answer = self._asked("IS_CHANGED", question, self._as_run(linked | params))
        return answer if is_plain(answer) else repr(answer)

    def _asked(self, name: str, question: Callable[..., Any], given: dict[str, Any]) -> Any:
        """The answer of one of the class's own questions; raises a JobError that tells its name and the place."""
        try:
            with explained():
                return question(**_accepted(question, given))
        except BaseException as error:
            failed = as_job_error(error, f"{self.op_type}: {name}", place_of(error, question))
            failed.message = one_line(failed.message, _MOST_SAID)
            raise failed from None

    def needs(self, inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        if not hasattr(self.node, "check_lazy_status"):
            return []
        there = _unheld(inputs) | params
        there = dict.fromkeys(self._lazy()) | there
        with explained():
            wanted = self._node.check_lazy_status(**_accepted(self._node.check_lazy_status, there))
        return [name for name in wanted or () if isinstance(name, str)]

    def _arguments(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        given = dict.fromkeys(self._lazy()) | _unheld(inputs) | self._present(params)
        if self._asks_types():
            del given[LINKED_TYPES]  # VALIDATE_INPUTS's own
        return given

    def _asks_types(self) -> bool:
        return self.taken.hidden.get(LINKED_TYPES) == "INPUT_TYPES"

    def _present(self, params: dict[str, Any]) -> dict[str, Any]:
        """Params but the optional ones that nobody gave: the function has defaults of its own for them."""
        absent = [None] if self.input_is_list else None
        hidden = self.taken.hidden
        return {n: v for n, v in params.items() if v != absent or n in hidden or n not in self.taken.may_lack}

    def _lazy(self) -> list[str]:
        return [name for name, lazy in self.taken.names().items() if lazy]

    def _outputs(self, result: Any) -> dict[str, Any]:
        shown: Any = {}
        if isinstance(result, Mapping):
            if "expand" in result:
                raise TypeError("the node answers with a graph of its own (expand), which can't be run here")
            shown, result = result.get("ui", {}), result.get("result", ())
        if result is None:
            result = ()
        if not isinstance(result, list | tuple):
            raise TypeError(
                f"{self.node.FUNCTION} returned {describe(result)}: it must return a tuple, by RETURN_TYPES"
            )
        if len(result) < len(self.returned):
            raise TypeError(
                f"{self.node.FUNCTION} returned {len(result)} values: RETURN_TYPES has {len(self.returned)}"
            )
        outputs = {
            port.name: [_output(port.type, item) for item in value] if port.is_list else _output(port.type, value)
            for port, value in zip(self.returned, result, strict=False)
        }
        return outputs | ({_UI: shown if is_plain(shown) else repr(shown)} if self.output_node else {})


def executor_of(name: str, cls: type[Any]) -> type[PackNode]:
    """An executor called ``name`` that runs ``cls``.

    Raises:
        TypeError: ``cls`` is no node of ComfyUI's, in a sentence.
        Whatever its INPUT_TYPES raises.
    """
    if not inspect.isclass(cls):
        raise TypeError(f"{name}: {MAPPINGS} has a {type(cls).__name__} for it: it must be a class")
    if not hasattr(cls, "INPUT_TYPES") and hasattr(cls, "define_schema"):
        raise TypeError(
            f"{name} ({cls.__name__}) has a schema (ComfyUI's V3 nodes): only INPUT_TYPES is understood here"
        )
    for attribute in ("INPUT_TYPES", "RETURN_TYPES", "FUNCTION"):
        if not hasattr(cls, attribute):
            raise TypeError(f"{name} ({cls.__name__}) has no {attribute}")
    function = getattr(cls, "FUNCTION", "")
    if not isinstance(function, str) or not hasattr(cls, function):
        raise TypeError(f"{name}: FUNCTION is {function!r:.80}, and {cls.__name__} has no such method")
    with explained():
        taken = inputs_of(cls)
    returned = _returned(cls)
    output_node = bool(getattr(cls, "OUTPUT_NODE", False))
    return type(
        cls.__name__,
        (PackNode,),
        {
            "__doc__": str(getattr(cls, "DESCRIPTION", "") or inspect.getdoc(cls) or ""),
            "__module__": cls.__module__,
            "op_type": name,
            "node": cls,
            "taken": taken,
            "returned": returned,
            "input_ports": tuple(taken.ports),
            "output_ports": (*returned, Port(_UI, "*", "for an editor")) if output_node else returned,
            "params": tuple(taken.params),
            "hidden": taken.hidden,
            "category": str(getattr(cls, "CATEGORY", "")),
            "output_node": output_node,
            "input_is_list": bool(getattr(cls, "INPUT_IS_LIST", False)),
            **_questions(cls),
        },
    )


def _questions(cls: type[Any]) -> dict[str, Callable[..., Any]]:
    """The methods that the class has an answer for; a node that has no answer isn't asked."""
    asked = {"IS_CHANGED": "changed", "VALIDATE_INPUTS": "precheck", "check_lazy_status": "needs"}
    missing = {"changed", "precheck", "needs"} - {method for name, method in asked.items() if hasattr(cls, name)}
    return {method: getattr(AbstractExecutor, method) for method in missing}


def _returned(cls: type[Any]) -> tuple[Port, ...]:
    types = cls.RETURN_TYPES
    if not isinstance(types, list | tuple):
        raise TypeError(f"RETURN_TYPES is a {type(types).__name__}: it must be a tuple")
    names = [str(name) for name in getattr(cls, "RETURN_NAMES", None) or ()]
    lists = list(getattr(cls, "OUTPUT_IS_LIST", None) or ())
    ports: list[Port] = []
    for place, kind in enumerate(types):
        wanted = (names[place] if place < len(names) else "") or type_name(kind)
        given = "*" if "," in type_name(kind) else type_name(kind)  # one of several
        taken = {port.name for port in ports} | {_UI}
        name = wanted if wanted not in taken else f"{wanted}_{place + 1}"
        ports.append(Port(name, given, is_list=place < len(lists) and bool(lists[place])))
    return tuple(ports)


def _output(kind: str, value: Any) -> Any:
    """A value as the port's type has it: numbers of NumPy's and torch's as Python's."""
    plain = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}.get(kind)
    if plain is not None:
        return value if type(value) is plain or value is None else plain(value)
    if kind in _DATA:
        return value
    return (
        Held(value)
        if value is None or isinstance(value, bool | int | float | str | bytes) or is_tensor(value)
        else value
    )


def _unheld(inputs: Mapping[str, Any]) -> dict[str, Any]:
    def bare(value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(item, Held) for item in value):
            return [bare(item) for item in value]
        if not isinstance(value, Held):
            return value
        return value.value.clone() if is_tensor(value.value) else value.value  # a private copy, as of any input

    return {name: bare(value) for name, value in inputs.items()}


def _accepted(function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """What of ``given`` a function takes."""
    taken = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
        return given
    names = {parameter.name for parameter in taken}
    return {name: value for name, value in given.items() if name in names}


def _driven(coroutine: Any) -> Any:
    """The result of an async function that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError("the node waits for something (await), and a worker has no event loop: only one job runs here")


@contextmanager
def explained() -> Iterator[None]:
    """Let the pack find what it imports of ComfyUI, and say more where the sandbox stood in its way."""
    try:
        with stand_in.visible():
            yield
    except (PermissionError, FileNotFoundError) as error:
        if error.errno not in (errno.EACCES, errno.ENOENT) or not error.filename:
            raise  # the guard has said it all
        kind = PermissionError if error.errno == errno.EACCES else FileNotFoundError  # as it has a view, or none
        raise kind(
            f"{error}: a worker sees Python's own files, the folders of models and those of custom nodes. To let "
            "nodes read elsewhere, add the folder (Fabric(models=…), --models); to write, return outputs"
        ).with_traceback(error.__traceback__) from error.__cause__
    except ImportError as error:
        raise stand_in.explained(error) from error.__cause__


def executors_of(mappings: Any) -> Iterable[tuple[str, Any]]:
    """The names and classes of a module's :data:`MAPPINGS`.

    Raises:
        TypeError: it is malformed.
    """
    if not isinstance(mappings, Mapping) or not all(isinstance(name, str) for name in mappings):
        raise TypeError(f"{MAPPINGS} is a {type(mappings).__name__}: it must be a dict of classes by name")
    return list(mappings.items())
