"""Nodes of one author, and he means ill: every attack of the corpus, run by the node ``Attack``."""

from . import (  # noqa: F401 - each registers its attacks
    crashes,
    escapes,
    exhaustion,
    files,
    kernel,
    memory,
    network,
    others,
    privileges,
    processes,
    programs,
    supervisor,
)
from .node import Attack
from .registry import ATTACKS

__all__ = ["ATTACKS", "Attack"]
