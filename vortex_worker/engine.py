"""Joins the wire to the nodes: a JobSubmit in, a JobResult out, whatever happens in between."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vortex_worker.bridge.lease import LeaseTensors
from vortex_worker.errors import CUDAError, ExecutionError, JobError, OutOfArena
from vortex_worker.executor.context import JobContext
from vortex_worker.executor.objects import ObjectTable
from vortex_worker.executor.runner import run
from vortex_worker.executor.validation import is_tensor
from vortex_worker.ipc import control_pb2 as pb
from vortex_worker.ipc import protocol

if TYPE_CHECKING:
    from vortex_worker._core.arena import Arena
    from vortex_worker._core.lease import LeaseAllocator
    from vortex_worker.device import Device
    from vortex_worker.executor.ports import OpSpec
    from vortex_worker.executor.registry import Registry
    from vortex_worker.ipc.handler import JobControl
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
        self._shown: set[int] = set()  # offsets of previews that the supervisor may still hold

    def run(self, op_type: str, submit: pb.JobSubmit, control: JobControl | _Rehearsal) -> tuple[pb.JobResult, bool]:
        """Run one job. Returns its result, and whether the worker must retire after it."""
        result = pb.JobResult(job_id=submit.job_id)
        begun = time.perf_counter_ns()
        try:
            executor, spec = self._registry.get(op_type)
            self._tensors.begin()
            self._in_use.clear()
            inputs = {port: self._unpack(value) for port, value in submit.inputs.items()}
            params = {name: self._unpack(value) for name, value in submit.params.items()}
            result.timings.map = time.perf_counter_ns() - begun
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
                save=lambda outputs: self._save(spec, outputs),
                free_memory=lambda: self._objects.drop_idle(self._in_use),
            )  # fmt: skip
        except JobError as error:
            if self._log.enabled("debug"):
                self._log.debug("job.failed", code=error.code, message=error.message)
            result.error.CopyFrom(protocol.pack_error(error))
            return result, isinstance(error, CUDAError) and error.details.get("sticky") == "true"
        except Exception as error:  # ours: a bug, but one job's, and not a reason to take the worker down
            self._log.error("worker.bug", error=repr(error))
            bug = ExecutionError(f"internal error while running {op_type}: {type(error).__name__}: {error}")
            result.error.CopyFrom(protocol.pack_error(bug))
            return result, False
        for port, value in done.saved.items():
            result.outputs[port].CopyFrom(value)
        result.timings.execute = done.execute_ns
        result.timings.save = done.save_ns
        return result, False

    def rehearse(self) -> None:
        """Run a job of our own and forget it: the first real one then finds code and memory warm."""
        submit = pb.JobSubmit(job_id=1, op_type="Scale")
        given = self._tensors.save(self._tensors.empty((1024,)).fill_(1.0))
        protocol.pack_handle(given, submit.inputs["tensor"].tensor)
        submit.params["factor"].float64 = 2.0
        result, _ = self.run("Scale", pb.JobSubmit.FromString(submit.SerializeToString()), _Rehearsal())
        if result.HasField("error"):
            self._log.warning("worker.rehearsal", code=result.error.code, message=result.error.message)
        self.forget(pb.JobResult.FromString(result.SerializeToString()))
        self._tensors.release(given.offset)
        self._tensors.begin()

    def _unpack(self, value: pb.Value) -> Any:
        return protocol.unpack(value, self._tensors.load, self._object)

    def _object(self, number: int, type: str) -> Any:
        self._in_use.append(number)
        return self._objects.get(number, type)

    def _save(self, spec: OpSpec, outputs: dict[str, Any]) -> dict[str, pb.Value]:
        """Outputs as wire values. What was saved of a run that fails half-way is given back."""
        saved: dict[str, pb.Value] = {}
        try:
            for port in spec.outputs:
                value = saved[port.name] = pb.Value()
                if port.type not in _DATA_TYPES:
                    value.object.id = self._objects.put(outputs[port.name], port.type)
                    value.object.type = port.type
                    continue
                try:
                    protocol.pack(outputs[port.name], value, self._save_value)
                except (TypeError, ValueError) as error:
                    raise ExecutionError(f"{spec.name}: output {port.name!r} can't be sent: {error}") from None
        except BaseException:
            for value in saved.values():
                self._forget(value)
            raise
        return saved

    def _save_value(self, value: Any, into: pb.Value) -> None:
        if is_tensor(value) or hasattr(value, "__array__"):  # NumPy's scalars and arrays, too
            protocol.pack_handle(self._tensors.save(value), into.tensor)
        else:
            raise TypeError(
                f"a {type(value).__name__} is no plain data: give its port a type of its own, "
                "and it stays in the worker as an object"
            )

    def preview(self, value: Any, into: pb.TensorHandle) -> bool:
        """Hand over a tensor, or what a function makes, while its job runs.

        False: the lease has no room for it, or so many are held already that the job's outputs might find none.

        Raises:
            TypeError: it is no tensor.
        """
        if len(self._shown) >= _MOST_PREVIEWS:
            return False
        value = value() if callable(value) else value
        if not is_tensor(value):
            raise TypeError(f"a preview is a tensor, or a function that makes one, not a {type(value).__name__}")
        try:
            handle = self._tensors.save(value)
        except OutOfArena:
            return False
        protocol.pack_handle(handle, into)
        if self._tensors.is_exported(handle.offset):  # else it is a view of an input
            self._shown.add(handle.offset)
        return True

    def release(self, offsets: list[int], objects: list[int]) -> None:
        """Forget handles and objects that the supervisor no longer needs."""
        for offset in offsets:
            self._tensors.release(offset)
        self._shown.difference_update(offsets)
        self._objects.release(objects)

    def forget(self, result: pb.JobResult) -> None:
        """Forget what ``result`` hands over: it could not be sent."""
        for value in result.outputs.values():
            self._forget(value)

    def _forget(self, value: pb.Value) -> None:
        kind = value.WhichOneof("kind")
        if kind == "tensor":
            self._tensors.release(value.tensor.offset)
        elif kind == "object":
            self._objects.release([value.object.id])
        elif kind == "list":
            for item in value.list.items:
                self._forget(item)
        elif kind == "map":
            for item in value.map.items.values():
                self._forget(item)

    def close(self) -> None:
        """Let the nodes tidy up."""
        self._registry.cleanup()
