"""What a fabric may be told: each argument checked, and named when it is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vortex_worker.config import DEVICES, LOG_LEVELS, WorkerConfig, is_device
from vortex_worker.defaults import ZYGOTE_MESSAGE
from vortex_worker.errors import ConfigError

_REST_OF_MESSAGE = 1 << 10  # bytes

#: Of a fabric's whole numbers, the least and the most.
_RANGES = {
    "workers": (1, 256),
    "landlock_abi": (0, 99),
    "keep_results": (0, 1 << 44),
    "queue": (1, 1 << 30),
    "lease_size": (1 << 21, 1 << 44),
    "client_size": (1 << 21, 1 << 44),
    "max_frame": (4096, 1 << 30),
    "heartbeat_ms": (1, 60_000),
    "threads": (0, 4096),
    "memory_limit": (0, 1 << 62),
    "memory_growth": (0, 1 << 62),
}
#: What it is told to do, or not.
_SWITCHES = ("wxorx", "zygote", "allow_unsandboxed", "learn")
_AGES = 1e9  # s: what a lock can be waited for, and more than anybody means


def check_fabric(given: Mapping[str, Any]) -> None:
    """The numbers and levels among a fabric's arguments, by name. Raises ConfigError: one is bad."""
    for name, (low, high) in _RANGES.items():
        check_range(name, 0 if name == "threads" and given[name] is None else given[name], low, high)
    for name in _SWITCHES:
        if not isinstance(given[name], bool):  # "no" is true, and two of them take the sandbox off
            raise ConfigError(f"{name} is {shown(given[name])}: it takes True or False")
    check_range("standby", given["standby"], 0, 256 - given["workers"])
    check_seconds("grace", given["grace"], zero=True)
    check_seconds("start_timeout", given["start_timeout"])
    check_seconds("stall_timeout", given["stall_timeout"], zero=True)
    check_seconds("heartbeat_timeout", given["heartbeat_timeout"])
    if given["heartbeat_timeout"] * 1000 < 2 * given["heartbeat_ms"]:
        raise ConfigError(f"heartbeat_timeout is {given['heartbeat_timeout']} s: it takes two heartbeats or more")
    if given["log_level"] not in LOG_LEVELS:
        raise ConfigError(f"log_level is {shown(given['log_level'])}: it takes one of {', '.join(LOG_LEVELS)}")
    check_device(given["device"])


def shown(value: object) -> str:
    """Its repr, 80 characters at most; where it has none, as an int of 5000 digits, what it is."""
    try:
        return f"{value!r:.80}"
    except Exception:
        return f"an object of type {type(value).__name__}"


def check_range(name: str, value: int, low: int, high: int, why: str = "") -> None:
    """Raises ConfigError unless it is a whole number in that range; ``why`` ends its message."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name} is {shown(value)}: it takes a whole number, {low} to {high}{why}")


def whole(name: str, value: int, least: int | None = None) -> int:
    """TypeError if it is no whole number, ValueError if it is below ``least``."""
    if type(value) is not int and (not isinstance(value, int) or isinstance(value, bool)):
        raise TypeError(f"{name} is {shown(value)}: it takes a whole number")
    if least is not None and value < least:
        raise ValueError(f"{name} is {value}: it takes {least} or more")
    return value


def mapping(name: str, value: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Values by name, {} for None. TypeError if it is anything else."""
    if value is None:
        return {}
    if type(value) is not dict and not isinstance(value, Mapping):  # asking the abstract class takes a microsecond
        raise TypeError(f"{name} is {shown(value)}: it takes a dict of values by name")
    return value


def settings_of(value: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Values by ``NODE.INPUT``. TypeError if it is anything else."""
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f'settings is {shown(value)}: it takes a dict of values by "NODE.INPUT"')
    for name in value or {}:
        if not isinstance(name, str):
            raise TypeError(f'settings has the key {shown(name)}: it takes strings, "NODE.INPUT"')
    return value or {}


def node_ids(value: Iterable[str] | None) -> list[str] | None:
    """Ids of nodes; a string is one. TypeError if it is anything else."""
    if value is None:
        return None
    ids = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [None]
    if not all(isinstance(key, str | int) for key in ids):
        raise TypeError(f"outputs is {shown(value)}: it takes ids of nodes")
    return [str(key) for key in ids]


def observer_of(value: Any) -> Any:
    """Who is told of a run's progress, or None. TypeError if it lacks a method."""
    methods = ("node_started", "node_progress", "node_done")
    if value is not None and not all(callable(getattr(value, name, None)) for name in methods):
        raise TypeError(f"progress is {shown(value)}: it takes an object with the methods {', '.join(methods)}")
    return value


def output_folder(value: str | os.PathLike[str]) -> str:
    """A path that a folder may have. TypeError or ValueError if it is none."""
    if not isinstance(value, str | os.PathLike) or not isinstance(path := os.fspath(value), str):
        raise TypeError(f"output_dir is {shown(value)}: it takes the path of a folder")
    if not path or "\0" in path:
        raise ValueError(f"output_dir is {shown(path)}: it takes the path of a folder")
    return path


def check_seconds(name: str, value: float, *, zero: bool = False) -> None:
    """Raises ConfigError unless it is a number above 0 and below 1e9, or 0 where ``zero``."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < _AGES or (value == 0 and not zero):
        raise ConfigError(
            f"{name} is {shown(value)}: it takes seconds, {'0 or more' if zero else 'above 0'}, below 1e9"
        )


def check_device(value: str) -> None:
    """Raises ConfigError unless it is written as a device's name is."""
    if not isinstance(value, str) or not is_device(value):
        raise ConfigError(f"device is {shown(value)}: it takes {DEVICES}")


def policy_at(value: str | os.PathLike[str] | None) -> str:
    """A policy's name, or the absolute path of its file; "" for None. ConfigError if it is none that can be had."""
    if value is None or value == "":
        return ""
    from vortex_worker.sandbox.seccomp import load_policy  # only where one is named: it takes its time

    accepted = "execute, strict, cuda or the path of a TOML file"
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"policy is {shown(value)}: it takes {accepted}")
    name = os.fspath(value)
    is_file = "/" in name or name.endswith(".toml")
    try:
        load_policy(name)
    except ConfigError as error:
        raise ConfigError(str(error) if is_file else f"policy is {shown(name)}: it takes {accepted}") from None
    return os.path.abspath(name) if is_file else name


def module_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of Python modules. ConfigError if one can be none."""
    modules = tuple(names) if isinstance(names, Iterable) and not isinstance(names, str) else (names,)
    for name in modules:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"modules is {shown(name)}: it takes names of Python modules")
    return modules


def folder_list(value: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str | os.PathLike[str]]:
    """One folder or several, as a list."""
    return [value] if not isinstance(value, Iterable) or isinstance(value, str | os.PathLike) else list(value)


def folders_at(name: str, folders: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Absolute paths of folders, links resolved. ConfigError if one is not there."""
    absolute = []
    for folder in folders:
        if not isinstance(folder, str | os.PathLike) or "\0" in os.fspath(folder):
            raise ConfigError(f"{name} is {shown(folder)}: it takes paths of folders")
        path = Path(folder).resolve()
        if not path.is_dir():
            raise ConfigError(f"{name} is {os.fspath(folder)!r}: it takes folders that exist")
        if ":" in str(path):
            raise ConfigError(f"{name} is {os.fspath(folder)!r}: a path with ':' can't be passed to a worker")
        absolute.append(str(path))
    return tuple(absolute)


def check_passable(config: WorkerConfig) -> None:
    """Raises ConfigError if it is more than a worker can be passed."""
    size, most = len(json.dumps(config.to_env())), ZYGOTE_MESSAGE - _REST_OF_MESSAGE
    if size > most:
        raise ConfigError(
            f"custom_nodes and models, and what leads to them, take {size} bytes to pass on: {most} at most; "
            "a folder above several is one"
        )


def spellings_of(folders: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Absolute paths of folders as they were written, where links lead to them."""
    written = dict.fromkeys(map(os.path.abspath, folders))
    return tuple(path for path in written if os.path.realpath(path) != path and os.path.isdir(path) and ":" not in path)
