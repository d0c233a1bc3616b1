"""Memory of an arena: a client's and a worker's. Imports torch when asked for, as some tests here fork first."""

import gc
import os

import pytest


@pytest.fixture
def store():
    """A ``stored.Store``, in which nothing is live in the end."""
    from stored import Store

    made = Store()
    yield made
    if made.arena.views:  # in frames of an exception that pytest.raises still has
        gc.collect()
    assert made.blocks.live == 0
    made.arena.close()


@pytest.fixture
def worker(store):
    """A worker's tensors over the same arena."""
    from stored import LEASE, LEASE_SIZE

    from vortex_worker._core.arena import Arena
    from vortex_worker._core.lease import LeaseAllocator
    from vortex_worker.bridge.lease import LeaseTensors

    fd = f"/proc/self/fd/{store.arena.fd}"
    arena = Arena.attach(os.open(fd, os.O_RDWR), os.open(fd, os.O_RDONLY))
    arena.lease(LEASE, LEASE_SIZE)
    arena.seal_descriptors()
    made = LeaseTensors(arena, LeaseAllocator(LEASE, LEASE_SIZE))
    made.arena = arena  # for the tests
    return made
