"""An ordinary worker's day, run by test_workload.py as a program of its own.

usage: workload.py FOLDER POLICY    (FOLDER holds model.safetensors, model.pt, node_pack.py)

It imports torch and all the rest under Landlock and the bootstrap filter, locks down with POLICY, and goes
to work. What each piece of work gave is printed as one JSON object; work that dies is the last one named on
stderr.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vortex_worker._core import lockdown
from vortex_worker.sandbox import landlock, seccomp
from vortex_worker.sandbox.preload import preload

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
    assert select.poll().poll(1) == []
    assert select.select([], [], [], 0.001) == ([], [], [])


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


def main(folder: str, execute: str) -> None:
    policy = seccomp.load_policy(execute)
    first = seccomp.compile_policy(seccomp.load_policy("bootstrap").including(policy), pid=os.getpid())
    second = seccomp.compile_policy(policy, pid=os.getpid())
    rules = landlock.readonly_rules([folder])
    lockdown.isolate([1, 2])
    started = time.perf_counter()
    lockdown.landlock_restrict(rules)
    lockdown.install_filter(first.code, all_threads=True)
    installing = time.perf_counter() - started

    import google.protobuf.wrappers_pb2
    import torch

    assert google.protobuf
    missing = preload()
    torch.set_num_threads(2)
    torch.randn(512, 512) @ torch.randn(512, 512)  # starts the thread pool
    started = time.perf_counter()
    lockdown.install_filter(second.code, all_threads=True)
    installing += time.perf_counter() - started
    lockdown.canary(b"/etc/passwd")

    report: dict[str, Any] = {"missing": missing, "installing_us": round(installing * 1e6), "jobs": {}}
    for name, function in JOBS.items():
        print(name, file=sys.stderr, flush=True)
        try:
            report["jobs"][name] = function(Path(folder)) or "ok"
        except BaseException as error:
            report["jobs"][name] = f"{type(error).__name__}: {error}"
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
