"""``Fabric.run_workflow``: reads a workflow, checks it whole, and runs what its outputs need."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from vortex_worker.errors import WorkflowError
from vortex_worker.supervisor import images, latents
from vortex_worker.supervisor.check import drop_unknown, problems_of
from vortex_worker.supervisor.deadline import Deadline
from vortex_worker.supervisor.files import ClientNode, Place
from vortex_worker.supervisor.graph import Graph
from vortex_worker.supervisor.literals import literal_problems
from vortex_worker.supervisor.precheck import prepare
from vortex_worker.supervisor.sending import repetition_problems, sending_problems
from vortex_worker.supervisor.sizes import picture_problems

if TYPE_CHECKING:
    from vortex_worker.supervisor.fabric import Fabric

CLIENT_NODES: dict[str, ClientNode] = {**images.NODES, **latents.NODES}


class Observer(Protocol):
    """Who watches a run: the command line's progress bars. Called from the fabric's thread, too."""

    def node_started(self, node: str, class_type: str) -> None: ...
    def node_progress(self, node: str, step: int, total: int) -> None: ...
    def node_done(self, node: str, ms: float) -> None: ...


@dataclass(slots=True)
class WorkflowResult:
    """What came of a workflow."""

    seconds: float = 0.0
    #: ``{"node", "files"}`` of each node that wrote files, ``{"node", "ui"}`` of a pack's output nodes.
    outputs: list[dict[str, Any]] = field(default_factory=list)
    #: ``{"id", "class_type", "worker", "ms"}`` of each node that ran, in the order they ended.
    nodes: list[dict[str, Any]] = field(default_factory=list)
    #: Ids of the nodes that did not run, for nothing had changed since an earlier run of this fabric.
    cached: list[str] = field(default_factory=list)
    #: ``{"id", "pid", "sandbox", …}`` of each worker.
    workers: list[dict[str, Any]] = field(default_factory=list)
    #: What was passed over, a sentence each: inputs that their nodes don't have, and questions that nodes failed to
    #: answer. Logged, too, once in a fabric.
    warnings: list[str] = field(default_factory=list)
    #: Outputs by port, of the nodes the run was for. A list of values is a ``lists.Items``.
    values: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Every file written, now or by the earlier run whose result still holds."""
        return [file for output in self.outputs for file in output.get("files", ())]


def run(
    fabric: Fabric,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    output_dir: str | os.PathLike[str],
    settings: Mapping[str, Any],
    outputs: Iterable[str] | None = None,
    progress: Observer | None = None,
    deadline: float | None = None,
) -> WorkflowResult:
    """Check a workflow whole, then run it. Nodes that an earlier run of this fabric has run already, on the
    same inputs, aren't run again.

    Args:
        source: a file in ComfyUI's API format, a PNG with one inside, or its parsed content.
        output_dir: where nodes such as ``SaveImage`` write. Made when needed.
        settings: values that override the workflow's: ``{"3.seed": 7}``.
        outputs: ids of the nodes to run, with what they need; only these are checked. By default the output
            nodes, or, where there are none, the nodes that nothing is linked to.
        progress: is told of each node's start, steps and end.
        deadline: seconds from now for the whole of it, the wait for a first worker included.

    Raises:
        WorkflowError: the workflow is malformed, or names files or models that aren't there, or a folder that
            can't be written to; nothing was run.
        JobError: a node failed; ``details["node"]`` has its id. What ran beside it is cancelled.
        DeadlineExceeded: it was not done in time. What ran then is cancelled.
    """
    from vortex_worker.supervisor.execution import Execution

    started, until = time.perf_counter(), Deadline(deadline)
    graph = Graph.read(source)
    graph.set_values(settings)
    if endless := repetition_problems(graph):
        raise WorkflowError(endless)
    try:
        known = fabric.nodes(until.left())
        failed = list(dict.fromkeys(plugin for plugin, _, _ in fabric.plugin_errors(until.left())))
    except TimeoutError:
        raise until.exceeded("no worker was ready") from None
    specs = {**known, **{name: node.spec for name, node in CLIENT_NODES.items()}}
    prompt = graph.as_prompt()  # as it was written: checking it renames aliases
    warnings = drop_unknown(graph, specs, settings)
    for warning in warnings:
        fabric._once.warn(warning)
    targets = graph.target_nodes(specs, outputs)
    needed = graph.needed_for(targets)
    place = Place(
        output_dir=os.fspath(output_dir),
        input_dir=os.path.dirname(os.path.abspath(source)) if not isinstance(source, Mapping) else os.getcwd(),
        prompt=prompt,
        extra=graph.extra,
    )
    problems = problems_of(graph, specs, None if outputs is None else set(needed), failed)

    def sound(keys: list[str]) -> list[str]:
        bad = {problem.node for problem in problems}
        return [key for key in keys if key not in bad]

    workers = [key for key in sound(needed) if graph.nodes[key].class_type not in CLIENT_NODES]
    problems += literal_problems(graph, specs, workers, fabric._memory.lease_size)
    problems += sending_problems(graph, specs, sound(workers), place, fabric._max_frame)
    problems += picture_problems(graph, specs, sound(needed))
    params, more = prepare(fabric, graph, specs, CLIENT_NODES, place, sound(needed), until)
    if problems or more:
        raise WorkflowError([*problems, *more])
    result = Execution(fabric, graph, specs, targets, params, place, CLIENT_NODES, progress, until).run()
    result.warnings = [*warnings, *result.warnings]
    result.seconds = time.perf_counter() - started
    result.workers = fabric.workers()
    return result
