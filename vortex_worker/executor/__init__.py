"""Nodes: what they are, how they are found, and the ones that come with the package."""

from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.ports import REQUIRED, Param, Port

__all__ = ["REQUIRED", "AbstractExecutor", "Param", "Port"]
