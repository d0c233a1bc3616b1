"""Workflows that come with the package, for ``vortex-worker run NAME``."""

from __future__ import annotations

import os
from importlib.resources import files

import click


def names() -> list[str]:
    """What there is, by name."""
    folder = files("vortex_worker") / "examples"
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def find(workflow: str) -> str:
    """The path of a workflow's file: ``workflow`` itself, or that of the example of this name.

    Raises:
        click.BadParameter: it is neither.
    """
    if os.path.isfile(workflow):
        return workflow
    if workflow in names():
        return str(files("vortex_worker") / "examples" / workflow / "workflow.json")
    if os.path.exists(workflow):
        raise click.BadParameter(f"{workflow!r} is no regular file", param_hint="WORKFLOW")
    raise click.BadParameter(
        f"there is no file {workflow!r}, and no example of this name: there is {', '.join(names()) or 'none'}",
        param_hint="WORKFLOW",
    )
