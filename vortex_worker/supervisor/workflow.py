"""Runs a checked graph on a fabric: each node as soon as its inputs are there."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from vortex_worker.errors import JobError
from vortex_worker.supervisor.files import CLIENT_NODES, Place
from vortex_worker.supervisor.graph import Graph, Node

if TYPE_CHECKING:
    from vortex_worker.executor.ports import OpSpec
    from vortex_worker.supervisor.fabric import Fabric
    from vortex_worker.supervisor.job import Job


class Observer(Protocol):
    """Who watches a run: the command line's progress bars. Called from the fabric's thread, too."""

    def node_started(self, node: str, class_type: str) -> None: ...
    def node_progress(self, node: str, step: int, total: int) -> None: ...
    def node_done(self, node: str, ms: float) -> None: ...


@dataclass(slots=True)
class WorkflowResult:
    """What came of a workflow."""

    seconds: float = 0.0
    #: ``{"node", "files"}`` of each node that wrote files.
    outputs: list[dict[str, Any]] = field(default_factory=list)
    #: ``{"id", "class_type", "worker", "ms"}`` of each node that ran, in the order they ended.
    nodes: list[dict[str, Any]] = field(default_factory=list)
    #: ``{"id", "pid", "sandbox", …}`` of each worker.
    workers: list[dict[str, Any]] = field(default_factory=list)
    #: Outputs by port, of the nodes that no other node took from.
    values: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Every file written."""
        return [file for output in self.outputs for file in output["files"]]


def run(
    fabric: Fabric,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    output_dir: str | os.PathLike[str],
    settings: Mapping[str, Any],
    progress: Observer | None = None,
) -> WorkflowResult:
    """Check a workflow whole, then run it.

    Args:
        source: a file in ComfyUI's API format, or its parsed content.
        output_dir: where nodes such as ``SaveImage`` write. Made when needed.
        settings: values that override the workflow's: ``{"3.seed": 7}``.
        progress: is told of each node's start, steps and end.

    Raises:
        WorkflowError: the workflow is malformed; nothing was run.
        JobError: a node failed; ``details["node"]`` has its id. What ran beside it is cancelled.
    """
    started = time.perf_counter()
    graph = Graph.read(source)
    graph.set_values(settings)
    specs = {**fabric.nodes(), **{name: node.spec for name, node in CLIENT_NODES.items()}}
    graph.check(specs)
    place = Place(
        output_dir=os.fspath(output_dir),
        input_dir=os.path.dirname(os.path.abspath(source)) if not isinstance(source, Mapping) else os.getcwd(),
    )
    result = _Run(fabric, graph, specs, place, progress).run()
    result.seconds = time.perf_counter() - started
    result.workers = fabric.workers()
    return result


class _Run:
    """One run of one graph. Single-threaded: jobs report their end through a queue."""

    def __init__(
        self, fabric: Fabric, graph: Graph, specs: Mapping[str, OpSpec], place: Place, observer: Observer | None
    ) -> None:
        self._fabric = fabric
        self._graph = graph
        self._specs = specs
        self._place = place
        self._observer = observer
        self._result = WorkflowResult()
        consumers = graph.consumers()
        targets = [k for k, n in graph.nodes.items() if n.class_type in CLIENT_NODES and not consumers[k]]
        wanted = graph.needed_for(targets or [key for key in graph.nodes if not consumers[key]])
        self._left = set(wanted)
        self._consumers = {key: consumers[key] & self._left for key in wanted}
        self._sources = {key: graph.nodes[key].sources for key in wanted}
        self._values: dict[str, dict[str, Any]] = {}
        self._jobs: dict[str, Job] = {}
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()

    def run(self) -> WorkflowResult:
        waits = {key: len(sources) for key, sources in self._sources.items()}
        needed = {key: len(consumers) for key, consumers in self._consumers.items()}
        try:
            for key in [key for key, count in waits.items() if count == 0]:
                self._start(key)
            while self._left:
                key = self._ended.get()
                self._take(key)
                for consumer in self._consumers[key]:
                    waits[consumer] -= 1
                    if waits[consumer] == 0:
                        self._start(consumer)
                for source in self._sources[key]:
                    needed[source] -= 1
                    if needed[source] == 0:
                        del self._values[source]  # nobody needs it any more: its memory goes back
        except BaseException:
            for job in self._jobs.values():
                job.cancel()
            raise
        self._result.values = self._values
        return self._result

    def _start(self, key: str) -> None:
        node = self._graph.nodes[key]
        inputs, params = self._gather(node)
        if self._observer:
            self._observer.node_started(key, node.class_type)
        client = CLIENT_NODES.get(node.class_type)
        if client is not None:
            params = client.prepare(params, self._place)
            if client.finish is not None:
                begun = time.perf_counter()
                files = client.finish(inputs, params, self._place)
                self._result.outputs.append({"node": key, "files": files})
                self._done(node, "client", (time.perf_counter() - begun) * 1e3, {})
                self._ended.put(key)
                return
        job = self._jobs[key] = self._fabric.submit(node.class_type, inputs, params)
        if self._observer:
            observer = self._observer
            job.on_progress(lambda job: observer.node_progress(key, job.progress.step, job.progress.total))
        job.add_done_callback(lambda job: self._ended.put(key))

    def _gather(self, node: Node) -> tuple[dict[str, Any], dict[str, Any]]:
        spec = self._specs[node.class_type]
        ports = {port.name for port in spec.inputs}
        inputs: dict[str, Any] = {}
        params: dict[str, Any] = {}
        for name, value in node.values.items():
            (inputs if name in ports else params)[name] = value
        for name, (source, slot) in node.links.items():
            given = self._specs[self._graph.nodes[source].class_type].outputs[slot].name
            (inputs if name in ports else params)[name] = self._values[source][given]
        return inputs, params

    def _take(self, key: str) -> None:
        job = self._jobs.pop(key, None)
        self._left.remove(key)
        if job is None:
            return
        node = self._graph.nodes[key]
        try:
            outputs = job.result()
        except JobError as error:
            error.details.setdefault("node", key)
            error.details.setdefault("class_type", node.class_type)
            raise
        self._done(node, job.worker, job.timings.execute / 1e6, outputs)

    def _done(self, node: Node, worker: str, ms: float, outputs: dict[str, Any]) -> None:
        self._values[node.id] = outputs
        self._result.nodes.append({"id": node.id, "class_type": node.class_type, "worker": worker, "ms": round(ms, 3)})
        if self._observer:
            self._observer.node_done(node.id, ms)
