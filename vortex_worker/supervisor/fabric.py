"""``Fabric``: the public face of the embedded supervisor."""

from __future__ import annotations

import atexit
import contextlib
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vortex_worker.defaults import HEARTBEAT_MS, MAX_FRAME
from vortex_worker.supervisor.thread import FabricThread

if TYPE_CHECKING:
    import torch

    from vortex_worker.executor.ports import OpSpec
    from vortex_worker.supervisor.job import Job
    from vortex_worker.supervisor.link import WorkerLink
    from vortex_worker.supervisor.workflow import Observer, WorkflowResult

_GIB = 1 << 30
_SPARE_LEASES = 64  # beyond one a worker: for those that results of dead workers keep. Only addresses, until used
_open_fabrics: weakref.WeakSet[Fabric] = weakref.WeakSet()


class Fabric:
    """Sandboxed workers that run nodes, and the memory they share with this process.

    ::

        with Fabric(workers=2, custom_nodes="examples/digits") as fabric:
            out = fabric.run("Identity", inputs={"tensor": tensor})

    Use it from any number of threads, and from asyncio (``arun``).

    Args:
        workers: how many processes run jobs.
        standby: how many more are kept ready, to take the place of one that dies.
        custom_nodes: folders of nodes to load, after lockdown.
        models: folders that nodes may read.
        modules: installed modules to import before lockdown, for custom nodes that need compiled ones: ``cv2``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
        policy: the system-call policy jobs run under: ``execute``, ``strict``, ``cuda`` or a TOML file; ``cuda`` by
            default on such a device, else ``execute``.
        wxorx: no memory becomes executable after lockdown; convolutions and bf16 on the CPU are slower then.
        landlock_abi: refuse to start workers where the kernel's Landlock is older than this (1 to 7).
        threads: threads of one operation in each worker; the CPUs divided among the workers by default.
        lease_size: bytes of shared memory for the live outputs of one worker. Pages are taken when touched;
            with an NVIDIA card, all at once.
        client_size: bytes of shared memory for tensors that come from this process.
        memory_limit: bytes of private memory of each worker; 0 for no limit.
        memory_growth: bytes that a worker may grow by over its jobs until another takes its place; 0: any.
        keep_results: bytes of tensors of earlier runs that ``run_workflow`` keeps, so that unchanged nodes need not
            run again; at most a quarter of ``lease_size``. 0: none.
        queue: jobs that may wait before ``submit`` does.
        grace: seconds that a cancelled or overdue job has to stop by itself.
        heartbeat_timeout: seconds without a sign of life after which a worker is killed: it was stopped.
        stall_timeout: seconds in which a running node must report progress, or its worker is killed; 0: any.
        start_timeout: seconds that a worker has to become ready.
        preload: jobs as ``(op_type, params)`` that each worker runs before it is ready, such as the loading of a
            model. Running the same job later costs nothing then, and what it made can be used in every worker. Tensors
            among it are one memory for all who ask: don't write to them.
        zygote: fork workers from a process that has imported torch, in milliseconds; False: start each
            from scratch, in seconds.
        allow_unsandboxed: also run where the kernel lacks a layer of the sandbox. Unsafe.
        learn: let denied system calls through, and note them for :meth:`write_learned`. Unsafe.

    Raises:
        ConfigError: an argument is bad; the message names it.
    """

    def __init__(
        self,
        workers: int = 1,
        *,
        standby: int = 1,
        custom_nodes: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
        models: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
        modules: Iterable[str] = (),
        device: str = "auto",
        policy: str | None = None,
        wxorx: bool = False,
        landlock_abi: int = 0,
        threads: int | None = None,
        lease_size: int = _GIB,
        client_size: int = 2 * _GIB,
        memory_limit: int = 0,
        memory_growth: int = 0,
        keep_results: int = 256 << 20,
        queue: int = 1024,
        grace: float = 2.0,
        heartbeat_timeout: float = 5.0,
        stall_timeout: float = 0.0,
        start_timeout: float = 60.0,
        preload: Iterable[tuple[str, Mapping[str, Any]]] = (),
        log_level: str = "warning",
        max_frame: int = MAX_FRAME,
        heartbeat_ms: int = HEARTBEAT_MS,
        zygote: bool = True,
        allow_unsandboxed: bool = False,
        learn: bool = False,
    ) -> None:
        given = locals()
        # The zygote first, before anything is looked at: while it imports torch, we import what follows.
        thread = FabricThread(zygote=zygote, diffusion=bool(models))
        try:
            from dataclasses import replace

            from vortex_worker.config import WorkerConfig
            from vortex_worker.sandbox.learning import Lessons
            from vortex_worker.sandbox.seccomp import load_policy
            from vortex_worker.supervisor import arguments
            from vortex_worker.supervisor.crew import Crew
            from vortex_worker.supervisor.intake import Intake
            from vortex_worker.supervisor.memory import Memory
            from vortex_worker.supervisor.once import Once
            from vortex_worker.supervisor.preload import works
            from vortex_worker.supervisor.process import reserve_descriptors
            from vortex_worker.supervisor.results import Results
            from vortex_worker.supervisor.vigil import Limits

            arguments.check_fabric(given)
            cpus = len(os.sched_getaffinity(0))
            node_folders, model_folders = arguments.folder_list(custom_nodes), arguments.folder_list(models)
            config = WorkerConfig(
                socket="",
                seccomp_policy=arguments.policy_at(policy),
                custom_nodes=arguments.folders_at("custom_nodes", node_folders),
                models=arguments.folders_at("models", model_folders),
                spellings=arguments.spellings_of((*node_folders, *model_folders)),
                modules=arguments.module_names(modules),
                device=device,
                max_frame=max_frame,
                heartbeat_ms=heartbeat_ms,
                threads=max(1, cpus // workers) if threads is None else threads,
                memory_limit=memory_limit,
                log_level=log_level,
                wxorx=wxorx,
                landlock_abi=landlock_abi,
                name_denials=True,
                allow_unsandboxed=allow_unsandboxed,
            ).settled()
            reserve_descriptors(workers + standby)
            preloads = works(preload)
            self._standby = standby
            self._max_frame = max_frame
            self._lessons = Lessons(load_policy(config.seccomp_policy)) if learn else None
            self._once = Once()
            self._results = Results(min(keep_results, lease_size // 4))
            self._memory = Memory(client_size, lease_size, workers + standby + _SPARE_LEASES)
            config = replace(config, shm_data=self._memory.arena.data_offset)
            arguments.check_passable(config)
            self._crew = Crew(
                config, workers, standby, self._memory, thread,
                zygote=zygote, queue=queue, grace=grace, start_timeout=start_timeout,
                limits=Limits(heartbeat_timeout, stall_timeout, memory_growth), preload=preloads,
                lessons=self._lessons,
            )  # fmt: skip
            self._intake = Intake(self._crew, self._memory)
            self._crew.open()
            _open_fabrics.add(self)
        except BaseException:
            if thread.serves:  # Ctrl-C, which may come at any moment
                thread.serve(self._crew.loop)
                self.close()
            else:
                thread.abandon()
                self.__dict__.pop("_crew", None)  # there is nothing to close any more
                if hasattr(self, "_memory"):
                    self._memory.close()
            raise

    # ---------------------------------------------------------------- jobs

    def submit(
        self,
        op_type: str,
        inputs: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        *,
        deadline: float | None = None,
        retries: int = 1,
        priority: int = 0,
        block: bool = True,
        timeout: float | None = None,
    ) -> Job:
        """Queue one node's run and return at once.

        Args:
            inputs, params: value by port and by parameter. Tensors are copied into shared memory
                unless they lie there already: outputs of other jobs, ``fabric.empty``, ``fabric.tensor``.
            deadline: seconds from now after which it fails with ``DeadlineExceeded``.
            retries: how often it is run again when its worker dies.
            priority: a waiting job of a higher one goes first.
            block, timeout: wait for a place when the queue is full, or raise ``QueueFull``.

        Raises:
            FabricClosed, LaunchError: no worker will ever run it.
            QueueFull: the queue stayed full.
            OutOfArena: no room for the inputs.
            TypeError, ValueError: a value that can't be sent.
        """
        return self._intake.submit(
            op_type, inputs, params, deadline=deadline, retries=retries, priority=priority, block=block, timeout=timeout
        )

    def submit_many(
        self,
        calls: Iterable[Sequence[Any]],
        *,
        deadline: float | None = None,
        retries: int = 1,
        priority: int = 0,
        block: bool = True,
        timeout: float | None = None,
    ) -> list[Job]:
        """Queue many runs at once: ``[("Scale", {"tensor": t}, {"factor": 2.0}), …]``. Costs less than one by one.

        Args:
            calls: op type, inputs and params of each; what is missing is empty.
            deadline, retries, priority: of each, as ``submit`` has them.
            block, timeout: wait for places in the queue, or raise ``QueueFull``.

        Returns:
            the jobs, in order.

        Raises:
            QueueFull: the queue stayed full. Those that it had taken are cancelled.
            FabricClosed, LaunchError, OutOfArena, TypeError, ValueError: as ``submit``; none is queued. Of a bad call,
                the message begins with its number, from 0.
        """
        return self._intake.submit_many(
            calls, deadline=deadline, retries=retries, priority=priority, block=block, timeout=timeout
        )

    def ask(
        self,
        op_type: str,
        question: str,
        inputs: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Job:
        """Ask a node one of ``executor.ports.QUESTIONS`` that are among its ``answers``: ``result()["answer"]``.

        As ``submit`` otherwise.
        """
        return self._intake.submit(op_type, inputs, params, question=question, **options)

    def run(
        self,
        op_type: str,
        inputs: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Run one node and wait: its outputs by port. Tensors are zero-copy views. As ``submit`` otherwise."""
        job = self._intake.submit(op_type, inputs, params, attended=True, **options)
        try:
            return job.result()
        except BaseException:  # Ctrl-C as much as an error: nobody waits for it any more
            job.cancel()
            raise

    def observe(self, observer: Callable[[Job], None]) -> None:
        """Call ``observer(job)`` for each job from now on, in the thread that submits it, before it is queued.

        One that can't be queued ends at once, with that error. What an observer raises, ``submit`` raises.
        ``vortex_worker.observe`` has observers for Prometheus and OpenTelemetry.
        """
        self._intake.observers = (*self._intake.observers, observer)

    async def arun(
        self,
        op_type: str,
        inputs: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """``run`` for asyncio. Cancelling the task cancels the job."""
        import asyncio

        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def settle() -> None:
            if not done.done():
                done.set_result(None)

        job = self.submit(op_type, inputs, params, **options)

        def ended(job: Job) -> None:
            with contextlib.suppress(RuntimeError):  # the caller's loop may have ended before the job
                loop.call_soon_threadsafe(settle)

        job.add_done_callback(ended)
        try:
            await done
        except asyncio.CancelledError:
            job.cancel()
            raise
        return job.result()

    def run_workflow(
        self,
        workflow: str | os.PathLike[str] | Mapping[str, Any],
        *,
        output_dir: str | os.PathLike[str] = "out",
        settings: Mapping[str, Any] | None = None,
        outputs: Iterable[str] | None = None,
        progress: Observer | None = None,
        deadline: float | None = None,
    ) -> WorkflowResult:
        """Check a workflow in ComfyUI's API format whole, then run what its outputs need.

        Args:
            workflow: a JSON file, a PNG with a workflow inside, or a parsed one. ``LoadImage`` and others look for
                their files below the file's folder, of a parsed one below the current folder.
            output_dir: the folder that ``SaveImage`` and others write below. Made when needed.
            settings: values that override the workflow's, by ``NODE.INPUT``: ``{"3.seed": 7}``.
            outputs: ids of the nodes to run, with what they need. By default the output nodes, or, where there are
                none, the nodes that nothing is linked to.
            progress: its methods ``node_started``, ``node_progress`` and ``node_done`` are told of the run.
            deadline: seconds from now for the whole of it.

        Raises:
            WorkflowError: it can't run as it is; nothing was run. JobError: a node failed. DeadlineExceeded: the
                time was up. TypeError, ValueError: an argument is none.
        """
        from vortex_worker.supervisor import arguments
        from vortex_worker.supervisor.workflow import run

        return run(
            self, workflow, output_dir=arguments.output_folder(output_dir), settings=arguments.settings_of(settings),
            outputs=arguments.node_ids(outputs), progress=arguments.observer_of(progress), deadline=deadline,
        )  # fmt: skip

    # -------------------------------------------------------------- tensors

    def empty(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        """An uninitialised tensor in shared memory: fill it, and give it to jobs without a copy."""
        self._crew.check_open()
        tensor: torch.Tensor = self._intake.client.empty(self._memory.arena, shape, dtype, self._memory.allocate)
        return tensor

    def tensor(self, value: Any) -> torch.Tensor:
        """A copy of ``value`` (tensor, array or list) in shared memory."""
        self._crew.check_open()
        tensor: torch.Tensor = self._intake.client.copy(self._memory.arena, value, self._memory.allocate)
        return tensor

    # -------------------------------------------------------------- workers

    def wait_ready(self, timeout: float | None = None) -> Self:
        """Wait until every worker takes jobs, and every standby could.

        Raises:
            LaunchError: workers can't be started; what they wrote is in the message.
            TimeoutError: not within ``timeout`` seconds.
        """
        links = self._crew.wait(self._crew.all_ready, timeout)
        for link in links:
            self._once.warn_of_failures(link)
        return self

    def nodes(self, timeout: float | None = None) -> dict[str, OpSpec]:
        """The nodes that the workers have, by op type. Waits for the first worker to be ready."""
        from vortex_worker.ipc.capabilities import unpack_ops

        return unpack_ops(self._ready_link(timeout).capabilities)

    def plugin_errors(self, timeout: float | None = None) -> list[tuple[str, str, str]]:
        """``(plugin, message, traceback)`` of each that did not load."""
        from vortex_worker.supervisor.once import failures_of

        return failures_of(self._ready_link(timeout))

    def reload(self, timeout: float | None = None) -> None:
        """Replace every worker by one that loads the custom nodes anew. Jobs go on: each ends where it runs.

        Raises:
            TimeoutError: not within ``timeout`` seconds. It goes on.
        """
        self._results.clear()  # of nodes that may do something else now
        self._once.clear()
        self._crew.reload(timeout)

    def scale(self, workers: int) -> None:
        """Have ``workers`` processes run jobs from now on. A standby takes its place at once, others are forked;
        who is too many goes when its job has ended. ``wait_ready`` waits for it.

        Raises:
            ConfigError: it is no number from 1 to the most that this fabric has memory for, or takes more open
                files than this process may have.
        """
        from vortex_worker.supervisor.arguments import check_range
        from vortex_worker.supervisor.process import reserve_descriptors

        most = min(256, self._memory.leases) - self._standby
        room = f": shared memory has room for {most + self._standby} workers, {self._standby} of them standing by"
        check_range("workers", workers, 1, most, room)
        self._crew.check_open()
        reserve_descriptors(workers)
        self._crew.scale(workers)

    def _ready_link(self, timeout: float | None) -> WorkerLink:
        links = self._crew.wait(lambda links: any(link.ready for link in links), timeout)
        link = next(link for link in links if link.ready)
        self._once.warn_of_failures(link)
        return link

    def workers(self) -> list[dict[str, Any]]:
        """What each worker is and does, as plain data.

        Returns:
            of each: ``id``, ``pid``, ``slot``; ``stage`` (launched, joined, locked, preloading, ready or gone);
            ``job``, the number of the one it runs, or None, and ``jobs_done``; ``heartbeat_age_s``; ``memory_bytes`` of
            its own; and its ``sandbox`` as the kernel confirms it: ``policy``, ``layers``, ``landlock_abi``,
            ``filter_sha256``, ``enforced``, ``learning``, ``kernel``.
        """
        return [link.describe() for link in self._crew.ranks()[0]]

    def standbys(self) -> list[dict[str, Any]]:
        """The workers that wait to take a place, as ``workers``."""
        return [link.describe() for link in self._crew.ranks()[1]]

    def write_learned(self, path: str | os.PathLike[str]) -> list[dict[str, object]]:
        """Write what the policy lacked as a policy file that extends it; no file if it lacked nothing.

        Returns:
            the missing lines: ``{"call", "conditions", "by", "registers"}``.

        Raises:
            ConfigError: this fabric does not learn.
            OSError: the file can't be written.
        """
        if self._lessons is None:
            from vortex_worker.errors import ConfigError

            raise ConfigError("learn is False: this fabric learns nothing")
        if self._lessons:
            with open(path, "w", encoding="utf-8") as file:
                file.write(self._lessons.toml(beside=os.path.dirname(os.path.abspath(path))))
        return self._lessons.lines()

    # ------------------------------------------------------------------ end

    def drain(self, timeout: float | None = None) -> None:
        """Take no more jobs, and wait until those that were submitted have ended. Then ``close``.

        Raises:
            TimeoutError: not within ``timeout`` seconds. They go on.
        """
        self._crew.jobs.drain(timeout)

    def close(self) -> None:
        """End all jobs and workers. Tensors that you still hold stay valid. Idempotent.

        In a process that was forked from the one that opened it, it does nothing.
        """
        if self._crew.forked_off:
            return
        self._crew.close()
        self._results.clear()
        self._memory.close()
        _open_fabrics.discard(self)

    def __del__(self) -> None:
        """Somebody let go of it without closing it: its jobs may end, and then it does, too."""
        crew = getattr(self, "_crew", None)
        if crew is None or crew.over or crew.forked_off:
            return
        warnings.warn("a Fabric was not closed: use it in a with statement, or call close()", ResourceWarning, 2, self)
        crew.close_later(self._memory.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _forked() -> None:
    for fabric in list(_open_fabrics):
        fabric._crew.leave_to_parent()


os.register_at_fork(after_in_child=_forked)


@atexit.register
def _close_open_fabrics() -> None:
    for fabric in list(_open_fabrics):
        fabric.close()
