"""What the command line takes for limits: sizes as people write them, and seconds; and for a folder to be made."""

from __future__ import annotations

import re

import click

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MOST_BYTES, _MOST_SECONDS = 1 << 62, 1e8


def size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Bytes, above 0: ``512M`` is 512 · 1024². For click, as an option's callback."""
    if value is None:
        return None
    written = re.fullmatch(r"([0-9]{1,19})([KMGT]?)", value, re.IGNORECASE | re.ASCII)
    found = int(written[1]) * _UNITS[written[2].upper()] if written else 0
    if not 0 < found <= _MOST_BYTES:
        raise click.BadParameter(f"{value!r}: it takes bytes above 0, or a number with K, M, G or T: 512M, 2G")
    return found


def seconds(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Above 0. For click, as an option's callback."""
    if value is not None and not 0 < value <= _MOST_SECONDS:  # nor nan
        raise click.BadParameter(f"{value:g}: it takes seconds above 0")
    return value


def folder(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """A path, not empty. For click, as an option's callback."""
    if not value:
        raise click.BadParameter("'': it takes the path of a folder")
    return value
