"""``vortex-worker top``: the fabrics on this machine, live."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from vortex_worker.shm.running import FabricView, WorkerView, look

_COLOURS = {
    "busy": "green",
    "idle": "cyan",
    "standby": "blue",
    "starting": "yellow",
    "draining": "yellow",
    "dead": "red",
}
#: ``silent``: since its last heartbeat. ``steps/s``: jobs begun, and progress that nodes reported.
_COLUMNS = ("slot", "pid", "state", "job", "progress", "silent s", "steps/s", "CPU %", "memory MiB")
_BAR = 8  # characters of a progress bar
_STALE = 1.0  # s without a heartbeat that are shown in red


def top_command(interval: float, once: bool, as_json: bool) -> int:
    """Show them until interrupted, or once. Returns the exit status."""
    before = look()
    once = once or not (as_json or sys.stdout.isatty())  # nobody could be shown anything live
    try:
        if as_json:
            while True:
                time.sleep(interval)
                now = look()
                print(json.dumps(as_dict(before, now)), flush=True)
                if once:
                    return 0
                before = now
        if once:
            time.sleep(interval)  # rates need two looks
            Console().print(render(as_dict(before, look())))
            return 0
        with Live(render(as_dict([], before)), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                now = look()
                live.update(render(as_dict(before, now)), refresh=True)
                before = now
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # whoever read our lines has seen enough
        return 0


def as_dict(before: list[FabricView], now: list[FabricView]) -> dict[str, Any]:
    """What ``--json`` prints. Rates are what changed between two looks, a second; null where there was no first."""
    earlier = {(fabric.pid, fabric.inode): fabric for fabric in before}
    there = [fabric for fabric in now if fabric.workers]  # else it was closed, and tensors of it live on
    return {"fabrics": [_fabric(earlier.get((fabric.pid, fabric.inode)), fabric) for fabric in there]}


def _fabric(before: FabricView | None, now: FabricView) -> dict[str, Any]:
    seconds = now.time - before.time if before else 0.0
    earlier = {worker.pid: worker for worker in before.workers} if before else {}
    newest = max((worker.slot.job_id for worker in now.workers), default=0)
    newest_before = max((worker.slot.job_id for worker in before.workers), default=0) if before else 0
    return {
        "pid": now.pid,
        "command": now.command,
        "arena_bytes": now.arena,
        "jobs_per_s": _rate(newest_before, newest, seconds),  # ids are given in order
        "workers": [_worker(earlier.get(worker.pid), worker, seconds) for worker in now.workers],
    }


def _worker(before: WorkerView | None, now: WorkerView, seconds: float) -> dict[str, Any]:
    slot, busy = now.slot, now.slot.status_name == "busy"
    silence = slot.silence()
    return {
        "slot": slot.slot,
        "pid": now.pid,
        "state": "standby" if now.stands_by and slot.status_name == "idle" else slot.status_name,
        "job": slot.job_id if busy else None,
        "step": slot.step if busy else None,
        "steps": slot.total if busy else None,
        "heartbeat_age_s": None if silence is None else round(silence, 3),
        "activity_per_s": _rate(before.slot.activity, slot.activity, seconds) if before else None,
        "cpu_percent": _rate(100 * before.cpu, 100 * now.cpu, seconds) if before else None,
        "memory_bytes": now.memory,
        "fault": slot.fault or None,
    }


def _rate(before: float, now: float, seconds: float) -> float | None:
    return round(max(0.0, now - before) / seconds, 2) if seconds > 0 else None


def render(report: dict[str, Any]) -> RenderableType:
    """What people see of ``as_dict``."""
    if not report["fabrics"]:
        return Text("no fabric of yours runs on this machine")
    parts: list[RenderableType] = []
    for fabric in report["fabrics"]:
        rate = "" if fabric["jobs_per_s"] is None else f" · {fabric['jobs_per_s']:.1f} jobs per second"
        title = Text.from_markup(f"pid [b]{fabric['pid']}[/]{rate} · {escape(fabric['command'])}", overflow="ellipsis")
        title.no_wrap = True
        columns = [Column(name, overflow="fold") for name in _COLUMNS]
        table = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for worker in fabric["workers"]:
            table.add_row(*_row(worker))
        parts += [title, table]
    return Group(*parts)


def _row(worker: dict[str, Any]) -> list[str]:
    state, age = worker["state"], worker["heartbeat_age_s"]
    progress = ""
    if worker["steps"]:
        done = min(_BAR, _BAR * worker["step"] // worker["steps"])
        progress = f"{'━' * done}{'╌' * (_BAR - done)} {worker['step']}/{worker['steps']}"
    beat = "" if age is None else f"{age:.2f}"
    return [
        str(worker["slot"]),
        "[red]?[/]" if worker["pid"] is None else str(worker["pid"]),
        f"[{_COLOURS.get(state, 'red')}]{escape(state)}[/]"
        + (f" [red]{worker['fault']}[/]" if worker["fault"] else ""),
        "" if worker["job"] is None else str(worker["job"]),
        progress,
        f"[red]{beat}[/]" if age is not None and age > _STALE else beat,
        "" if worker["activity_per_s"] is None else f"{worker['activity_per_s']:.1f}",
        "" if worker["cpu_percent"] is None else f"{worker['cpu_percent']:.0f}",
        f"{worker['memory_bytes'] / 2**20:.0f}",
    ]
