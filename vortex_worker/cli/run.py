"""``vortex-worker run``: a workflow with progress bars, or as one JSON object."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vortex_worker.cli import EXIT_FAILED, EXIT_USAGE
from vortex_worker.cli.changes import Changes
from vortex_worker.cli.console import diagnostics, tell
from vortex_worker.errors import ConfigError, JobError, VortexError, WorkflowError
from vortex_worker.ipc.protocol import printable
from vortex_worker.supervisor.fabric import Fabric
from vortex_worker.supervisor.graph import Graph
from vortex_worker.supervisor.workflow import WorkflowResult

_MAX_NAME, _MAX_TEXT = 100, 1 << 20  # letters of a node's id; of all that is wrong with a workflow


def run_command(
    workflow: str,
    settings: tuple[str, ...],
    only: tuple[str, ...],
    watch: bool,
    output: str,
    workers: int,
    custom_nodes: tuple[str, ...],
    models: tuple[str, ...],
    modules: tuple[str, ...],
    device: str,
    policy: str | None,
    wxorx: bool,
    timeout: float | None,
    memory_limit: int | None,
    lease_size: int,
    learn: str | None,
    verbose: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Run it; returns the exit status."""
    console = diagnostics(verbose=verbose)
    folders = custom_nodes or _own_folder(workflow)
    bars = _Bars(console, shown=console.is_terminal and not quiet and not as_json)
    try:
        values = dict(_parse_setting(text) for text in settings)
        graph = Graph.read(workflow)
        graph.set_values(values, "--set {}")  # a bad file or --set is told before any process is started
        if learn is not None:
            _warn_of_learning(console, learn)
        with (
            Fabric(
                workers,
                custom_nodes=folders,
                models=models,
                modules=modules,
                device=device,
                policy=policy,
                wxorx=wxorx,
                memory_limit=memory_limit or 0,
                lease_size=lease_size,
                learn=learn is not None,
            ) as fabric,
            bars,
        ):
            bars.starting(workers)
            changes = Changes(workflow, folders)
            while True:
                try:
                    result = fabric.run_workflow(
                        workflow,
                        output_dir=output,
                        settings=values,
                        outputs=only or None,
                        progress=bars,
                        deadline=timeout,
                    )
                except (WorkflowError, JobError) as error:
                    if not watch:
                        raise
                    bars.stop()
                    _told(console, as_json, error, at=_now())
                else:
                    bars.stop()
                    if as_json:
                        _tell(result, None if learn is None else fabric.write_learned(learn))
                    else:
                        _show(console, result, quiet=quiet, at=_now() if watch else "")
                finally:
                    if learn is not None:
                        _tell_learned(console, learn, fabric.write_learned(learn))
                if not watch:
                    return 0
                if changes.wait():
                    fabric.reload()  # the nodes themselves have changed
                bars.start()
    except VortexError as error:
        return _told(console, as_json, error)


def _tell(result: WorkflowResult, learned: list[dict[str, object]] | None) -> None:
    report = as_dict(result)
    if learned is not None:
        report["learned"] = learned
    tell(json.dumps(report))


def _told(console: Console, as_json: bool, error: VortexError, at: str = "") -> int:
    """Say what went wrong; the exit status for it."""
    if isinstance(error, WorkflowError):
        return _fail(console, as_json, EXIT_USAGE, f"{at}the workflow can't run", error)
    if isinstance(error, ConfigError):
        return _fail(console, as_json, EXIT_USAGE, f"{at}bad settings", error)
    return _fail(console, as_json, EXIT_FAILED, f"{at}the workflow failed", error)


def _now() -> str:
    """For lines among which hours may pass."""
    return time.strftime("%H:%M:%S ")


def as_dict(result: WorkflowResult) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "ok": True,
        "seconds": round(result.seconds, 3),
        "outputs": result.outputs,
        "nodes": result.nodes,
        "cached": result.cached,
        "warnings": result.warnings,
        "workers": [{key: w[key] for key in ("id", "pid", "sandbox")} for w in result.workers],
    }


def _parse_setting(text: str) -> tuple[str, Any]:
    target, equals, value = text.partition("=")
    if not equals:
        raise WorkflowError([("", f"--set {text}: it takes NODE.INPUT=VALUE")])
    if value in ("True", "False"):  # as Python writes them; as a text, either would count as true
        return target, value == "True"
    try:
        return target, json.loads(value)
    except ValueError:
        return target, value  # text needs no quotes
    except RecursionError:
        raise WorkflowError([("", f"--set {target:.60}: its value is nested too deeply")]) from None


def _own_folder(workflow: str) -> tuple[str, ...]:
    """The workflow's folder, if a Python file beside it declares nodes: its custom nodes."""
    folder = Path(workflow).resolve().parent
    return (str(folder),) if any(_declares_nodes(path) for path in sorted(folder.glob("*.py"))) else ()


def _declares_nodes(path: Path) -> bool:
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return False
    return "AbstractExecutor" in text or "NODE_CLASS_MAPPINGS" in text


def _warn_of_learning(console: Console, path: str) -> None:
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ConfigError(f"--learn {path}: there is no folder {folder}")
    console.print(
        "[bold red]UNSAFE: learning.[/] Denied system calls are let through. Only for code that you trust.",
        highlight=False,
    )


def _tell_learned(console: Console, path: str, learned: list[dict[str, object]]) -> None:
    if not learned:
        console.print("learned: the policy lacks nothing for this; no file is written")
        return
    calls = ", ".join(sorted({str(line["call"]) for line in learned}))
    console.print(f"learned: {len(learned)} missing lines ({escape(calls)}), written to [bold]{escape(path)}[/]")
    console.print("[bold red]unsafe until you have read it[/]: keep what you can explain")


def _fail(
    console: Console,
    as_json: bool,
    status: int,
    what: str,
    error: VortexError,
) -> int:
    if as_json:
        details: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
        if isinstance(error, JobError):
            details |= {"code": error.code, "details": error.details}
        if isinstance(error, WorkflowError):
            details["problems"] = [{"node": node, "message": text} for node, text in error.problems]
            details["node_errors"] = error.node_errors
        tell(json.dumps({"ok": False, "error": details}, default=str))
        return status
    where = (
        f" at node {escape(printable(error.details['node'], _MAX_NAME))}"
        if isinstance(error, JobError) and "node" in error.details
        else ""
    )
    console.print(f"[bold red]{what}{where}[/]")
    console.print(printable(str(error), _MAX_TEXT), markup=False)
    if isinstance(error, JobError) and "traceback" in error.details:
        console.print(printable(error.details["traceback"]), markup=False, style="dim")
    return status


def _show(console: Console, result: WorkflowResult, *, quiet: bool, at: str) -> None:
    """Where results went and texts that nodes show, on standard output; what kind of run it was, on the console."""
    for output in result.outputs:
        if output["node"] not in result.cached:
            for file in output.get("files", ()):
                tell(f"wrote {printable(file)}")
            for text in _texts(output.get("ui")):
                tell(f"{printable(output['node'], _MAX_NAME)}: {printable(text)}")
    if quiet:
        return
    if not result.nodes:
        console.print(f"{at}nothing changed")
        return
    layers = {layer for worker in result.workers for layer in worker["sandbox"]["layers"]}
    enforced = all(worker["sandbox"]["enforced"] for worker in result.workers)
    learning = any(worker["sandbox"]["learning"] for worker in result.workers)
    state = "[green]sandboxed[/] by " + ", ".join(sorted(layers)) if enforced else "[bold red]NOT sandboxed[/]"
    if learning:
        state = "[bold red]NOT sandboxed: learning[/]"
    unchanged = f" ({len(result.cached)} unchanged)" if result.cached else ""
    console.print(f"{at}{_counted(len(result.nodes))}{unchanged} in {result.seconds:.2f} s, {state}")
    if not result.outputs:
        console.print("it ended well; it wrote no file, for none of these is an output node")


def _texts(shown: Any) -> list[str]:
    """What a pack's output node would have an editor write below it; it may have said anything."""
    texts = shown.get("text") if isinstance(shown, dict) else None
    return [text for text in texts if isinstance(text, str)] if isinstance(texts, list | tuple) else []


def _counted(nodes: int) -> str:
    return f"{nodes} node{'s' * (nodes != 1)}"


class _Bars:
    """A bar for each node that runs. They stop before results are printed, and start anew for another run."""

    def __init__(self, console: Console, *, shown: bool) -> None:
        self._console = console
        self._shown = shown
        self._bars: dict[str, TaskID] = {}
        self._starting: TaskID | None = None

    def __enter__(self) -> _Bars:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._bars.clear()
        self._progress = Progress(
            TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=self._console, disable=not self._shown, redirect_stdout=False,
        )  # fmt: skip
        self._progress.start()

    def stop(self) -> None:
        if self._starting is not None:
            self._progress.remove_task(self._starting)
            self._starting = None
        self._progress.stop()

    def starting(self, workers: int) -> None:
        self._starting = self._progress.add_task(f"starting {workers} worker{'s' * (workers > 1)}", total=None)

    def node_started(self, node: str, class_type: str) -> None:
        if self._starting is not None:
            self._progress.remove_task(self._starting)
            self._starting = None
        self._bars[node] = self._progress.add_task(escape(printable(f"{node} {class_type}")[:32]), total=1)

    def node_progress(self, node: str, step: int, total: int) -> None:
        self._progress.update(self._bars[node], completed=step, total=max(total, 1))

    def node_done(self, node: str, ms: float) -> None:
        bar = next(task for task in self._progress.tasks if task.id == self._bars[node])
        self._progress.update(bar.id, completed=bar.total)
