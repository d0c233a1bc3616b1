"""vortex-worker: runs inference nodes in kernel-sandboxed processes, tensors in shared memory.

    import vortex_worker as vw

    with vw.Fabric(workers=2) as fabric:
        out = fabric.run("Identity", inputs={"tensor": t})

General layout, and who may import whom (``tests/unit/test_imports.py`` holds it to this)::

    cli, bench      command line and benchmarks          → supervisor
    observe         metrics and traces, extras           → supervisor
    supervisor      Fabric: launch, schedule, recover    → ipc, shm, bridge, sandbox, config
    main            a worker's life, in order            → ipc, shm, sandbox, executor, config
    executor        nodes and how they are run           → bridge, device
    ipc shm bridge  frames; slots; tensors               → _core
    sandbox         policies, Landlock paths             → _core
    _core           Cython over csrc/ (C11, no Python.h) → errors

``torch`` is imported only in bridge, device and executor, and only when a tensor is touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["AbstractExecutor", "Fabric", "Job", "Param", "Port", "WorkerConfig", "__version__", "errors"]

#: Public name → module. Loaded at first use, so that ``import vortex_worker`` costs next to nothing.
_PUBLIC = {
    "AbstractExecutor": "vortex_worker.executor.base",
    "Fabric": "vortex_worker.supervisor.fabric",
    "Job": "vortex_worker.supervisor.job",
    "Param": "vortex_worker.executor.ports",
    "Port": "vortex_worker.executor.ports",
    "WorkerConfig": "vortex_worker.config",
}

if TYPE_CHECKING:
    from vortex_worker import errors
    from vortex_worker.config import WorkerConfig
    from vortex_worker.executor.base import AbstractExecutor
    from vortex_worker.executor.ports import Param, Port
    from vortex_worker.supervisor.fabric import Fabric
    from vortex_worker.supervisor.job import Job


def __getattr__(name: str) -> Any:
    import importlib

    if name == "errors":
        return importlib.import_module("vortex_worker.errors")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'vortex_worker' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
