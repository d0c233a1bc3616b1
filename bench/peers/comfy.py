"""pyisolate, with which ComfyUI isolates custom nodes."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from peers import Peer


class Subject(Peer):
    title = "pyisolate"
    requires = ("pyisolate==0.10.2", "uv==0.13.9", "packaging>=23")
    distribution = "pyisolate"
    docs = "https://pypi.org/project/pyisolate/0.10.2/"
    use = "an extension with share_torch=True, awaited on one event loop; its own environment is made before, untimed"
    deaths = (ConnectionError,)

    def __init__(self) -> None:
        self.sandboxed = shutil.which("bwrap") is not None
        self.isolation = "bubblewrap: its own files, processes and network" if self.sandboxed else "off: no bwrap here"

    def setup(self, workers: int) -> None:
        import pyisolate
        import torch

        from peers.echo_extension import Echo

        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # uv is in our environment
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        root = Path(sys.prefix) / "extensions"
        self._manager = pyisolate.ExtensionManager(Echo, {"venv_root_path": str(root)})
        # torch's shared memory needs a socket in the temporary folder, and its sandbox has a /tmp of its own.
        temporary = Path(sys.prefix) / "tmp"
        temporary.mkdir(exist_ok=True)
        os.environ["TMPDIR"] = str(temporary)
        seen = [str(Path(__file__).parents[1]), str(Path(torch.__file__).parents[1])]  # or its sandbox hides them
        self._extensions = [
            self._manager.load_extension(
                pyisolate.ExtensionConfig(
                    name=f"echo{number}",
                    module_path=str(Path(__file__).with_name("echo_extension")),
                    isolated=True,
                    dependencies=[],
                    apis=[],
                    share_torch=True,
                    share_cuda_ipc=False,
                    sandbox={"readonly_paths": seen, "writable_paths": [str(temporary)]},
                    sandbox_mode=pyisolate.SandboxMode.REQUIRED if self.sandboxed else pyisolate.SandboxMode.DISABLED,
                )
            )
            for number in range(workers)
        ]

    def hold(self, tensor: Any) -> Any:
        return tensor.clone().share_memory_()

    def call(self, tensor: Any, worker: int = 0) -> Any:
        return self._loop.run_until_complete(self._extensions[worker].echo(tensor))

    def pid(self) -> int:
        pid: int = self._extensions[0].proc.pid
        return pid

    def restart(self) -> None:
        self._extensions[0].stop()

    def close(self) -> None:
        self._manager.stop_all_extensions()
        self._loop.close()
