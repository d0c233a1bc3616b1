"""Which files a worker may still read: the list for Landlock, in the order a person would give it.

    rules = readonly_rules([*config.custom_nodes, *config.models])
    landlock_restrict(rules)                    # _core.lockdown; from here on every other path is closed

Everything is read-only, and nothing may be executed. What is *not* on the list: home directories, ``/etc``,
``/proc``, ``/dev/shm``, ``/tmp``, and the folder that the worker was started in.

Landlock covers opening, not asking whether a path exists: that is what the view is for (``sandbox/view.py``), which
is made of the same list.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Collection, Iterable, Iterator

from vortex_worker.errors import ConfigError

__all__ = ["READ_DIR", "READ_FILE", "device_rules", "inside", "outermost", "readonly_rules", "spellings"]

WRITE_FILE = 1 << 1  # LANDLOCK_ACCESS_FS_WRITE_FILE
READ_FILE = 1 << 2  # LANDLOCK_ACCESS_FS_READ_FILE
READ_DIR = 1 << 3  # LANDLOCK_ACCESS_FS_READ_DIR
TRUNCATE = 1 << 14  # LANDLOCK_ACCESS_FS_TRUNCATE, ABI 3
IOCTL_DEV = 1 << 15  # LANDLOCK_ACCESS_FS_IOCTL_DEV, ABI 5

#: Read by the C library, torch and image libraries wherever they are. One that a system lacks is left out.
SYSTEM_PATHS = (
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/etc/ld.so.cache",  # where the loader finds all of these
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/usr/share/fonts",  # text drawn into images
    "/usr/local/share/fonts",
    "/proc/cpuinfo",  # torch chooses its kernels by the CPU's features,
    "/sys/devices/system/cpu",  # and its threads by the number of CPUs
    "/dev/null",
    "/dev/urandom",  # std::random_device
)

_NVIDIA_DEVICES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia[0-9]*")
#: Where the driver and the kernel tell of cards, of the device files' numbers, and of memory and which is near a card.
_NVIDIA_TOLD = (
    "/proc/driver/nvidia",
    "/proc/devices",
    "/proc/sys/vm/mmap_min_addr",
    "/sys/module/nvidia",
    "/sys/bus/pci/drivers/nvidia/*:*",
    "/sys/devices/system/memory/block_size_bytes",
    "/sys/devices/system/node",
)

#: Opening these would open (nearly) everything, so no configured path may be one of them.
_TOO_MUCH = ("/", "/dev", "/etc", "/home", "/proc", "/root", "/run", "/sys", "/tmp", "/usr", "/var")
_HOMES = ("/home", "/var/home", "/Users")  # whatever lies directly in these is somebody's home


def readonly_rules(extra_paths: Iterable[str | os.PathLike[str]] = ()) -> list[tuple[bytes, int]]:
    """``(path, rights)`` for ``_core.lockdown.landlock_restrict``: what a worker may read, and nothing else.

    In this order: the Python installation with every folder it imports from, this package, the system's
    libraries, then ``extra_paths``. Links are resolved here, because Landlock binds to what a link leads to;
    links *inside* a folder lead out of it and are closed.

    Args:
        extra_paths: folders or files of models and custom nodes.

    Raises:
        ConfigError: one of ``extra_paths`` is missing, or so wide that it would open everything.
    """
    standard = [os.path.realpath(path) for path in _standard() if os.path.exists(path)]
    configured = [_configured(os.fspath(path)) for path in extra_paths]
    return [(os.fsencode(path), _rights(path)) for path in outermost([*standard, *configured])]


def spellings(extra_paths: Iterable[str | os.PathLike[str]] = ()) -> list[str]:
    """The same paths as Python, the loader and the configuration write them, with links."""
    configured = (os.path.expanduser(os.fspath(path)) for path in extra_paths)
    paths = dict.fromkeys((*_standard(), *configured))
    return [path for path in paths if os.path.isabs(path) and os.path.exists(path)]


def device_rules() -> list[tuple[bytes, int]]:
    """NVIDIA's device files, for reading, writing and ioctl, where its driver tells of itself, and its libraries.

    For a worker of a ``cuda`` device only.
    """
    devices = [path for pattern in _NVIDIA_DEVICES for path in sorted(glob.glob(pattern))]
    libraries = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if os.path.isabs(path)]
    told = outermost([os.path.realpath(path) for pattern in _NVIDIA_TOLD for path in sorted(glob.glob(pattern))])
    told += [real for path in libraries if os.path.isdir(path) and not _too_wide(real := os.path.realpath(path))]
    own = os.fsencode(os.path.realpath("/proc/self"))  # in the worker: a rule goes by no link
    return [
        # CUDA gives its threads names, and gives up if it can't. Those are files in here, to be written only; what
        # else is written here, the filter of jobs prevents.
        (own + b"/task", WRITE_FILE | TRUNCATE),
        (own + b"/maps", READ_FILE),  # where there is room for the card's memory
        (own + b"/status", READ_FILE),  # which memory is near
        *((os.fsencode(path), READ_FILE | WRITE_FILE | IOCTL_DEV) for path in devices),
        *((os.fsencode(path), _rights(path)) for path in told),
    ]


def _standard() -> Iterable[str]:
    """What every worker reads, each path once."""
    return dict.fromkeys((*_python(), *_package(), *SYSTEM_PATHS))


def _python() -> Iterator[str]:
    """Where this interpreter imports from, and the shared libraries next to it."""
    for prefix in dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)):
        for name in dict.fromkeys(("lib", sys.platlibdir)):
            yield os.path.join(prefix, name)
    yield os.path.dirname(os.path.realpath(os.__file__))  # the standard library, where it has its own prefix
    # "python -m" and "python -c" put the folder they are started in first on sys.path. Nobody asked for it
    # to be readable, and it may well be somebody's home.
    for entry in sys.path:
        if not os.path.isabs(entry) or not os.path.exists(entry):
            continue
        if not _is_current(entry) and not _too_wide(os.path.realpath(entry)):
            yield entry
    for finder in sys.meta_path:
        # Editable installs are not on sys.path. The finder of setuptools has a table of name → folder, that of
        # meson-python the build folder.
        module = sys.modules.get(getattr(finder, "__module__", ""), None)
        mapping = getattr(module, "MAPPING", None)
        folders = [*mapping.values()] if isinstance(mapping, dict) else [getattr(finder, "_build_path", None)]
        yield from (folder for folder in folders if isinstance(folder, str))


def _package() -> Iterator[str]:
    """This package's folders: one when installed; source and build folder in a development install."""
    package = __name__.partition(".")[0]
    inner = package + "."
    own = [module for name, module in list(sys.modules.items()) if name.startswith(inner) or name == package]
    files = (getattr(module, "__file__", None) for module in own)
    yield from {os.path.dirname(file): None for file in files if file}


def _configured(path: str) -> str:
    if not path:
        raise ConfigError("a folder of models or custom nodes is the empty string; it takes a path")
    real = os.path.realpath(os.path.expanduser(path))
    if not os.path.exists(real):
        raise ConfigError(f"folder of models or custom nodes {path!r} does not exist (it leads to {real!r})")
    if _too_wide(real):
        raise ConfigError(f"folder of models or custom nodes {path!r} would open all of {real!r} to untrusted code")
    return real


def _too_wide(path: str) -> bool:
    """Whether opening this would open (nearly) everything, or somebody's home."""
    home = os.path.realpath(os.environ.get("HOME") or "/")
    return (
        path in _TOO_MUCH
        or os.path.dirname(path) in _HOMES
        or home == path
        or home.startswith(path + os.sep)  # above the home: its other contents are not known to be harmless
    )


def _is_current(path: str) -> bool:
    try:
        return os.path.samefile(path, os.curdir)
    except FileNotFoundError:  # the folder it was started in is gone
        return False


def outermost(paths: Iterable[str]) -> list[str]:
    """Without repetitions, and without what lies inside another of them."""
    unique = dict.fromkeys(paths)
    return [path for path in unique if not inside(path, unique)]


def inside(path: str, folders: Collection[str]) -> bool:
    """Whether it lies in one of the folders, or deeper."""
    return any(parent in folders for parent in _parents(path))


def _parents(path: str) -> Iterator[str]:
    while (parent := os.path.dirname(path)) != path:
        yield parent
        path = parent


def _rights(path: str) -> int:
    return READ_FILE | READ_DIR if os.path.isdir(path) else READ_FILE
