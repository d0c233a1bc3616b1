"""``python -m vortex_worker.bench``: measures this machine, as a table or as JSON."""

from __future__ import annotations

import gc
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from vortex_worker.bench import codec, death, jobs, machine, mapping, sampling, sandbox, scale, start
from vortex_worker.bench.measure import Result, Skipped, number

KEYS: dict[str, Callable[[bool], Result]] = {
    "map.tensor": mapping.map_tensor,
    "map.arrow": mapping.map_arrow,
    "job.roundtrip": jobs.job_roundtrip,
    "job.tensor64m": jobs.job_tensor64m,
    "job.batch": jobs.job_batch,
    "job.doorbell": jobs.job_doorbell,
    "codec.encode": codec.codec_encode,
    "codec.decode": codec.codec_decode,
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
@click.option("--only", metavar="KEY,…", help=f"Some of: {', '.join(KEYS)}.")
@click.option("--long", "long_too", is_flag=True, help=f"Also {', '.join(sorted(LONG))}: gigabytes, and minutes.")
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.File("a", encoding="utf-8", lazy=False),  # what is there stays until there is something to replace it
    help="Also write the figures as JSON; - for standard output.",
)
@click.option(
    "--plot",
    metavar="DIR",
    type=click.Path(file_okay=False, writable=True),
    help="Also draw bench.svg and bench.png there.",
)
def bench(quick: bool, only: str | None, long_too: bool, json_file: IO[str] | None, plot: str | None) -> None:
    """Measure this machine, each figure beside a reference of the same run."""
    wanted = [key for key in KEYS if long_too or key not in LONG]
    if only is not None:
        wanted = [key.strip() for key in only.split(",") if key.strip()]
        unknown = [key for key in wanted if key not in KEYS]
        if unknown or not wanted:
            what = f"no benchmark {', '.join(unknown)}" if unknown else "it names no benchmark"
            raise click.BadParameter(f"{what}; there are {', '.join(KEYS)}", param_hint="--only")
    if plot is not None:  # what would not work is said before minutes of measuring
        _plotting()
        try:
            Path(plot).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise click.BadParameter(f"{error.strerror}: {plot}", param_hint="--plot") from error
    to_file = getattr(json_file, "name", "<stdout>") != "<stdout>"
    about = machine.describe()
    console = Console(stderr=True)
    results: dict[str, Result] = {}
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        for key in wanted:
            task = progress.add_task(key, total=None)
            gc.collect()
            gc.freeze()  # what others have imported and left is not for this one to go through
            try:
                results[key] = KEYS[key](quick)
            except Skipped as why:
                skipped[key] = str(why)
            except Exception as error:  # the minutes that the others took are not lost with it
                failed[key] = "".join(traceback.format_exception(error))
            finally:
                gc.unfreeze()
            progress.remove_task(task)
    if json_file:
        data = json.dumps(
            {
                "machine": about,
                "quick": quick,
                "confession": machine.confession(about, quick),
                "results": {key: result.as_dict() for key, result in results.items()},
                "skipped": skipped,
                "failed": failed,
            },
            indent=2, ensure_ascii=False,
        )  # fmt: skip
        if to_file and json_file.seekable():
            json_file.truncate(0)
        json_file.write(data + "\n")
    if not json_file or to_file:
        show(results, skipped, about, quick)
    if plot is not None:
        for file in _plotting().draw(results, about, Path(plot)):
            console.print(f"wrote {file}", highlight=False, markup=False)
    for key, what in failed.items():
        console.print(f"{key} failed: {what}", style="red", highlight=False, markup=False)
    if failed:
        raise click.exceptions.Exit(1)


def _plotting() -> Any:
    try:
        from vortex_worker.bench import plot
    except ImportError as error:
        raise click.UsageError(str(error)) from error
    return plot


_WIDE = 120  # characters that the whole table takes: on fewer, it is a column of syllables
_COLOURS = {"reaches the aim": "green", "meets the target": "cyan", "misses the target": "red"}


def show(results: dict[str, Result], skipped: dict[str, str], about: dict[str, object], quick: bool) -> None:
    """The table for people. On a narrow terminal without the columns whose content is told elsewhere, too."""
    console = Console()
    narrow = console.is_terminal and console.width < _WIDE
    if not narrow:
        console.width = max(console.width, _WIDE)
    table = Table("figure", "median", Column("reference", overflow="fold"), "ratio", "target", show_lines=True)
    if not narrow:
        table = Table(
            "figure",
            "median",
            "p99",
            Column("reference", overflow="fold"),
            "ratio",
            "target",
            "verdict",
            show_lines=True,
        )
    for key, r in results.items():
        verdict = r.target.verdict(r)
        colour = _COLOURS[verdict]
        reference = f"{number(r.reference_median)} {r.unit}\n{r.reference}"
        beside = "".join(f"\n{number(value)}: {what}" for what, value in r.beside.items())
        cells = [f"[bold]{key}[/]\n{r.what}", f"{number(r.median)} {r.unit}", number(r.p99), reference + beside]
        cells += [number(r.ratio), str(r.target), f"[{colour}]{verdict}[/]"]
        if narrow:
            cells = [cells[0], cells[1], cells[3], f"[{colour}]{cells[4]}[/]", cells[5]]
        table.add_row(*cells)
    console.print(table)
    for key, why in skipped.items():
        console.print(f"{key} was not measured: {why}", highlight=False)
    for key, result in results.items():
        console.print(f"{key}: {result.words}", style=_COLOURS[result.target.verdict(result)], highlight=False)
    console.print(f"\n{machine.sentence(about)}", highlight=False)
    for sentence in machine.confession(about, quick):
        console.print(f"· {sentence}", style="dim", highlight=False)


def main(arguments: list[str] | None = None, name: str = "python -m vortex_worker.bench") -> int:
    """Measure as ``name``, which is told in messages. Returns the exit status."""
    try:
        return bench.main(arguments, prog_name=name, standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return 2
    except click.exceptions.Abort:
        return 130


if __name__ == "__main__":
    sys.exit(main())
