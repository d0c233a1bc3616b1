"""The process that ``sandbox.*`` measures: puts the worker's own locks on itself, or doesn't.

Standard input and output stay open across the locks: that is all it has of the outside.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from typing import Any

from vortex_worker._core import lockdown
from vortex_worker.config import WorkerConfig
from vortex_worker.sandbox import landlock, view
from vortex_worker.sandbox.stages import programs


class Locks:
    """The locks of ``sandbox.stages``, as a supervisor that wants denied calls named has them, each timed. ns."""

    def __init__(self, policy: str = "execute", keep: int = 2) -> None:
        begun = time.perf_counter_ns()
        self._programs = programs(WorkerConfig(socket="", seccomp_policy=policy, name_denials=True))
        self.compile_ns = time.perf_counter_ns() - begun
        self._rules = landlock.readonly_rules()
        self.install_ns = self.view_ns = 0
        self._enter(view.outline(self._rules, landlock.spellings()))
        lockdown.isolate([0, 1, 2, keep])

    def _enter(self, seen: view.View) -> None:
        begun = time.perf_counter_ns()
        try:
            lockdown.enter_view(*seen)
        except OSError:  # this machine lets nobody have one
            return
        self.view_ns = time.perf_counter_ns() - begun

    def bootstrap(self) -> None:
        begun = time.perf_counter_ns()
        lockdown.landlock_restrict(self._rules)
        lockdown.install_filter(self._programs.bootstrap.for_pid(os.getpid()).code, all_threads=False)
        self.install_ns += time.perf_counter_ns() - begun

    def execute(self) -> None:
        begun = time.perf_counter_ns()
        assert self._programs.named is not None
        assert self._programs.seal is not None
        named = self._programs.named.for_pid(os.getpid()).code
        listener = lockdown.install_filter(named, all_threads=True, listener=True)
        assert listener is not None
        os.close(listener)  # a worker's supervisor has it by now
        lockdown.install_filter(self._programs.seal.code, all_threads=True)
        self.install_ns += time.perf_counter_ns() - begun


def install(status_fd: int) -> dict[str, Any]:
    locks = Locks(keep=status_fd)
    locks.bootstrap()
    locks.execute()
    return {
        "compile_ns": locks.compile_ns, "install_ns": locks.install_ns, "view_ns": locks.view_ns,
        "seccomp": _seccomp(status_fd),
    }  # fmt: skip


def sample(policy: str) -> None:
    """Answer each line of input with the speed of some sampler steps. ``policy``: "" for no sandbox."""
    locks = None
    if policy:
        os.environ["HOME"] = "/nonexistent"  # as in `sandbox.stages`
        locks = Locks(policy)
        locks.bootstrap()
    import torch

    from vortex_worker.executor.nodes.sampling import schedules
    from vortex_worker.executor.nodes.sampling.guidance import guided
    from vortex_worker.executor.nodes.sampling.model import DiffusionModel
    from vortex_worker.executor.nodes.sampling.samplers import SAMPLERS

    torch.set_num_threads(1)
    torch.manual_seed(0)
    _shift = bytearray(random.randrange(4096) * 64)  # the heap lies elsewhere in each: no layout is on one side only
    first, last = torch.nn.Conv2d(4, 64, 3, padding=1), torch.nn.Conv2d(64, 4, 3, padding=1)

    def network(x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = last(torch.nn.functional.silu(first(x) + cond[:, :, None, None]))
        return out

    model = DiffusionModel(network)
    cond = [[torch.ones(1, 64), {}]], [[torch.zeros(1, 64), {}]]
    start = torch.randn(1, 4, 64, 64) * model.sigma_max
    sigmas = schedules.karras(model, 25).tolist()
    if locks is not None:
        locks.execute()
    mode = 2 if policy else 0
    with torch.inference_mode():
        for _ in sys.stdin if policy != "strict" else ("once: there, nothing is read",):
            begun = time.perf_counter()
            steps = 0
            while (spent := time.perf_counter() - begun) < 0.2:
                x = SAMPLERS["dpmpp_2m"](guided(model, *cond, 2.0, start), start, sigmas)
                steps += len(sigmas) - 1
            digest = hashlib.sha256(x.numpy().data).hexdigest()
            print(json.dumps({"steps_per_second": steps / spent, "digest": digest, "seccomp": mode}), flush=True)


def _seccomp(status_fd: int) -> int:
    """The kernel's word, from a descriptor opened before: a locked process can't open its own status."""
    text = os.read(status_fd, 1 << 14).decode()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Seccomp:"))


if __name__ == "__main__":
    if sys.argv[1] == "install":
        print(json.dumps(install(os.open("/proc/self/status", os.O_RDONLY))))
    else:
        sample(sys.argv[2] if len(sys.argv) > 2 else "")
