"""The ``vortex-worker`` command. Exit codes: 0 done, 1 the job failed, 2 bad usage or workflow."""

from __future__ import annotations

import sys

import click

import vortex_worker
from vortex_worker.cli import limits

EXIT_FAILED = 1
EXIT_USAGE = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(vortex_worker.__version__, prog_name="vortex-worker")
def command() -> None:
    """Run node graphs in sandboxed worker processes."""


@command.command(short_help='Run a workflow: JSON, a PNG with one inside, or "digits".')
@click.argument("workflow", callback=lambda context, parameter, value: _workflow(value))
@click.option(
    "--set", "settings", multiple=True, metavar="NODE.INPUT=VALUE", help="Override an input by a value: JSON, or text."
)
@click.option("--only", multiple=True, metavar="NODE", help="Run this node and what it needs, not the whole.")
@click.option("--watch", is_flag=True, help="Run again when a file changes, until interrupted; only what changed.")
@click.option(
    "-o",
    "--output",
    default="out",
    type=click.Path(file_okay=False),
    callback=limits.folder,
    help="Folder for results.  [out]",
)
@click.option("-w", "--workers", default=1, type=click.IntRange(1, 256), help="Worker processes.  [1]")
@click.option(
    "--custom-nodes",
    multiple=True,
    type=click.Path(exists=True, file_okay=False),
    help="Folder of custom nodes; the workflow's own by default.",
)
@click.option(
    "--models", multiple=True, type=click.Path(exists=True, file_okay=False), help="Folder that nodes may read."
)
@click.option(
    "--module", "modules", multiple=True, metavar="MODULE", help="Compiled module that custom nodes need: cv2."
)
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps.  [auto]")
@click.option("--policy", default=None, help="System-call policy: execute, strict, cuda or a TOML file.  [execute]")
@click.option("--wxorx", is_flag=True, help="Let no memory become executable. Slower: above all bf16 on the CPU.")
@click.option(
    "--timeout",
    type=float,
    callback=limits.seconds,
    metavar="SECONDS",
    help="For the whole workflow, and with --watch for each run of it: what is not done by then fails.",
)
@click.option(
    "--memory-limit",
    callback=limits.size,
    metavar="SIZE",
    help="Private memory of each worker: bytes, 512M, 2G.  [no limit]",
)
@click.option(
    "--lease-size",
    default="1G",
    callback=limits.size,
    metavar="SIZE",
    help="Shared memory for what a worker's nodes give, while it is needed: for large batches, more.  [1G]",
)
@click.option(
    "--learn",
    default=None,
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True),
    help="UNSAFE: let denied system calls through, and write a policy that allows them.",
)
@click.option("-v", "--verbose", is_flag=True, help="Also show what nodes print, and what becomes of workers.")
@click.option("-q", "--quiet", is_flag=True, help="Print where results went, warnings and errors; nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of progress.")
def run(**options: object) -> None:
    """Run WORKFLOW: a file in ComfyUI's API format, a PNG with one inside, or "digits", which is always there."""
    from vortex_worker.cli.run import run_command

    sys.exit(run_command(**options))  # type: ignore[arg-type]


@command.command()
@click.option(
    "--custom-nodes", multiple=True, type=click.Path(exists=True, file_okay=False), help="Folder of custom nodes."
)
@click.option(
    "--models", multiple=True, type=click.Path(exists=True, file_okay=False), help="Folder that nodes may read."
)
@click.option(
    "--module", "modules", multiple=True, metavar="MODULE", help="Compiled module that custom nodes need: cv2."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def nodes(**options: object) -> None:
    """List the nodes, what they take and what they give."""
    from vortex_worker.cli.nodes import nodes_command

    sys.exit(nodes_command(**options))  # type: ignore[arg-type]


@command.command()
@click.option("--matrix", is_flag=True, help="Try every system call, under the real locks: some minutes.")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="POLICY",
    help="bootstrap, execute, strict or a TOML file; several with --matrix.  [execute; all for --matrix]",
)
@click.option("--wxorx", is_flag=True, help="Of workers that let no memory become executable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(matrix: bool, profiles: tuple[str, ...], wxorx: bool, as_json: bool) -> None:
    """Tell what this machine can enforce, and what is in force."""
    from vortex_worker.cli.doctor import doctor_command, matrix_command

    if matrix:
        sys.exit(matrix_command(profiles, wxorx, as_json))
    if len(profiles) > 1:
        raise click.UsageError("one --profile at a time, unless with --matrix")
    sys.exit(doctor_command(profiles[0] if profiles else "execute", wxorx, as_json))


@command.command()
@click.option(
    "--interval",
    default=1.0,
    type=click.FloatRange(0.05, 3600),
    callback=limits.seconds,  # refuses nan, which is in no range and in each
    help="Seconds between looks.  [1]",
)
@click.option(
    "--once", is_flag=True, help="Look twice, print once, and end; so it does anyway where it prints to no terminal."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
def top(interval: float, once: bool, as_json: bool) -> None:
    """Watch the workers of all your fabrics on this machine."""
    from vortex_worker.cli.top import top_command

    sys.exit(top_command(interval, once, as_json))


@command.group()
def policy() -> None:
    """Read system-call policies, and check one of your own."""


@policy.command(short_help="Print a policy, with the reason of each line.")
@click.argument("name", metavar="POLICY")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """Print POLICY, a name (bootstrap, execute, strict, cuda) or a TOML file, with the reason of each line."""
    from vortex_worker.cli.policy import show_command

    sys.exit(show_command(name, as_json))


@policy.command(short_help="Check a policy file: it says all it must, and no line twice.")
@click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False))
def lint(path: str) -> None:
    """Check FILE: it is read and compiled without doubt, and no line says what another says."""
    from vortex_worker.cli.policy import lint_command

    sys.exit(lint_command(path))


@command.command(short_help="Be a worker, configured by VORTEX_… (for supervisors).")
def start() -> None:
    """Be a worker, configured by VORTEX_… in the environment (for supervisors)."""
    import os

    # A fresh interpreter: what this command line has loaded and opened is no worker's business.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "vortex_worker.main"])


@command.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Measure this machine: the same as python -m vortex_worker.bench."""
    from vortex_worker.bench.__main__ import main as bench_main

    sys.exit(bench_main(list(arguments), "vortex-worker bench"))


def _workflow(name: str) -> str:
    from vortex_worker.cli.examples import find

    return find(name)


def main() -> None:
    """Entry point of the command."""
    try:
        command.main(prog_name="vortex-worker", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
