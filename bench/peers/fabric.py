"""This project."""

from __future__ import annotations

from typing import Any

from peers import Peer


class Subject(Peer):
    title = "vortex-worker"
    distribution = "vortex-worker"
    docs = "docs/design.md"
    use = "Fabric.run of the built-in node Identity; tensors that are held lie in the fabric's memory"
    isolation = "seccomp, Landlock, no capabilities; inputs read-only by the MMU"
    recovery = "itself, from a standby"

    def setup(self, workers: int) -> None:
        import vortex_worker as vw

        self._fabric = vw.Fabric(workers)

    def hold(self, tensor: Any) -> Any:
        return self._fabric.tensor(tensor)

    def call(self, tensor: Any, worker: int = 0) -> Any:
        return self._fabric.run("Identity", {"tensor": tensor})["tensor"]

    def call_all(self, tensor: Any, workers: int) -> None:
        self._fabric.wait_ready(120)  # the standby too, which counts in the fabric's memory
        for job in [self._fabric.submit("Identity", {"tensor": tensor}) for _ in range(8 * workers)]:
            job.result(60)

    def pid(self) -> int:
        pid: int = self._fabric.workers()[0]["pid"]
        return pid

    def before_crash(self) -> None:
        self._fabric.wait_ready(120)

    def close(self) -> None:
        self._fabric.close()
