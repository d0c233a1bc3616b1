"""The thread of one fabric, and the zygote that it starts before anything else."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from vortex_worker.supervisor.zygote import Zygote

if TYPE_CHECKING:
    import asyncio


class FabricThread:
    """Runs a fabric's loop.

    What a thread starts dies with it (PR_SET_PDEATHSIG of prctl(2) means the thread), so this one starts
    every process. The first is the zygote, which then imports for a second: what the supervisor itself
    has yet to import, it imports meanwhile, and not before: whoever imports leaves the GIL to others every 5 ms.
    """

    def __init__(self, *, zygote: bool, diffusion: bool) -> None:
        """Start, with a zygote at once if there is to be one; see ``Zygote`` for ``diffusion``."""
        self._wanted = zygote
        self._diffusion = diffusion
        self._first: Zygote | Exception | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._settled = threading.Event()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vortex-fabric", daemon=True)
        try:
            self._thread.start()
            self._begun.wait()
        except BaseException:  # Ctrl-C: nobody else knows of it
            self.abandon()
            raise

    def _run(self) -> None:
        if self._wanted:
            try:
                self._first = Zygote(diffusion=self._diffusion)
            except Exception as error:
                self._first = error
        self._begun.set()
        self._settled.wait()
        try:
            if self._loop is not None:
                self._loop.run_forever()
        finally:
            if self._loop is not None:
                self._loop.close()
            if isinstance(self._first, Zygote):  # nobody has taken it
                self._first.kill()
                self._first.close()

    def first_zygote(self) -> Zygote | None:
        """The zygote it began with, once; None when that has been taken, or there is none. In this thread.

        Raises:
            LaunchError: it could not be started.
        """
        first, self._first = self._first, None
        if isinstance(first, Exception):
            raise first
        return first

    @property
    def serves(self) -> bool:
        """Whether it was given a loop, which now has all that the thread has started."""
        return self._loop is not None

    def serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the loop from now on, and close it when it has been stopped. Idempotent."""
        self._loop = loop
        self._settled.set()

    def abandon(self) -> None:
        """The fabric could not be opened: end, and the zygote too."""
        self._settled.set()
        if self._thread.ident is not None:  # else it has not started yet, or never will
            self._thread.join()

    def is_alive(self) -> bool:
        """Whether the loop has not ended."""
        return self._thread.is_alive()

    def join(self) -> None:
        """Wait for the loop's end."""
        self._thread.join()
