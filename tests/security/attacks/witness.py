"""Looks from outside at all that an attack could have changed.

Nothing here asks the worker: files, sockets, terminals, processes and memory are looked at in the process that runs
the tests, and what the kernel says of other processes is read in /proc.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import tty
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

_STATUS = (
    "Umask", "TracerPid", "Uid", "Gid", "Groups", "VmLck", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
    "NoNewPrivs", "Seccomp", "Seccomp_filters", "Cpus_allowed",
)  # fmt: skip
_LEFT = ("Threads", "SigBlk", "SigIgn", "SigCgt", "CapEff")
#: What a descriptor may lead to that is worth a look: not files, which Landlock answers for.
_KINDS = re.compile(r"(anon_inode:\S+|socket|pipe|/memfd|/dev/pts|mnt|net|/secretmem)")
_SIGNALS = (signal.SIGUSR1, signal.SIGIO)
MANY = 300  # descriptors; a worker's limit is 256


class Witness:
    """The world that is attacked: files, listeners, a terminal, a bystander; and a look at all of it.

    Args:
        root: an empty folder.
        nodes: the folder of nodes that is copied into it.
        secret: what no attack may bring home.
    """

    def __init__(self, root: Path, secret: str, mark: str) -> None:
        self.outside, self.models = root / "outside", root / "models"
        self._secret, self.mark = secret, mark
        self._own = contextlib.ExitStack()
        self._signals: list[int] = []
        self._heard = b""
        self._typed = b""
        self.build()
        self.secret_fd = os.open(self.outside / "secret", os.O_RDONLY)
        self._own.callback(os.close, self.secret_fd)
        self.memory = ctypes.create_string_buffer(secret.encode())  # a secret in this process's memory
        self.bystander = self._start_bystander()
        self._own.callback(lambda: (self.bystander.kill(), self.bystander.wait()))
        self._listen()
        self.master, slave = os.openpty()
        tty.setraw(slave)
        attributes = termios.tcgetattr(slave)
        attributes[3] |= termios.ECHO
        termios.tcsetattr(slave, 0, attributes)
        self.terminal = os.ttyname(slave)
        self._own.callback(os.close, self.master)
        self._own.callback(os.close, slave)
        os.set_blocking(self.master, False)
        for number in _SIGNALS:
            self._own.callback(signal.signal, number, signal.signal(number, self._on_signal))

    def close(self) -> None:
        self._own.close()

    def _on_signal(self, number: int, frame: Any) -> None:
        self._signals.append(number)

    # ---- what there is

    def build(self) -> None:
        """Make the files as they were."""
        outside, models = self.outside, self.models
        with contextlib.suppress(OSError):
            subprocess.run(["umount", "-l", outside / "mnt"], stderr=subprocess.DEVNULL, check=False)
        for folder in (outside, models, outside / "mnt", models / "sub"):
            folder.mkdir(parents=True, exist_ok=True)
        self._remove_strangers()
        (outside / "secret").write_text(self._secret)
        (models / "weights.bin").write_bytes(bytes(8192))
        (models / "flicker").write_bytes(b"harmless")
        (models / "script.sh").write_text('#!/bin/sh\n: > "$1"\n')
        (models / "script.sh").chmod(0o755)
        (models / "script.py").write_text("import os\n")
        for name, target in (("link", outside / "secret"), ("folder", outside)):
            (models / name).unlink(missing_ok=True)
            (models / name).symlink_to(target)

    def _remove_strangers(self) -> None:
        known = {self.outside / name for name in ("secret", "mnt", "stream", "datagram")} | {self.models / "sub"}
        for path in (*self.outside.iterdir(), *self.models.iterdir()):
            if path not in known:
                path.unlink() if not path.is_dir() or path.is_symlink() else path.rmdir()
        for path in Path("/dev/shm").glob(f"vw-attack-{self.mark}*"):
            path.unlink()

    def _start_bystander(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sleep", "1d"], env={"SECRET": self._secret})

    def _listen(self) -> None:
        def listener(family: int, kind: int, address: Any) -> socket.socket:
            made = self._own.enter_context(socket.socket(family, kind))
            made.bind(address)
            made.setblocking(False)
            if kind == socket.SOCK_STREAM:
                made.listen()
            return made

        self.abstract = f"vw-attack-{self.mark}"
        self._listeners = [
            listener(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            listener(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            listener(socket.AF_UNIX, socket.SOCK_STREAM, str(self.outside / "stream")),
            listener(socket.AF_UNIX, socket.SOCK_DGRAM, str(self.outside / "datagram")),
            listener(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + self.abstract),
        ]
        self.tcp, self.udp = (one.getsockname()[1] for one in self._listeners[:2])

    # ---- what can be seen of it

    def look(self) -> dict[str, Any]:
        """All that is not one worker's: value by what it is called in an attack's ``effect``."""
        return {
            "files": self._files(),
            "shared memory": sorted(Path("/dev/shm").glob(f"vw-attack-{self.mark}*")),
            "received": self._received(),
            "terminal": self._terminal(),
            "supervisor": (list(self._signals), victim(os.getpid())),
            "bystander": victim(self.bystander.pid) if self.bystander.poll() is None else "dead",
            "keys": Path("/proc/keys").read_text().count(f"vw-attack-{self.mark}")
            if Path("/proc/keys").exists()
            else None,
            "sysv": sorted(sysv()),
            "mounts": Path("/proc/self/mountinfo").read_text().count(str(self.outside)),
        }

    def _files(self) -> list[Any]:
        found = []
        for path in sorted((*self.outside.rglob("*"), *self.models.rglob("*"), *self.models.parent.glob("nodes/**/*"))):
            info = path.lstat()
            times = () if path.is_dir() and not path.is_symlink() else (info.st_mtime_ns, info.st_size, info.st_ino)
            attributes = os.listxattr(path, follow_symlinks=False)
            found.append((str(path), info.st_mode, info.st_uid, info.st_nlink, attributes, times))
        return found

    def _received(self) -> bytes:
        while ready := select.select(self._listeners, [], [], 0)[0]:
            for one in ready:
                if one.type == socket.SOCK_STREAM:
                    connection, _ = one.accept()
                    with connection:
                        connection.settimeout(0.2)
                        self._heard += b"connection "
                        with contextlib.suppress(OSError):
                            self._heard += connection.recv(100)
                else:
                    self._heard += one.recv(1000)
        return self._heard

    def _terminal(self) -> bytes:
        with contextlib.suppress(OSError):
            self._typed += os.read(self.master, 1000)
        return self._typed

    # ---- and made as it was

    def restore(self) -> None:
        """Undo what an attack did that succeeded."""
        self.build()
        if self.bystander.poll() is not None or "TracerPid" in str(victim(self.bystander.pid)):
            self.bystander.kill()
            self.bystander.wait()
            self.bystander = self._start_bystander()
        for kind, number in sysv():
            remove_sysv(kind, number)


def state(pid: int) -> dict[str, Any]:
    """What a process may do, as the kernel has it. Empty if there is none."""
    folder = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        stat = (folder / "stat").read_text().rpartition(")")[2].split()
        found: dict[str, Any] = {name: status.get(name, "").strip() for name in _STATUS}
        found |= {"nice": stat[16], "policy": stat[38], "session": stat[3]}
        for name in ("limits", "oom_score_adj", "personality"):
            found[name] = readable(lambda name=name: (folder / name).read_text())
        for name in ("root", "cwd", "ns/mnt", "ns/net", "ns/user", "ns/uts", "ns/ipc"):
            found[name] = readable(lambda name=name: os.readlink(folder / name))
        return found
    return {}


def victim(pid: int) -> dict[str, Any]:
    """A process that attacks are aimed at: what it may do, and the block of memory that its environment came in."""
    return state(pid) | {"environment": readable(lambda: zlib.crc32(Path(f"/proc/{pid}/environ").read_bytes()))}


def descriptors(pid: int) -> Counter[str] | None:
    """The kinds of what a process has open, each thing once. None: it may not be looked into."""

    def kinds() -> Counter[str]:
        links = {readable(lambda fd=fd: os.readlink(f"/proc/{pid}/fd/{fd}")) for fd in os.listdir(f"/proc/{pid}/fd")}
        return Counter(match[1] for link in links if (match := _KINDS.match(link or "")))

    return readable(kinds)


def footprint(pid: int) -> dict[str, Any]:
    """What a job leaves behind in its own process, of what the kernel knows. Empty if there is none."""
    with contextlib.suppress(OSError):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return {name: status.get(name) for name in _LEFT} | {"descriptors": count_descriptors(pid)}
    return {}


def count_descriptors(pid: int) -> int | None:
    return readable(lambda: len(os.listdir(f"/proc/{pid}/fd")))


def mappings(pid: int) -> list[Any] | None:
    """A process's memory that is shared, or executable and a file's. None: it may not be looked into."""

    def found() -> list[Any]:
        lines = []
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            addresses, rights, _, _, inode, *path = line.split(None, 5)
            if rights[3] == "s" or ("x" in rights and inode != "0"):
                start, end = (int(a, 16) for a in addresses.split("-"))
                lines.append((rights, *path, end - start))
        return sorted(lines, key=str)

    return readable(found)


def strangers(marker: bytes, known: set[int], session: int) -> set[int]:
    """Processes that have ``marker`` in their environment, or are of that session, and are not known."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) not in known:
            with contextlib.suppress(OSError):
                if int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[3]) == session:
                    found.add(int(entry))  # also where its environment may not be looked at
                elif marker in Path(f"/proc/{entry}/environ").read_bytes():
                    found.add(int(entry))
    return found


def environment_address(pid: int) -> int:
    """Where a process has the block that its environment came in; 0: the kernel doesn't say."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[47])


def sysv() -> set[tuple[str, int]]:
    """System V objects without a key, of this user."""
    found = set()
    for kind in ("shm", "sem", "msg"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/sysvipc/{kind}").read_text().splitlines()[1:]:
                words = line.split()
                if words[0] == "0":
                    found.add((kind, int(words[1])))
    return found


def remove_sysv(kind: str, number: int) -> None:
    libc = ctypes.CDLL(None)
    if kind == "sem":
        libc.semctl(number, 0, 0)
    else:
        getattr(libc, f"{kind}ctl")(number, 0, None)


def readable(read: Any) -> Any:
    """What it gives, or None where this user may not look."""
    try:
        return read()
    except OSError:
        return None


assert sys.platform == "linux"
