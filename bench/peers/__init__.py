"""The peers: each a file that has one tensor go through another process and back, by its system's documentation.

To add one, write a file like its neighbours and name it in ``NAMES``. A peer's third-party packages are
imported in its methods only, so that the harness can read what it requires without having it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

    from torch import Tensor

NAMES = ("call", "fabric", "pipe", "torch_mp", "zeromq", "grpc_unix", "iceoryx", "ray_actor", "comfy")


class Peer:
    """One system, used to run the identity function on float32 vectors in a process of its own."""

    title: ClassVar[str]
    #: Packages for its own virtual environment, pinned. torch and NumPy are the project's.
    requires: ClassVar[tuple[str, ...]] = ()
    #: Distribution whose version is reported; none: the standard library's, or torch's.
    distribution: ClassVar[str] = ""
    #: The page that says how it is meant to be used, and how it is used here.
    docs: ClassVar[str]
    use: ClassVar[str]
    #: What keeps a worker from doing harm.
    isolation: ClassVar[str] = "none"
    #: Who starts another worker when one dies.
    recovery: ClassVar[str] = "the caller: what `restart` does"
    #: What `call` raises when its worker has died; nothing for a system that gets over it by itself.
    deaths: ClassVar[tuple[type[BaseException], ...]] = ()
    #: Whether there is a process to start, to kill and to weigh.
    has_workers: ClassVar[bool] = True

    def setup(self, workers: int) -> None:
        """Start so many workers. They need not be ready: the first call waits."""
        raise NotImplementedError

    def hold(self, tensor: Tensor) -> Any:
        """The same data where this system likes it best, for many calls. Not timed."""
        return tensor

    def call(self, tensor: Any, worker: int = 0) -> Tensor:
        """Send it (a tensor, or what ``hold`` made of one) to a worker, and what comes back."""
        raise NotImplementedError

    def call_all(self, tensor: Tensor, workers: int) -> None:
        """Have each worker work once."""
        for worker in range(workers):
            self.call(tensor, worker)

    def pid(self) -> int:
        """The process of the first worker."""
        raise NotImplementedError

    def restart(self) -> None:
        """Start the first worker again; it has died."""
        raise NotImplementedError

    def recall(self, tensor: Tensor) -> Tensor:
        """``call``, by a program that gets over a worker's death."""
        if not self.deaths:
            return self.call(tensor)
        try:
            return self.call(tensor)
        except self.deaths:
            self.restart()
            return self.call(tensor)

    def close(self) -> None:
        """End everything that was started."""


def load(name: str) -> type[Peer]:
    """The class of a peer's file: the one it calls ``Subject``."""
    subject: type[Peer] = importlib.import_module(f"peers.{name}").Subject
    return subject


def forkserver(module: str) -> ForkServerContext:
    """Processes that are forked from one that has imported torch: the quickest that the documentation calls safe.

    https://docs.python.org/3/library/multiprocessing.html#contexts-and-start-methods
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", module])
    return context


def warm_up() -> None:
    """What a worker does before its first job: torch loaded, and used once."""
    import torch

    warnings.filterwarnings("ignore", message="The given (buffer|NumPy array) is not writable")
    square = torch.ones(128, 128)
    (square @ square).sum()


def as_bytes(tensor: Tensor) -> memoryview:
    """Its memory, for what sends bytes."""
    return memoryview(tensor.numpy()).cast("B")


def from_bytes(data: Any) -> Tensor:
    """A float32 vector over received bytes; not a copy."""
    import torch

    return torch.frombuffer(data, dtype=torch.float32)
