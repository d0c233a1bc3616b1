"""Checkpoints that somebody wrote to do harm, or wrote badly. Each is a function that gives a file's bytes.

``CODE``: pickles that run something when they are loaded without care: here, a command that leaves a mark.
``BROKEN``: pickles and archives that lie, bomb or end too soon. ``TENSORS``: the same for safetensors.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from typing import Any

import torch


def archive(pickled: bytes, *, name: str = "archive", data: bytes = bytes(256), **more: bytes) -> bytes:
    """A file as torch.save writes it, around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(f"{name}/data.pkl", pickled)
        file.writestr(f"{name}/byteorder", "little")
        file.writestr(f"{name}/data/0", data)
        file.writestr(f"{name}/version", "3\n")
        for path, content in more.items():
            file.writestr(path, content)
    return buffer.getvalue()


def calling(module: str, name: str, *args: Any) -> bytes:
    """A pickle that calls ``module.name(*args)`` when it is loaded."""
    arguments = b"".join(pickle.dumps(arg, 2)[2:-1] for arg in args)
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + arguments + b"tR."


def code(mark: str) -> dict[str, bytes]:
    """Pickles that would create the file ``mark``."""
    command, python = f"touch {mark}", f"open({mark!r}, 'w').close()"
    return {
        "os.system": calling("os", "system", command),
        "posix.system": calling("posix", "system", command),
        "subprocess.Popen": calling("subprocess", "Popen", ["touch", mark]),
        "subprocess.check_output": calling("subprocess", "check_output", ["touch", mark]),
        "os.popen": calling("os", "popen", command),
        "os.execv": calling("os", "execv", "/usr/bin/touch", ["touch", mark]),
        "pty.spawn": calling("pty", "spawn", ["touch", mark]),
        "eval": calling("builtins", "eval", python),
        "exec": calling("builtins", "exec", python),
        "open": calling("builtins", "open", mark, "w"),
        "os.mkdir": calling("os", "mkdir", mark),
        "code.InteractiveInterpreter": b"\x80\x02c" + b"code\nInteractiveInterpreter\n(tRcbuiltins\ngetattr\n0"
        + calling("builtins", "exec", python)[2:],
        "torch.serialization.os.system": calling("torch.serialization", "os.system", command),
        "torch._utils.sys.modules": calling("torch._utils", "sys", command),
        "numpy.testing runstring": calling("numpy.testing._private.utils", "runstring", python, {}),
        "functools.partial": calling("functools", "partial", command),
        "runpy._run_code": calling("runpy", "_run_code", python, {}),
        "socket.create_connection": calling("socket", "create_connection", ("127.0.0.1", 9)),
    }  # fmt: skip


def tensor(size: int, offset: int = 0, stride: int = 1, storage: int = 64) -> bytes:
    """A pickle of ``{"a": tensor}`` whose numbers need not be true."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", storage) if isinstance(thing, Storage) else None

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, (size,), (stride,), False, {})

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"a": Tensor()})
    return buffer.getvalue()


def broken() -> dict[str, bytes]:
    """Archives and pickles that lie."""
    good = io.BytesIO()
    torch.save({"a": torch.ones(64)}, good)
    whole = good.getvalue()
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        file.writestr("archive/data.pkl", tensor(1 << 26, storage=1 << 26))
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/data/0", bytes(1 << 28))
        file.writestr("archive/version", "3\n")
    return {
        "empty": b"",
        "one byte": b"\x80",
        "truncated at half": whole[: len(whole) // 2],
        "truncated by a byte": whole[:-1],
        "no pickle in it": archive(b""),
        "protocol 255": archive(b"\x80\xff."),
        "a string that claims 2**60 bytes": archive(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x."),
        "a number that claims 2**31 bytes": archive(b"\x80\x02\x8b" + struct.pack("<i", 0x7FFF_FFFF) + b"."),
        "nested 100,000 deep": archive(b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."),
        "a cycle": archive(b"\x80\x02]q\x00h\x00a."),
        "the stack popped below its end": archive(b"\x80\x02000."),
        "a memo that isn't": archive(b"\x80\x02h\xff."),
        "larger than its storage": archive(tensor(1 << 20)),
        "an offset beyond its storage": archive(tensor(1, offset=1 << 40)),
        "a negative offset": archive(tensor(1, offset=-8)),
        "a negative stride": archive(tensor(8, stride=-1)),
        "a negative size": archive(tensor(-8)),
        "a size that overflows": archive(tensor(1 << 62, stride=1 << 62)),
        "a storage that claims 2**61 elements": archive(tensor(8, storage=1 << 61)),
        "a storage that isn't there": archive(tensor(8).replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009")),
        "a path that climbs out": archive(tensor(8), **{"archive/../../../../tmp/climbed": b"x"}),
        "a bomb of 256 MiB": bomb.getvalue(),
        "garbage": bytes(range(256)) * 64,
    }  # fmt: skip


def safetensors(header: Any, data: bytes = bytes(64), length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def lying_tensors() -> dict[str, bytes]:
    """safetensors files that lie."""

    def one(**fields: Any) -> dict[str, Any]:
        return {"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64], **fields}}

    return {
        "empty": b"",
        "a header of 2**63 bytes": safetensors(b"{}", length=1 << 63),
        "a header longer than the file": safetensors(b"{}", length=1 << 20),
        "a header that is no JSON": safetensors(b"{nope}"),
        "a header that is a list": safetensors([1, 2]),
        "a header nested 100,000 deep": safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "an unknown dtype": safetensors(one(dtype="F7")),
        "offsets beyond the file": safetensors(one(data_offsets=[0, 1 << 40])),
        "offsets the wrong way": safetensors(one(data_offsets=[64, 0])),
        "negative offsets": safetensors(one(data_offsets=[-64, 0])),
        "a shape that needs more": safetensors(one(shape=[1 << 20])),
        "a shape that overflows": safetensors(one(shape=[1 << 62, 1 << 62])),
        "a negative shape": safetensors(one(shape=[-16])),
        "two tensors in one place": safetensors({**one(), "b": one()["a"]}),
        "a hole between tensors": safetensors(one(data_offsets=[32, 96]), bytes(96)),
        "data that ends too soon": safetensors(one(), bytes(8)),
    }  # fmt: skip
