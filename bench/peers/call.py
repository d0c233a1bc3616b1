"""The floor: a function of the same process."""

from __future__ import annotations

from typing import Any

from peers import Peer


def identity(tensor: Any) -> Any:
    return tensor


class Subject(Peer):
    title = "plain function call"
    docs = "https://docs.python.org/3/reference/compound_stmts.html#function-definitions"
    use = "the floor of what any of the others can reach; no other process, so no start, no crash, no memory"
    recovery = "nobody: a crash ends the program"
    has_workers = False

    def setup(self, workers: int) -> None:
        pass

    def call(self, tensor: Any, worker: int = 0) -> Any:
        return identity(tensor)
