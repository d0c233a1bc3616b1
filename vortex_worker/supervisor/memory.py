"""The arena as its owner sees it: a region for the client's tensors, and leases for workers.

::

    header · slots │ client region │ lease 0 │ lease 1 │ …        each from a 2 MiB boundary

Memory is given back by construction: a block's Python object is kept alive by every tensor that
views it, and its end frees the client's block, or tells the worker that its handle is released.
"""

from __future__ import annotations

import gc
import threading
from bisect import bisect_left, insort
from collections import deque

from vortex_worker._core.arena import Arena
from vortex_worker._core.handle import TensorHandle
from vortex_worker._core.lease import LeaseAllocator
from vortex_worker.errors import ConfigError, InvalidHandle, OutOfArena

ALIGN = 2 << 20  # 2 MiB: leases begin on huge-page boundaries


class ClientBlock:
    """Memory of the client region; free again when nothing refers to it."""

    __slots__ = ("_allocator", "offset")

    def __init__(self, allocator: LeaseAllocator, offset: int) -> None:
        self._allocator = allocator
        self.offset = offset

    def __del__(self) -> None:
        self._allocator.free(self.offset)


class WorkerBlock:
    """A live handle in a worker's lease; released when nothing refers to it."""

    __slots__ = ("_lease", "offset")

    def __init__(self, lease: Lease, offset: int) -> None:
        self._lease = lease
        self.offset = offset

    def __del__(self) -> None:
        self._lease.dropped.append(self.offset)


class Lease:
    """One worker's region, and which handles in it are live."""

    def __init__(self, index: int, offset: int, size: int) -> None:
        self.index = index
        self.offset = offset
        self.size = size
        self.held = False  # by a worker that may still write to it
        self.left = False  # its worker is dead, and tensors still viewed it then
        self.dropped: deque[int] = deque()  # offsets whose last view is gone
        self._starts: list[int] = []  # live handles, sorted
        self._sizes: dict[int, int] = {}
        self._lock = threading.Lock()

    @property
    def live(self) -> int:
        """Live handles."""
        return len(self._starts)

    def admit(self, handle: TensorHandle) -> WorkerBlock:
        """Make a handle that its worker returned live.

        Raises:
            InvalidHandle: it lies outside this lease, is malformed, or overlaps a live one.
        """
        handle.check(self.offset, self.size)
        with self._lock:
            self._insert(handle)
        return WorkerBlock(self, handle.offset)

    def _insert(self, handle: TensorHandle) -> None:
        size = max(handle.nbytes, 1)
        at = bisect_left(self._starts, handle.offset)
        after = self._starts[at] if at < len(self._starts) else None
        before = self._starts[at - 1] if at else None
        if after is not None and handle.offset + size > after:
            raise InvalidHandle(f"handle at {handle.offset} of {handle.nbytes} bytes overlaps a live one at {after}")
        if before is not None and before + self._sizes[before] > handle.offset:
            raise InvalidHandle(f"handle at {handle.offset} overlaps a live one at {before}")
        insort(self._starts, handle.offset)
        self._sizes[handle.offset] = size

    def collect(self) -> list[int]:
        """Offsets to tell the worker of: no longer live from here on."""
        if not self.dropped:
            return []
        released = []
        with self._lock:
            while self.dropped:
                released.append(self.dropped.popleft())
                del self._sizes[released[-1]]
            if len(released) < 32:
                for offset in released:
                    del self._starts[bisect_left(self._starts, offset)]
            else:  # taking out one by one takes a square of the time, and a worker chooses how many there are
                self._starts = sorted(self._sizes)
        return released


class Memory:
    """Owns the arena. Every method may be called from any thread."""

    def __init__(self, client_size: int, lease_size: int, leases: int) -> None:
        """Make an arena of a client region and ``leases`` regions. Pages come at first touch.

        Raises:
            ConfigError: the process can't have that much of addresses.
        """
        client_size, lease_size = _round_up(client_size), _round_up(lease_size)
        size = ALIGN + client_size + leases * lease_size
        try:
            self.arena = Arena.create(size)
        except OSError as error:
            raise ConfigError(
                f"client_size {client_size} and {leases} leases of lease_size {lease_size} take {size} bytes of "
                f"addresses, which can't be had: {error.strerror}"
            ) from None
        start = self.arena.data_offset
        self._client = LeaseAllocator(start, client_size)
        self._nothing = start + size - ALIGN, object()  # where no bytes are: behind all others
        self._leases = [Lease(i, start + client_size + i * lease_size, lease_size) for i in range(leases)]
        self._lock = threading.Lock()

    @property
    def leases(self) -> int:
        """How many leases there are."""
        return len(self._leases)

    @property
    def lease_size(self) -> int:
        """Bytes of each."""
        return self._leases[0].size

    @property
    def client_live(self) -> int:
        """Live blocks of the client region."""
        return int(self._client.live)

    def allocate(self, nbytes: int) -> tuple[int, object]:
        """Offset and owner of memory in the client region.

        Raises:
            OutOfArena: it has no room.
        """
        if not nbytes:  # nobody else needs it
            return self._nothing
        try:
            offset = self._client.allocate(nbytes)
        except OutOfArena:
            gc.collect()  # what a reference cycle keeps is small to the collector: it would not look by itself
            try:
                offset = self._client.allocate(nbytes)
            except OutOfArena as error:
                error.message += "; tensors that are still held take some, and Fabric's client_size= gives more"
                raise
        return offset, ClientBlock(self._client, offset)

    def hold_lease(self) -> Lease:
        """A lease that no process can write to and nobody still reads.

        Raises:
            OutOfArena: live tensors keep every one.
        """
        with self._lock:
            for lease in self._leases:
                if not lease.held:
                    lease.collect()
                    if not lease.live:
                        lease.held, lease.left = True, False
                        return lease
        raise OutOfArena(
            f"each of the {len(self._leases)} leases is in use or kept by live tensors of workers that ended: "
            "drop results that are no longer needed"
        )

    def restore(self) -> None:
        """Undo what a hostile worker may have done to the arena's header, which the next to start will read."""
        self.arena.restore_header()

    def give_back(self, lease: Lease) -> None:
        """Its worker is dead. The region is used again once the last live handle is gone."""
        with self._lock:
            lease.held, lease.left = False, True
        self.tidy()

    def tidy(self) -> None:
        """Return the pages of regions whose worker is dead and whose last live handle is gone since."""
        with self._lock:
            for lease in self._leases:
                if lease.left:
                    lease.collect()
                    if not lease.live:
                        lease.left = False
                        self.arena.discard(lease.offset, lease.size)

    def close(self) -> None:
        """Close the arena; the mapping lives on while tensors do."""
        try:
            self.arena.close()
        except BufferError:
            self.arena.seal_descriptors()


def _round_up(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
