"""Joins the wire to the nodes: a JobSubmit in, a JobResult out, whatever happens in between."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vortex_worker.bridge.lease import LeaseTensors
from vortex_worker.errors import CUDAError, ExecutionError, JobError, OutOfArena
from vortex_worker.executor.context import JobContext
from vortex_worker.executor.objects import ObjectTable
from vortex_worker.executor.runner import ask, give_back, run
from vortex_worker.executor.validation import is_tensor
from vortex_worker.ipc import protocol
from vortex_worker.ipc.handler import Finished

if TYPE_CHECKING:
    from vortex_worker._core.arena import Arena
    from vortex_worker._core.handle import TensorHandle
    from vortex_worker._core.lease import LeaseAllocator
    from vortex_worker.device import Device
    from vortex_worker.executor.ports import OpSpec, Port
    from vortex_worker.executor.registry import Registry
    from vortex_worker.ipc.handler import Handles, JobControl
    from vortex_worker.logging import Logger

#: Types that travel as data; an output of any other port type stays here as an object.
_DATA_TYPES = {"*", "TENSOR", "IMAGE", "LATENT", "MASK", "CONDITIONING", "INT", "FLOAT", "STRING", "BOOLEAN"}

_MOST_PREVIEWS = 2  # at a time: the one that is looked at, and the next


class _Rehearsal:
    """Controls a job that nobody waits for."""

    job_id = 1
    deadline = 0

    def report(self, step: int, total: int, message: str, preview: Any = None) -> None:
        pass

    def cancelled(self) -> bool:
        return False


class Engine:
    """Runs the jobs of one worker."""

    def __init__(
        self, device: Device, arena: Arena, allocator: LeaseAllocator, registry: Registry, log: Logger
    ) -> None:
        self._device = device.torch_device
        self._registry = registry
        self._log = log
        self._tensors = LeaseTensors(arena, allocator)
        self._objects = ObjectTable()
        self._in_use: list[int] = []
        self._handed: Handles = []  # by the job that runs
        self._shown: set[int] = set()  # offsets of previews that the supervisor may still hold

    def run(self, submit: protocol.JobSubmit, control: JobControl | _Rehearsal) -> Finished:
        """Run one job."""
        begun = mapped = time.perf_counter_ns()
        self._handed = []
        try:
            if submit.malformed is not None:
                raise submit.malformed
            executor, spec = self._registry.get(submit.op_type)
            self._tensors.begin()
            self._in_use.clear()
            inputs = protocol.resolve(submit.inputs, self._tensors.load, self._object)
            params = protocol.resolve(submit.params, self._tensors.load, self._object)
            mapped = time.perf_counter_ns()
            if isinstance(submit, protocol.Question):
                answer = protocol.pack(ask(executor, submit.question, inputs, params), self._save_value)
                return Finished({"answer": answer}, self._handed, None, (0, mapped - begun, 0, 0))
            context = JobContext(
                submit.job_id,
                control.deadline,
                device=self._device,
                report=control.report,
                cancelled=control.cancelled,
                allocate=self._tensors.empty,
            )
            done = run(
                executor, spec, inputs, params, context,
                save=lambda outputs: self._save(spec, outputs), free_memory=self._drop_idle,
            )  # fmt: skip
        except JobError as error:
            error.__traceback__ = error.__context__ = error.__cause__ = None  # frames, with all that the node had
            if self._log.enabled("debug"):
                self._log.debug("job.failed", code=error.code, message=error.message)
            sticky = isinstance(error, CUDAError) and error.details.get("sticky") == "true"
            return Finished({}, [], error, (0, mapped - begun, 0, 0), sticky)
        except Exception as error:  # ours: a bug, but one job's, and not a reason to take the worker down
            self._log.error("worker.bug", error=repr(error))
            bug = ExecutionError(f"internal error while running {submit.op_type}: {type(error).__name__}: {error}")
            return Finished({}, [], bug, (0, mapped - begun, 0, 0))
        return Finished(done.saved, self._handed, None, (0, mapped - begun, done.execute_ns, done.save_ns))

    def rehearse(self) -> None:
        """Run a job of our own and forget it: the first real one then finds code and memory warm."""
        given = self._tensors.save(self._tensors.empty((1024,)).fill_(1.0))
        wire = protocol.Encoder()
        submit = protocol.read(wire.submit(1, "Scale", {"tensor": given}, {"factor": 2.0}, 0, self._save_value))
        assert isinstance(submit, protocol.JobSubmit)
        done = self.run(submit, _Rehearsal())
        if done.error is not None:
            self._log.warning("worker.rehearsal", code=done.error.code, message=done.error.message)
        protocol.read(wire.result(1, done.outputs, done.timings))
        self.forget(done.handles)
        self._tensors.release(given.offset)
        self._tensors.begin()

    def _object(self, number: int, type: str) -> Any:
        self._in_use.append(number)
        return self._objects.get(number, type)

    def _drop_idle(self) -> None:
        self._objects.drop_idle(self._in_use)

    def _save(self, spec: OpSpec, outputs: dict[str, Any]) -> dict[str, bytes]:
        """Outputs as wire values. What was saved of a run that fails half-way is given back."""
        saved: dict[str, bytes] = {}
        try:
            for port in spec.outputs:
                value = outputs[port.name]
                if port.type not in _DATA_TYPES:
                    value = self._keep(value, port)
                try:
                    saved[port.name] = protocol.pack(value, self._save_value)
                except (TypeError, ValueError) as error:
                    raise ExecutionError(f"{spec.name}: output {port.name!r} can't be sent: {error}") from None
        except BaseException:
            self.forget(self._handed)
            self._handed = []
            raise
        return saved

    def _keep(self, output: Any, port: Port) -> Any:
        """References to an output that stays here, or to each of a list of them."""
        kept = [
            protocol.ObjectHandle(self._objects.put(item, port.type), port.type)
            for item in (output if port.is_list else [output])
        ]
        self._handed += kept
        return kept if port.is_list else kept[0]

    def _save_value(self, value: Any) -> TensorHandle | protocol.ObjectHandle:
        if is_tensor(value) or hasattr(value, "__array__"):  # NumPy's scalars and arrays, too
            handle = self._tensors.save(value)
            self._handed.append(handle)
            return handle
        kind = self._objects.type_of(value)
        if kind is not None:  # it stays where it is: nodes of any type, switches say, pass models on
            ref = protocol.ObjectHandle(self._objects.put(value, kind), kind)
            self._handed.append(ref)
            return ref
        raise TypeError(
            f"a {type(value).__name__} is no plain data: give its port a type of its own, "
            "and it stays in the worker as an object"
        )

    def preview(self, value: Any) -> TensorHandle | None:
        """Hand over a tensor, or what a function makes, while its job runs.

        None: the lease has no room for it, or so many are held already that the job's outputs might find none.

        Raises:
            TypeError: it is no tensor.
        """
        if len(self._shown) >= _MOST_PREVIEWS:
            return None
        value = value() if callable(value) else value
        if not is_tensor(value):
            raise TypeError(f"a preview is a tensor, or a function that makes one, not a {type(value).__name__}")
        try:
            handle = self._tensors.save(value)
        except OutOfArena:
            return None
        if self._tensors.is_exported(handle.offset):  # else it is a view of an input
            self._shown.add(handle.offset)
        return handle

    def release(self, offsets: list[int], objects: list[int]) -> None:
        """Forget handles and objects that the supervisor no longer needs."""
        for offset in offsets:
            self._tensors.release(offset)
        if self._shown:
            self._shown.difference_update(offsets)
        if objects:
            self._objects.release(objects)

    def forget(self, handles: Handles) -> None:
        """Forget what a result would have handed over: it could not be sent."""
        for handle in handles:
            if isinstance(handle, protocol.ObjectHandle):
                self._objects.release([handle.id])
            else:
                self._tensors.release(handle.offset)

    def rest(self) -> None:
        """No job has come for a while."""
        give_back()

    def close(self) -> None:
        """Let the nodes tidy up."""
        self._registry.cleanup()
