"""The pieces of an ordinary worker's day, which workload.py runs: ``JOBS``, and the ways in which it ``ENDS``."""

from __future__ import annotations

import ctypes
import io
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

JOBS: dict[str, Callable[[Path], Any]] = {}


def job(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    JOBS[function.__name__] = function
    return function


@job
def matmul(folder: Path) -> None:
    import torch

    a = torch.randn(700, 700)
    assert torch.allclose(a @ torch.eye(700), a)


@job
def conv2d_by_onednn(folder: Path) -> None:
    import torch

    x, w = torch.randn(1, 64, 32, 32), torch.randn(64, 64, 3, 3)
    fast = torch.nn.functional.conv2d(x, w, padding=1)
    with torch.backends.mkldnn.flags(enabled=False):
        slow = torch.nn.functional.conv2d(x, w, padding=1)
    assert torch.allclose(fast, slow, rtol=1e-3, atol=1e-3)


@job
def bf16(folder: Path) -> None:
    import torch

    a = torch.randn(256, 256)
    assert torch.allclose((a.bfloat16() @ a.bfloat16()).float(), a @ a, rtol=0.1, atol=1.0)
    torch.nn.functional.conv2d(torch.randn(1, 8, 16, 16).bfloat16(), torch.randn(8, 8, 3, 3).bfloat16())


@job
def a_network(folder: Path) -> None:
    import torch

    nn = torch.nn
    net = nn.Sequential(
        nn.Conv2d(4, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.SiLU(), nn.Upsample(scale_factor=2),
        nn.ConvTranspose2d(32, 4, 3),
    )  # fmt: skip
    net(torch.randn(1, 4, 16, 16)).sum().backward()
    q = torch.randn(1, 8, 64, 64)
    nn.functional.scaled_dot_product_attention(q, q, q)
    nn.LSTM(8, 8)(torch.randn(3, 2, 8))


@job
def a_sampler(folder: Path) -> None:
    import torch

    generator = torch.Generator().manual_seed(2**64 - 1)
    x = torch.randn(1, 4, 64, 64, generator=generator)
    w = torch.randn(4, 4, 3, 3)
    for sigma in torch.linspace(14.6, 0.03, 10):
        x = x - 0.1 * torch.nn.functional.conv2d(x / (sigma**2 + 1) ** 0.5, w, padding=1)
    assert torch.isfinite(x).all()


@job
def mathematics(folder: Path) -> None:
    import numpy as np
    import torch

    torch.linalg.svd(torch.randn(64, 64))
    torch.fft.fft(torch.randn(64))
    torch.einsum("ij,jk->ik", torch.randn(8, 8), torch.randn(8, 8))
    torch.nn.functional.interpolate(torch.randn(1, 3, 64, 64), scale_factor=2, mode="bicubic", antialias=True)
    np.linalg.svd(np.ones((64, 64)))
    np.fft.fft(np.ones(8))
    np.random.default_rng().normal(size=4)
    np.ones((300, 300)) @ np.ones((300, 300))


@job
def memory(folder: Path) -> None:
    import torch

    for size in (1 << 10, 1 << 20, 64 << 20):
        torch.ones(size)
    growing = bytearray()
    while len(growing) < 8 << 20:
        growing.extend(bytes(1 << 20))  # realloc: mremap is refused, and the C library copies


@job
def safetensors_by_path(folder: Path) -> None:
    import safetensors
    import safetensors.torch

    assert safetensors.torch.load_file(folder / "model.safetensors")["a"].sum() == 64
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert file.get_tensor("a").shape == (8, 8)
        assert file.get_slice("a")[:2].sum() == 16


@job
def torch_load(folder: Path) -> None:
    import torch

    assert torch.load(folder / "model.pt", weights_only=True)["a"].sum() == 64
    assert torch.load(folder / "model.pt", weights_only=True, mmap=True)["a"].sum() == 64


@job
def checkpoint_as_bytes(folder: Path) -> None:
    import safetensors.torch
    import torch

    data = safetensors.torch.save({"a": torch.ones(8, 8)})
    assert safetensors.torch.load(data)["a"].sum() == 64
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(8, 8)}, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)["a"].sum() == 64


@job
def images(folder: Path) -> str:
    import numpy as np
    from PIL import Image, ImageDraw, ImageFilter, ImageFont, features

    image = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    ImageDraw.Draw(image).text((1, 1), "hi", font=ImageFont.load_default(12))
    image.filter(ImageFilter.GaussianBlur(2)).resize((32, 32), Image.Resampling.LANCZOS).rotate(20)
    done = []
    for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        if name in ("WEBP", "AVIF") and not features.check(name.lower()):
            continue
        buffer = io.BytesIO()
        image.save(buffer, name)
        assert Image.open(io.BytesIO(buffer.getvalue())).convert("RGB").size == (64, 64)
        done.append(name)
    return "ok " + " ".join(done)


@job
def columns(folder: Path) -> None:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    batch = pa.record_batch([pa.array([1.0, 2.0])], names=["a"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    assert pa.ipc.open_stream(sink.getvalue()).read_next_batch().num_rows == 2


@job
def protobuf(folder: Path) -> None:
    from google.protobuf import wrappers_pb2

    message = wrappers_pb2.StringValue(value="x")
    assert wrappers_pb2.StringValue.FromString(message.SerializeToString()) == message


@job
def a_custom_node(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    import node_pack  # type: ignore[import-not-found]

    assert node_pack.double(21) == 42


@job
def threads(folder: Path) -> None:
    thread = threading.Thread(target=time.sleep, args=(0.001,))
    thread.start()
    thread.join()
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(abs, [-1, -2])) == [1, 2]
    threading.Event().wait(0.001)


@job
def waiting(folder: Path) -> None:
    time.sleep(0.001)
    assert not threading.Event().wait(0.001)


@job
def the_standard_library(folder: Path) -> None:
    """Pure modules that nobody had imported yet, and a traceback."""
    import ast
    import colorsys
    import difflib
    import html
    import platform
    import uuid

    assert all((ast, colorsys, difflib, html, uuid.uuid4()))
    assert platform.platform()  # would ask /bin/uname, and does without
    try:
        raise KeyError("x")
    except KeyError:
        assert "KeyError" in traceback.format_exc()
    assert all((os.path.expanduser("~"), os.getcwd(), os.cpu_count()))


@job
def callbacks(folder: Path) -> None:
    assert ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 7)() == 7


@job
def the_control_socket(folder: Path) -> None:
    """Frames, and waiting for them, as the event loop does."""
    with CONTROL[0], CONTROL[1]:
        CONTROL[0].send(b"job")
        assert CONTROL[1].recv(timeout=1) == b"job"
        with pytest.raises(TimeoutError):
            CONTROL[0].recv(timeout=0.001)


@job
def time_spent(folder: Path) -> None:
    assert time.process_time() >= 0
    assert time.thread_time() >= 0


@job
def a_stop_and_a_continue(folder: Path) -> None:
    """The parent stops this process while it waits: the wait is resumed, and no longer for it."""
    print("stop me", file=sys.stderr, flush=True)
    begun = time.monotonic()
    threading.Event().wait(0.1)
    assert time.monotonic() - begun >= 0.1
    print("stop me", file=sys.stderr, flush=True)
    ctypes.CDLL(None).usleep(100_000)  # cut short: who sleeps this way has to look at the clock


@job
def memory_mapped_files(folder: Path) -> None:
    import numpy as np

    path = folder / "node_pack.py"
    assert np.memmap(path, np.uint8, mode="c").size == path.stat().st_size
    with pytest.raises(PermissionError):
        np.memmap(path, np.uint8, mode="r")
    with open(os.dup(os.open(path, os.O_RDONLY))) as file:
        assert not os.get_inheritable(file.fileno())
        assert os.pread(file.fileno(), 6, 0) == b"import"


@job
def a_slip_of_the_pen(folder: Path) -> None:
    with pytest.raises(SyntaxError) as caught:
        import slip  # type: ignore[import-not-found]  # noqa: F401
    assert caught.value.filename == str(folder / "slip.py")
    assert "half" in str(caught.value.text)  # its line was read once more, to be quoted


@job
def looking_around(folder: Path) -> None:
    assert os.listdir(folder)
    assert os.access(folder / "model.pt", os.R_OK)
    assert os.access(folder / "model.pt", os.R_OK, effective_ids=True)
    assert os.path.samefile(os.path.realpath(folder), folder)
    with pytest.raises(OSError, match="Invalid argument"):  # it is no link, and that was looked at
        os.readlink(folder / "model.pt")
    with pytest.raises(OSError, match="Invalid argument"):
        os.readlink("model.pt", dir_fd=os.open(folder, os.O_RDONLY))


def refusals(folder: Path) -> dict[str, Callable[[], Any]]:
    """What honest code tries, and is refused in words."""
    import fcntl
    import mmap
    import resource
    import shutil
    import socket

    here, file = str(folder), str(folder / "node_pack.py")
    libc = ctypes.CDLL(None, use_errno=True)

    def native(function: str, *args: Any) -> None:
        if getattr(libc, function)(*args) in (-1, ctypes.c_uint32(-1).value):
            raise OSError(ctypes.get_errno(), "refused")

    def code(protection: int) -> None:
        room = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        native("mprotect", ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(room))), 4096, protection)

    def minus_one(function: Callable[[], int]) -> None:
        if function() == -1:
            raise OSError

    return {
        "input": lambda: os.read(0, 1),
        "select": lambda: select.select([0], [], [], 0),
        "poll": lambda: select.poll().poll(0),
        "isatty": lambda: os.get_terminal_size(2),
        "seek": lambda: os.lseek(1, 0, 0),
        "fstat": lambda: native("syscall", 5, 1, ctypes.create_string_buffer(256)),
        "fadvise": lambda: os.posix_fadvise(1, 0, 0, os.POSIX_FADV_SEQUENTIAL),
        "mkdir": lambda: os.mkdir(here + "/new"),
        "remove": lambda: os.remove(file),
        "rmdir": lambda: os.rmdir(here),
        "rename": lambda: os.rename(file, file + "2"),
        "link": lambda: os.link(file, file + "2"),
        "linkat": lambda: os.link(file, file + "2", follow_symlinks=False),
        "symlink": lambda: os.symlink(file, file + "2"),
        "chmod": lambda: os.chmod(file, 0o777),
        "chown": lambda: os.chown(file, 1, 1),
        "lchown": lambda: os.lchown(file, 1, 1),
        "utime": lambda: os.utime(file),
        "truncate": lambda: os.truncate(file, 0),
        "ftruncate": lambda: os.ftruncate(1, 0),
        "fsync": lambda: os.fsync(1),
        "flock": lambda: fcntl.flock(1, fcntl.LOCK_EX),
        "lockf": lambda: fcntl.lockf(1, fcntl.LOCK_EX),
        "lockf at once": lambda: fcntl.lockf(1, fcntl.LOCK_EX | fcntl.LOCK_NB),
        "set_blocking": lambda: os.set_blocking(1, False),
        "get_blocking": lambda: os.get_blocking(1),
        "get_inheritable": lambda: os.get_inheritable(1),
        "dup": lambda: os.dup(1),
        "dup2": lambda: os.dup2(1, 2, inheritable=False),
        "chdir": lambda: os.chdir(here),
        "getcwd": os.getcwd,
        "disk_usage": lambda: shutil.disk_usage(here),
        "access": lambda: minus_one(lambda: int(os.access(file, os.R_OK)) - 1),
        "access of a link": lambda: minus_one(lambda: int(os.access(file, os.R_OK, follow_symlinks=False)) - 1),
        "readlink": lambda: os.readlink(file),
        "readlinkat": lambda: os.readlink("x", dir_fd=1),
        "statx": lambda: native("statx", -100, file.encode(), 0, 0x7FF, ctypes.create_string_buffer(256)),
        "pipe": os.pipe,
        "socketpair": socket.socketpair,
        "unix socket": lambda: socket.socket(socket.AF_UNIX),
        "epoll": select.epoll,
        "eventfd": lambda: os.eventfd(0),
        "shared memory": lambda: mmap.mmap(-1, 4096),
        "droppable memory": lambda: native("mmap", None, 4096, 3, 0x28, -1, 0),
        "guard page": lambda: code(0),
        "new code": lambda: code(mmap.PROT_READ | mmap.PROT_EXEC),
        "mlock": lambda: native("mlock", None, 0),
        "mremap": lambda: mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).resize(8192),
        "mbind": lambda: native("syscall", 237, 0, 0, 0, 0, 0, 0),
        "signal": lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
        "sigaltstack": lambda: native("sigaltstack", None, None),
        "setitimer": lambda: signal.setitimer(signal.ITIMER_REAL, 1),
        "alarm": lambda: native("alarm", 1),
        "raise": lambda: signal.raise_signal(signal.SIGSEGV),
        "raise SIGBUS": lambda: signal.raise_signal(signal.SIGBUS),
        "raise SIGFPE": lambda: signal.raise_signal(signal.SIGFPE),
        "raise SIGILL": lambda: signal.raise_signal(signal.SIGILL),
        "getppid": lambda: minus_one(os.getppid),
        "getuid": lambda: minus_one(os.getuid),
        "geteuid": lambda: minus_one(os.geteuid),
        "getgid": lambda: minus_one(os.getgid),
        "getegid": lambda: minus_one(os.getegid),
        "getgroups": os.getgroups,
        "uname": os.uname,
        "sysinfo": lambda: minus_one(lambda: os.sysconf("SC_PHYS_PAGES")),
        "times": os.times,
        "getrusage": lambda: resource.getrusage(resource.RUSAGE_SELF),
        "getrlimit": lambda: resource.getrlimit(resource.RLIMIT_NOFILE),
        "yield": os.sched_yield,
        "setaffinity": lambda: os.sched_setaffinity(0, {0}),
        "getpriority": lambda: os.getpriority(os.PRIO_PROCESS, 0),
        "setpriority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 5),
        "clock_getres": lambda: native("syscall", 229, 1, None),
        "name a thread": lambda: native("prctl", 15, b"x", 0, 0, 0),
        "name memory": lambda: native("prctl", 0x53564D41, 0, 0, 0, 0),
    }


@job
def refused_in_words(folder: Path) -> str:
    """Each is tried; which are refused differs by policy, but nobody dies of any."""
    refused = []
    for name, attempt in refusals(folder).items():
        print("try", name, file=sys.stderr, flush=True)
        try:
            attempt()
        except (OSError, ValueError):  # the C library's own words for some
            refused.append(name)
    return "ok " + ", ".join(refused)


@job
def files_that_are_not_for_it(folder: Path) -> None:
    """Refused in words, not by death: the message that a node's author will see."""
    for mode in ("w", "a", "r+", "x"):
        with pytest.raises(PermissionError, match=str(folder)):
            open(folder / "new.txt", mode).close()


@job
def a_late_extension_module(folder: Path) -> str:
    try:
        import _testcapi  # noqa: F401
    except ImportError as error:
        return f"refused: {error}"
    return "ok (built in)"


#: What a process does only once. The parent looks how it ended.
ENDS: dict[str, Callable[[], Any]] = {
    "exit": lambda: os._exit(7),
    "abort": lambda: ctypes.CDLL(None).abort(),
    "a fault": lambda: ctypes.memset(64, 0, 1),
    "a heap destroyed": lambda: ctypes.CDLL(None).free(ctypes.c_void_p(ctypes.addressof(_BYTES) + 33)),
}
_BYTES = ctypes.create_string_buffer(64)  # zeros, as the size of what is freed in it: no block begins there
CONTROL: list[Any] = []
