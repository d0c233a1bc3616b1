"""Ray: an actor on this machine, arrays in its object store."""

from __future__ import annotations

import os
from typing import Any

from peers import Peer, warm_up


class Subject(Peer):
    title = "Ray actor"
    requires = ("ray==2.60.0",)
    distribution = "ray"
    docs = "https://docs.ray.io/en/latest/ray-core/fault_tolerance/actors.html"
    use = (
        "an actor with max_restarts and max_task_retries of -1; tensors as NumPy arrays, read by its workers without "
        "a copy; those held are put into the object store once"
    )
    recovery = "itself"

    def setup(self, workers: int) -> None:
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        import ray

        self._ray = ray
        ray.init(
            address="local", num_cpus=workers, include_dashboard=False, object_store_memory=1 << 30,
            log_to_driver=False, logging_level="error",
        )  # fmt: skip

        class Echo:
            def __init__(self) -> None:
                warm_up()

            def call(self, array: Any) -> Any:
                import torch

                return torch.from_numpy(array).numpy()

            def pid(self) -> int:
                return os.getpid()

        actor = ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=1)(Echo)
        self._actors = [actor.remote() for _ in range(workers)]

    def hold(self, tensor: Any) -> Any:
        return self._ray.put(tensor.numpy())

    def call(self, tensor: Any, worker: int = 0) -> Any:
        import torch

        argument = tensor.numpy() if isinstance(tensor, torch.Tensor) else tensor
        return torch.from_numpy(self._ray.get(self._actors[worker].call.remote(argument)))

    def pid(self) -> int:
        pid: int = self._ray.get(self._actors[0].pid.remote())
        return pid

    def close(self) -> None:
        self._ray.shutdown()
