"""One run of a checked graph: what its targets need, each node as soon as its inputs are there.

From the targets backwards: a node whose signature an earlier run knows gives what it gave, and what lies before
it isn't looked at. Lazy inputs are computed when the node says that it needs them. Nodes that don't wait for
one another run at once, on as many workers as there are.
"""

from __future__ import annotations

import os
import queue
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vortex_worker.errors import DeadlineExceeded, JobError, OOMSoft, OutOfArena, ValidationError, shown_id
from vortex_worker.executor.validation import check_outputs, linked_problems, one_line
from vortex_worker.supervisor.hidden import hidden_of
from vortex_worker.supervisor.lists import gathered, is_spread, spread
from vortex_worker.supervisor.literals import sizes_of
from vortex_worker.supervisor.precheck import Params, ask, is_told_late, with_defaults
from vortex_worker.supervisor.signature import signatures
from vortex_worker.supervisor.workflow import WorkflowResult

if TYPE_CHECKING:
    from vortex_worker.executor.ports import OpSpec
    from vortex_worker.supervisor.deadline import Deadline
    from vortex_worker.supervisor.fabric import Fabric
    from vortex_worker.supervisor.files import ClientNode, Place
    from vortex_worker.supervisor.graph import Graph, Node
    from vortex_worker.supervisor.job import Job
    from vortex_worker.supervisor.workflow import Observer

_FILES_AT_ONCE = 16  # the same where each holds a file of up to 15 MiB
_AT_ONCE = 512  # jobs of one node that wait or run: enough for 256 workers, and few to take back when one fails
_MOST_SAID = 4000  # letters of a failed question's error, with the place where it was raised
_UI = "ui"  # the output of a pack's node that is for an editor
_ALWAYS = float("nan")  # what a node says that changes each time: equal to nothing


class _Runs:
    """The jobs of one node: one, or one for each item of a list; or the questions it is asked first."""

    def __init__(
        self, given: Sequence[dict[str, Any]], *, spread: bool, asking: bool = False, at_once: int = _AT_ONCE
    ) -> None:
        self.given = given
        self.at_once = at_once
        self.spread = spread
        self.asking = asking
        self.jobs: list[Job | None] = [None] * len(given)
        self.retried = False
        self.begun = 0  # how many were submitted; the others wait, for one may fail
        self.left = len(given)


class _Files(Sequence[dict[str, Any]]):
    """What a client node's runs are given where other nodes name the files: each is read when its run begins."""

    def __init__(
        self, node: Node, spec: OpSpec, client: ClientNode, place: Place, each: Sequence[dict[str, Any]]
    ) -> None:
        self._node, self._client, self._place, self._each = node, client, place, each
        self._defaults = with_defaults(node, spec)

    def __len__(self) -> int:
        return len(self._each)

    def __getitem__(self, turn: int) -> dict[str, Any]:  # type: ignore[override]  # nobody takes slices
        try:
            return self._client.prepare(self._defaults | self._each[turn], self._place)
        except ValidationError as error:
            error.details |= {"node": self._node.id, "class_type": self._node.class_type}
            raise

    def name(self, turn: int) -> str:
        """Of the file."""
        return str((self._defaults | self._each[turn]).get(self._client.names, ""))


class Execution:
    """One run. Single-threaded: jobs report their end through a queue."""

    def __init__(
        self,
        fabric: Fabric,
        graph: Graph,
        specs: Mapping[str, OpSpec],
        targets: list[str],
        params: Params,
        place: Place,
        clients: Mapping[str, ClientNode],
        observer: Observer | None,
        until: Deadline,
    ) -> None:
        self._fabric = fabric
        self._graph = graph
        self._specs = specs
        self._targets = targets
        self._open = set(targets)  # that are not done
        self._place = place
        self._clients = clients
        self._observer = observer
        self._until = until
        self._results = fabric._results
        self._result = WorkflowResult()
        self._possible = graph.needed_for(targets)  # what may have to run; lazy inputs may spare some
        self._order = {key: place for place, key in enumerate(self._possible)}
        consumers = graph.consumers()
        possible = set(self._possible)
        self._consumers = {key: consumers[key] & possible for key in self._possible}
        # How many may still take what a node gives; the caller takes what the targets give.
        self._needed = {key: len(taking) + (key in self._open) for key, taking in self._consumers.items()}
        self._params = params
        self._signatures: dict[str, bytes] = {}
        self._wanted: set[str] = set()
        self._waits: dict[str, set[str]] = {}
        self._done: set[str] = set()
        self._values: dict[str, dict[str, Any]] = {}
        self._runs: dict[str, _Runs] = {}
        self._finished: deque[str] = deque()  # done, and nobody was told yet
        self._ended: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()

    def run(self) -> WorkflowResult:
        try:
            self._sign()
            self._want(self._targets)
            while not self._let_others_go_on():
                self._take(*self._ended.get())
        except BaseException:
            for runs in self._runs.values():
                for job in runs.jobs:
                    if job is not None:
                        job.cancel()
            raise
        self._result.values = {key: self._values[key] for key in self._targets}
        return self._result

    # ------------------------------------------------------ before anything runs

    def _sign(self) -> None:
        """Ask nodes whether they have changed, and sign all of them."""
        answers = ask(self._fabric, self._graph, self._specs, "CHANGED", self._params, self._until)
        self._warn_of_failed({key: said for key, said in answers.items() if isinstance(said, JobError)})
        changed = {key: _ALWAYS if isinstance(said, JobError) else said for key, said in answers.items()}
        own = {key: [self._params[key], changed.get(key), self._told(key)] for key in self._possible}
        self._signatures = signatures(self._graph, own)

    def _warn_of_failed(self, errors: Mapping[str, JobError]) -> None:
        """Tell, once for each class, that a node could not say whether it has changed, and so runs each time."""
        told: dict[str, str] = {}
        for key, error in errors.items():
            name = self._graph.nodes[key].class_type
            about = (
                f"node {shown_id(key)} ({name:.60}) can't say whether it has changed (IS_CHANGED), and runs each time"
            )
            told.setdefault(name, one_line(f"{about}: {error}", _MOST_SAID))
        for name, text in told.items():
            self._result.warnings.append(text)
            self._fabric._once.warn(text, about=f"IS_CHANGED of {name}")

    def _told(self, key: str) -> dict[str, Any]:
        """What beside its inputs a node depends on: its id or the workflow, where it is told them; files' places."""
        node = self._graph.nodes[key]
        told = hidden_of(self._graph, self._specs, node, self._place)
        client = self._clients.get(node.class_type)
        if client is not None and client.finish is not None:
            told["output_dir"] = os.path.abspath(self._place.output_dir)
        if is_told_late(node, client):
            told["content"] = _ALWAYS
        return told

    # ------------------------------------------------------------- going on

    def _want(self, keys: Iterable[str]) -> None:
        """Have these computed, with what they need, unless they are known."""
        todo, new = list(keys), []
        while todo:
            key = todo.pop()
            if key in self._wanted:
                continue
            self._wanted.add(key)
            if known := self._results.get(self._signatures[key]):
                self._recall(key, *known)
                continue
            node = self._graph.nodes[key]
            spec = self._specs[node.class_type]
            lazy = spec.lazy if "NEEDS" in spec.answers else frozenset()
            self._waits[key] = {source for name, (source, _) in node.links.items() if name not in lazy}
            todo += self._waits[key]
            new.append(key)
        for key in sorted(new, key=self._order.__getitem__):  # in the workflow's order
            self._waits[key] -= self._done
            if not self._waits[key]:
                self._advance(key)

    def _let_others_go_on(self) -> bool:
        """Run what waited only for nodes that are done now. True: nothing is left to do."""
        while self._finished:
            key = self._finished.popleft()
            for consumer in self._consumers[key]:
                waits = self._waits.get(consumer)
                if waits and key in waits:
                    waits.discard(key)
                    if not waits:
                        self._advance(consumer)
            for source in self._graph.nodes[key].sources:
                self._needed[source] -= 1
                if self._needed[source] == 0:
                    self._values.pop(source, None)  # nobody needs it any more: its memory goes back
        return not self._open

    def _advance(self, key: str) -> None:
        """A node whose inputs are there, all that it has asked for so far: ask for more, or run it."""
        node = self._graph.nodes[key]
        spec = self._specs[node.class_type]
        given = self._given(node)
        missing = [name for name, (source, _) in node.links.items() if source not in self._values]
        each = spread(spec, given | dict.fromkeys(missing))
        if missing and each and "NEEDS" in spec.answers:
            self._submit(key, _Runs(each, spread=False, asking=True))
        else:
            self._launch(node, given)

    def _given(self, node: Node) -> dict[str, Any]:
        """The values there are: plain, linked, hidden."""
        linked = {
            name: self._values[source][self._output_name(source, slot)]
            for name, (source, slot) in node.links.items()
            if source in self._values
        }
        return self._params[node.id] | linked | hidden_of(self._graph, self._specs, node, self._place)

    def _launch(self, node: Node, given: dict[str, Any]) -> None:
        spec, client = self._specs[node.class_type], self._clients.get(node.class_type)
        each = spread(spec, given)
        if self._observer:
            self._observer.node_started(node.id, node.class_type)
        if client is not None:
            self._check_linked(node, each)
        if client is not None and client.finish is not None:
            self._finish_here(node, client, each)
        elif not each:
            self._complete(node, "", 0.0, gathered(spec, [], spread=True), [])
        elif client is not None and is_told_late(node, client):
            files = _Files(node, spec, client, self._place, each)
            self._submit(node.id, _Runs(files, spread=is_spread(spec, given), at_once=_FILES_AT_ONCE))
        else:
            self._submit(node.id, _Runs(each, spread=is_spread(spec, given)))

    def _check_linked(self, node: Node, each: Sequence[dict[str, Any]]) -> None:
        """Refuse what other nodes gave a client node, where it isn't what that takes: no worker checks it."""
        spec = self._specs[node.class_type]
        for given in each:
            linked = {name: value for name, value in given.items() if name in node.links}
            if problems := linked_problems(spec, linked):
                details = {"node": node.id, "class_type": node.class_type}
                raise ValidationError(f"{spec.name}: " + "; ".join(problems), details, problems=problems)

    def _output_name(self, source: str, slot: int) -> str:
        return self._specs[self._graph.nodes[source].class_type].outputs[slot].name

    def _submit(self, key: str, runs: _Runs) -> None:
        self._runs[key] = runs
        while runs.begun < min(runs.at_once, len(runs.given)):
            self._submit_next(key, runs)

    def _submit_next(self, key: str, runs: _Runs) -> None:
        runs.begun += 1
        self._submit_one(key, runs, runs.begun - 1)

    def _submit_one(self, key: str, runs: _Runs, place: int) -> None:
        node = self._graph.nodes[key]
        spec = self._specs[node.class_type]
        ports, given = {port.name for port in spec.inputs}, runs.given[place]
        inputs = {name: value for name, value in given.items() if name in ports}
        params = {name: value for name, value in given.items() if name not in ports}
        doing = (
            f"node {shown_id(key)} ({node.class_type}) was to run" + f", {place + 1} of {len(runs.given)}" * runs.spread
        )
        if runs.asking:
            doing = f"node {shown_id(key)} ({node.class_type}) was asked what it needs (check_lazy_status)"
            ask = partial(self._fabric.ask, node.class_type, "NEEDS")
            job = self._until.submitted(ask, inputs=inputs, params=params, doing=doing)
        else:
            job = self._until.submitted(self._fabric.submit, node.class_type, inputs, params, doing=doing)
            if self._observer and len(runs.given) == 1:
                observer = self._observer
                job.on_progress(lambda job: observer.node_progress(key, job.progress.step, job.progress.total))
        runs.jobs[place] = job
        job.add_done_callback(partial(self._report, key, place))

    def _report(self, key: str, place: int, job: Job) -> None:
        self._ended.put((key, place))

    def _finish_here(self, node: Node, client: ClientNode, each: Sequence[dict[str, Any]]) -> None:
        assert client.finish is not None
        begun = time.perf_counter()
        ports = {port.name for port in client.spec.inputs}
        files = []
        for given in each:
            inputs = {name: value for name, value in given.items() if name in ports}
            try:
                files += client.finish(inputs, {k: v for k, v in given.items() if k not in ports}, self._place)
            except ValidationError as error:
                error.details |= {"node": node.id, "class_type": node.class_type}
                raise
        self._complete(node, "client", (time.perf_counter() - begun) * 1e3, {}, files)

    def _file_of(self, node: Node, runs: _Runs, place: int) -> str:
        """The file that a run was given, by its name in the workflow; "" if none: a worker sees only what is in it."""
        client = self._clients.get(node.class_type)
        if client is None or client.finish is not None:
            return ""
        return runs.given.name(place) if isinstance(runs.given, _Files) else str(node.values.get(client.names, ""))

    # --------------------------------------------------------------- results

    def _take(self, key: str, place: int) -> None:
        """One job has ended; the last one of its node lets others go on."""
        runs, node = self._runs[key], self._graph.nodes[key]
        job = runs.jobs[place]
        assert job is not None
        error = job.exception()
        if isinstance(error, OutOfArena | OOMSoft) and not runs.retried and self._results.clear():
            runs.retried = True  # what earlier runs left took the room
            self._submit_one(key, runs, place)
            return
        if isinstance(error, DeadlineExceeded):
            self._until.tell(error, key, node.class_type)
        if isinstance(error, OutOfArena):
            error.message += sizes_of(node)
        if isinstance(error, JobError):
            error.details.setdefault("node", key)
            error.details.setdefault("class_type", node.class_type)
            if file := self._file_of(node, runs, place):
                error.details["file"] = file
                error.message = f"{file!r}: {error.message}"
        if error is not None:
            raise error
        runs.left -= 1
        if runs.begun < len(runs.given):
            self._submit_next(key, runs)
        if self._observer and len(runs.given) > 1 and not runs.asking:
            self._observer.node_progress(key, len(runs.given) - runs.left, len(runs.given))
        if runs.left:
            return
        del self._runs[key]
        if runs.asking:
            self._take_needs(key, [job.result().get("answer") for job in runs.jobs if job is not None])
            return
        results = [self._outputs(node, job) for job in runs.jobs if job is not None]
        took = sum(job.timings.execute for job in runs.jobs if job is not None) / 1e6
        self._complete(node, job.worker, took, gathered(self._specs[node.class_type], results, spread=runs.spread), [])

    def _outputs(self, node: Node, job: Job) -> dict[str, Any]:
        """A job's outputs, as declared. Its worker has seen to that, unless a node there has made it forget."""
        try:
            return check_outputs(self._specs[node.class_type], job.result())
        except JobError as error:
            error.details |= {"node": node.id, "class_type": node.class_type}
            raise

    def _take_needs(self, key: str, answers: list[Any]) -> None:
        """The lazy inputs that a node wants: computed first, and then it is asked again; none: it runs."""
        node = self._graph.nodes[key]
        named = [name for answer in answers if isinstance(answer, list) for name in answer]
        names = {name for name in named if isinstance(name, str)}
        lacking = {link[0] for name, link in node.links.items() if name in names} - self._values.keys()
        if not lacking:
            self._launch(node, self._given(node))
            return
        self._want(lacking)
        self._waits[key] = lacking - self._done
        if not self._waits[key]:
            self._advance(key)

    def _complete(self, node: Node, worker: str, ms: float, outputs: dict[str, Any], files: list[str]) -> None:
        """A node has run."""
        self._results.put(self._signatures[node.id], outputs, files)
        self._result.nodes.append({"id": node.id, "class_type": node.class_type, "worker": worker, "ms": round(ms, 3)})
        self._note(node, outputs, files)
        if self._observer:
            self._observer.node_done(node.id, ms)

    def _recall(self, key: str, outputs: dict[str, Any], files: list[str]) -> None:
        """A node need not run."""
        self._result.cached.append(key)
        self._note(self._graph.nodes[key], outputs, files)

    def _note(self, node: Node, outputs: dict[str, Any], files: list[str]) -> None:
        client, spec = self._clients.get(node.class_type), self._specs[node.class_type]
        if client is not None and client.finish is not None:
            self._result.outputs.append({"node": node.id, "files": files})
        elif spec.output_node and _UI in outputs:
            self._result.outputs.append({"node": node.id, "ui": outputs[_UI]})
        self._values[node.id] = outputs
        self._done.add(node.id)
        self._open.discard(node.id)
        self._finished.append(node.id)
