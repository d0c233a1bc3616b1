"""What commands say beside their results: on standard error, whole lines, in colour at a terminal."""

from __future__ import annotations

import logging
import os

import click
from rich.console import Console
from rich.text import Text

from vortex_worker.ipc.protocol import printable

_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red"}


def diagnostics(*, verbose: bool = False) -> Console:
    """The console for it, where warnings that the package logs go from now on, too; ``verbose``: all that it tells."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Handler(console)])
    if verbose:
        logging.getLogger("vortex_worker").setLevel(logging.INFO)
    return console


def tell(text: str) -> None:
    """A result, as a line on standard output. Ends the command where that takes no more."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python tries once more when it ends
        click.echo(f"standard output can't be written: {error.strerror}", err=True)
        raise SystemExit(1) from None


class _Handler(logging.Handler):
    """A record as a line, or several; a worker may have a part in it."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = Text(f"{record.levelname.lower()}: ", _STYLES.get(record.levelno, ""))
            self._console.print(level + Text(printable(self.format(record))))
        except Exception:
            self.handleError(record)
