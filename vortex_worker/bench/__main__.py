"""``python -m vortex_worker.bench``: measures this machine, as a table or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from vortex_worker.bench import death, jobs, machine, mapping, sampling, sandbox, scale, start
from vortex_worker.bench.measure import Result, Skipped

KEYS: dict[str, Callable[[bool], Result]] = {
    "map.tensor": mapping.map_tensor,
    "map.arrow": mapping.map_arrow,
    "job.roundtrip": jobs.job_roundtrip,
    "job.tensor64m": jobs.job_tensor64m,
    "start.warm": start.start_warm,
    "start.cold": start.start_cold,
    "start.fabric": start.start_fabric,
    "recover.detect": death.recover_detect,
    "recover.ready": start.recover_ready,
    "recover.reply": start.recover_reply,
    "sandbox.install": sandbox.sandbox_install,
    "sandbox.overhead": sandbox.sandbox_overhead,
    "worker.memory": start.worker_memory,
    "sample.overhead": sampling.sample_overhead,
    "sample.step": sampling.sample_step,
    "scale.workers": scale.scale_workers,
    "scale.workers256": scale.scale_workers256,
    "scale.clients": scale.scale_clients,
    "scale.length": scale.scale_length,
    "scale.tensors": scale.scale_tensors,
    "scale.handles": scale.scale_handles,
    "scale.graph": scale.scale_graph,
}
#: Only when asked for: they take gigabytes, or minutes.
LONG = {"scale.workers256"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Fewer repetitions: under a minute, less sure.")
@click.option("--only", default="", metavar="KEY,…", help=f"Some of: {', '.join(KEYS)}.")
@click.option("--long", "long_too", is_flag=True, help=f"Also {', '.join(sorted(LONG))}: gigabytes, and minutes.")
@click.option("--json", "json_file", metavar="FILE", help="Also write the figures as JSON; - for standard output.")
def bench(quick: bool, only: str, long_too: bool, json_file: str | None) -> None:
    """Measure this machine, each figure beside a reference of the same run."""
    wanted = [key.strip() for key in only.split(",") if key.strip()]
    wanted = wanted or [key for key in KEYS if long_too or key not in LONG]
    if unknown := [key for key in wanted if key not in KEYS]:
        raise click.BadParameter(f"no benchmark {', '.join(unknown)}; there are {', '.join(KEYS)}", param_hint="--only")
    about = machine.describe()
    console = Console(stderr=True)
    results: dict[str, Result] = {}
    skipped: dict[str, str] = {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        for key in wanted:
            task = progress.add_task(key, total=None)
            try:
                results[key] = KEYS[key](quick)
            except Skipped as why:
                skipped[key] = str(why)
            progress.remove_task(task)
    if json_file:
        data = json.dumps(
            {
                "machine": about,
                "quick": quick,
                "results": {key: result.as_dict() for key, result in results.items()},
                "skipped": skipped,
            },
            indent=2, ensure_ascii=False,
        )  # fmt: skip
        if json_file == "-":
            print(data)
        else:
            with open(json_file, "w", encoding="utf-8") as file:
                file.write(data + "\n")
    if json_file != "-":
        show(results, skipped, about)


def show(results: dict[str, Result], skipped: dict[str, str], about: dict[str, object]) -> None:
    """The table for people."""
    table = Table("figure", "median", "p99", "reference", "ratio", "target", "verdict", show_lines=True)
    colours = {"reaches the aim": "green", "meets the target": "cyan", "misses the target": "red"}
    for key, r in results.items():
        verdict = r.target.verdict(r)
        reference = f"{r.reference_median:.3g} {r.unit}\n{r.reference}"
        beside = "".join(f"\n{value:.3g}: {what}" for what, value in r.beside.items())
        table.add_row(
            f"[bold]{key}[/]\n{r.what}", f"{r.median:.3g} {r.unit}", f"{r.p99:.3g}", reference + beside,
            f"{r.ratio:.2f}", str(r.target), f"[{colours[verdict]}]{verdict}[/]",
        )  # fmt: skip
    console = Console()
    console.width = max(console.width, 120)  # narrower, the table is a column of syllables
    console.print(table)
    for key, why in skipped.items():
        console.print(f"{key} was not measured: {why}", highlight=False)
    console.print(machine.sentence(about), highlight=False)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    try:
        bench.main(arguments, prog_name="python -m vortex_worker.bench", standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except click.exceptions.Abort:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
