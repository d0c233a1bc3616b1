"""A worker's configuration, read once from the environment.

============================  =================================================================
``VORTEX_SOCKET``             path of the supervisor's Unix socket, or ``fd:N``, a connected one
``VORTEX_SHM_FD``             descriptor of the arena (a memfd), inherited; or else
``VORTEX_SHM_NAME``           name of the arena in POSIX shared memory, such as ``/vortex``
``VORTEX_SHM_SIZE``           the arena's size in bytes; unset: as large as it is
``VORTEX_SHM_DATA``           offset where its data begins, to its end; unset: where its header says,
                              which other workers can write
``VORTEX_WORKER_ID``          a name for logs and the handshake
``VORTEX_LOG_LEVEL``          ``debug``, ``info``, ``warning``, ``error``
``VORTEX_SECCOMP_POLICY``     execute-stage policy: ``execute``, ``strict``, ``cuda``, or a TOML file; unset:
                              ``cuda`` with an NVIDIA card, else ``execute``
``VORTEX_CUSTOM_NODES``       folders of custom nodes, separated by ``:``
``VORTEX_MODELS``             folders that nodes may read, separated by ``:``
``VORTEX_SPELLINGS``          paths by which nodes may know these folders, too, through links, separated by ``:``
``VORTEX_MODULES``            modules to import before lockdown, separated by ``:``
``VORTEX_DEVICE``             ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``
``VORTEX_MAX_FRAME``          largest control frame, bytes
``VORTEX_HEARTBEAT_MS``       interval of the heartbeat; the supervisor's answer overrides it
``VORTEX_THREADS``            threads of one operation; 0: torch's own choice
``VORTEX_MEMORY_LIMIT``       bytes of private memory (RLIMIT_DATA); 0: none
``VORTEX_WXORX``              ``1``: no memory is executable that may be, or was, written after lockdown: slower
``VORTEX_LANDLOCK_ABI``       refuse to run where the kernel's Landlock is older than this ABI
``VORTEX_NAME_DENIALS``       ``1``: hand the supervisor, with the second handshake, a descriptor by
                              which the kernel tells it of denied calls (docs/sandbox.md)
``VORTEX_ALLOW_UNSANDBOXED``  ``1``: run also where a layer of the sandbox can't be had
============================  =================================================================
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vortex_worker.defaults import HEARTBEAT_MS, MAX_FRAME
from vortex_worker.errors import ConfigError

LOG_LEVELS = ("debug", "info", "warning", "error")
_MAX_FRAME_CAP = 1 << 30  # what a u32 length and sane memory allow
DEVICES = "auto, cpu, cuda, cuda:N or mps"
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,3})?")


def is_device(name: str) -> bool:
    """Whether ``name`` is written as a device's is; whether there is one, a worker sees when it has torch."""
    return _DEVICE.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Everything a worker is told before its handshake. See the module's table."""

    socket: str
    shm_fd: int = -1
    shm_name: str = ""
    shm_size: int = 0
    shm_data: int = 0
    worker_id: str = "worker"
    log_level: str = "info"
    seccomp_policy: str = ""
    custom_nodes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    spellings: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    device: str = "auto"
    max_frame: int = MAX_FRAME
    heartbeat_ms: int = HEARTBEAT_MS
    threads: int = 0
    memory_limit: int = 0
    wxorx: bool = False
    landlock_abi: int = 0
    name_denials: bool = False
    allow_unsandboxed: bool = False

    @property
    def has_card(self) -> bool:
        """Whether the worker is to compute on an NVIDIA card."""
        return self.device.startswith("cuda")

    def settled(self) -> WorkerConfig:
        """With what depends on the machine filled in: what ``auto`` is here, and the policy for it."""
        device = self.device
        if device == "auto" and sys.platform == "linux":
            device = "cuda" if _has_card() else "cpu"
        settled = replace(self, device=device)
        return replace(settled, seccomp_policy=self.seccomp_policy or ("cuda" if settled.has_card else "execute"))

    @property
    def socket_fd(self) -> int:
        """The inherited socket of ``fd:N``, or -1 when ``socket`` is a path."""
        return int(self.socket[3:]) if self.socket.startswith("fd:") else -1

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> WorkerConfig:
        """Read ``environ``.

        Raises:
            ConfigError: one line that names the variable, what it held and what it takes.
        """
        env = _Reader(environ)
        socket = env.text("VORTEX_SOCKET", None, "the path of the supervisor's Unix socket, or fd:N")
        if socket.startswith("fd:") and not (socket[3:].isascii() and socket[3:].isdigit()):
            raise env.bad("VORTEX_SOCKET", "the path of the supervisor's Unix socket, or fd:N with N a descriptor")
        if not socket.startswith("fd:"):
            socket = os.path.abspath(socket)  # the working directory will be another when it is connected to
        shm_fd = env.number("VORTEX_SHM_FD", -1, 0, 1 << 20, "an inherited descriptor")
        shm_name = env.text("VORTEX_SHM_NAME", "", "a POSIX shared memory name")
        if (shm_fd < 0) == (not shm_name):
            have = "both are" if shm_name else "neither is"
            raise ConfigError(
                f"VORTEX_SHM_FD (an inherited descriptor) or VORTEX_SHM_NAME (a shared memory name): "
                f"{have} set, exactly one must be"
            )
        if shm_name and (not shm_name.startswith("/") or "/" in shm_name[1:] or len(shm_name) > 255):
            raise env.bad("VORTEX_SHM_NAME", "a '/' and then up to 254 characters without '/'")
        return cls(
            socket=socket,
            shm_fd=shm_fd,
            shm_name=shm_name,
            shm_size=env.number("VORTEX_SHM_SIZE", 0, 0, 1 << 62, "a size in bytes"),
            shm_data=env.number("VORTEX_SHM_DATA", 0, 0, 1 << 62, "an offset in bytes"),
            worker_id=env.text("VORTEX_WORKER_ID", f"worker-{os.getpid()}", "a name"),
            log_level=env.choice("VORTEX_LOG_LEVEL", "info", LOG_LEVELS),
            seccomp_policy=env.text("VORTEX_SECCOMP_POLICY", "", "a policy's name or file"),
            custom_nodes=env.folders("VORTEX_CUSTOM_NODES"),
            models=env.folders("VORTEX_MODELS"),
            spellings=env.folders("VORTEX_SPELLINGS", must_exist=False),
            modules=env.modules("VORTEX_MODULES"),
            device=env.device("VORTEX_DEVICE", "auto"),
            max_frame=env.number("VORTEX_MAX_FRAME", MAX_FRAME, 4096, _MAX_FRAME_CAP, "a size in bytes"),
            heartbeat_ms=env.number("VORTEX_HEARTBEAT_MS", HEARTBEAT_MS, 1, 60_000, "milliseconds"),
            threads=env.number("VORTEX_THREADS", 0, 0, 4096, "a count of threads"),
            memory_limit=env.number("VORTEX_MEMORY_LIMIT", 0, 0, 1 << 62, "a size in bytes"),
            wxorx=env.choice("VORTEX_WXORX", "0", ("0", "1")) == "1",
            landlock_abi=env.number("VORTEX_LANDLOCK_ABI", 0, 0, 99, "an ABI number"),
            name_denials=env.choice("VORTEX_NAME_DENIALS", "0", ("0", "1")) == "1",
            allow_unsandboxed=env.choice("VORTEX_ALLOW_UNSANDBOXED", "0", ("0", "1")) == "1",
        )

    def to_env(self) -> dict[str, str]:
        """The environment that ``from_env`` reads this configuration from."""
        env = {
            "VORTEX_SOCKET": self.socket,
            "VORTEX_WORKER_ID": self.worker_id,
            "VORTEX_LOG_LEVEL": self.log_level,
            "VORTEX_SECCOMP_POLICY": self.seccomp_policy,
            "VORTEX_CUSTOM_NODES": ":".join(self.custom_nodes),
            "VORTEX_MODELS": ":".join(self.models),
            "VORTEX_SPELLINGS": ":".join(self.spellings),
            "VORTEX_MODULES": ":".join(self.modules),
            "VORTEX_DEVICE": self.device,
            "VORTEX_MAX_FRAME": str(self.max_frame),
            "VORTEX_HEARTBEAT_MS": str(self.heartbeat_ms),
            "VORTEX_THREADS": str(self.threads),
            "VORTEX_MEMORY_LIMIT": str(self.memory_limit),
            "VORTEX_WXORX": "1" if self.wxorx else "0",
            "VORTEX_LANDLOCK_ABI": str(self.landlock_abi),
            "VORTEX_NAME_DENIALS": "1" if self.name_denials else "0",
            "VORTEX_ALLOW_UNSANDBOXED": "1" if self.allow_unsandboxed else "0",
        }
        if self.shm_fd >= 0:
            env["VORTEX_SHM_FD"] = str(self.shm_fd)
        if self.shm_name:
            env["VORTEX_SHM_NAME"] = self.shm_name
        if self.shm_size:
            env["VORTEX_SHM_SIZE"] = str(self.shm_size)
        if self.shm_data:
            env["VORTEX_SHM_DATA"] = str(self.shm_data)
        return env


def _has_card() -> bool:
    """Whether there is an NVIDIA card, and a torch that was built for it. Imports nothing: torch takes a second."""
    if not os.path.exists("/dev/nvidiactl"):
        return False
    torch = importlib.util.find_spec("torch")
    folder = os.path.dirname(torch.origin or "") if torch else ""
    return os.path.exists(os.path.join(folder, "lib", "libtorch_cuda.so"))


class _Reader:
    """Typed reads of one environment; an empty value counts as unset."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def bad(self, name: str, accepted: str) -> ConfigError:
        return ConfigError(f"{name} is {self._environ.get(name, '')!r}: it takes {accepted}")

    def text(self, name: str, default: str | None, accepted: str) -> str:
        value = self._environ.get(name, "")
        if "\0" in value:
            raise self.bad(name, accepted)
        if value:
            return value
        if default is None:
            raise ConfigError(f"{name} is not set: it takes {accepted}")
        return default

    def number(self, name: str, default: int, low: int, high: int, what: str) -> int:
        text = self._environ.get(name, "")
        if not text:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
            raise self.bad(name, f"{what}, {low} to {high}")
        return int(text)

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        value = self._environ.get(name, "") or default
        if value not in choices:
            raise self.bad(name, " or ".join(choices))
        return value

    def device(self, name: str, default: str) -> str:
        value = self._environ.get(name, "") or default
        if not is_device(value):
            raise self.bad(name, DEVICES)
        return value

    def modules(self, name: str) -> tuple[str, ...]:
        modules = tuple(part for part in self._environ.get(name, "").split(":") if part)
        for module in modules:
            if not all(part.isidentifier() for part in module.split(".")):
                raise self.bad(name, f"names of Python modules, separated by ':'; {module!r} is none")
        return modules

    def folders(self, name: str, *, must_exist: bool = True) -> tuple[str, ...]:
        folders = tuple(part for part in self._environ.get(name, "").split(":") if part)
        for folder in folders:
            if not os.path.isabs(folder):
                raise self.bad(name, f"absolute paths of folders, separated by ':'; {folder!r} is relative")
            if must_exist and not os.path.isdir(folder):
                raise self.bad(name, f"folders that exist; {folder!r} does not")
        return folders
