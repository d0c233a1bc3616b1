"""The client's memory: given back when nothing refers to it, reference cycles or not."""

import gc

import pytest

from vortex_worker._core.handle import TensorHandle
from vortex_worker.errors import OutOfArena
from vortex_worker.supervisor.memory import Memory


@pytest.fixture
def memory():
    gc.disable()
    memory = Memory(8 << 20, 2 << 20, 1)
    yield memory
    gc.enable()
    gc.collect()
    memory.close()


def test_memory_that_only_a_reference_cycle_keeps_is_found_when_there_is_no_other(memory):
    for _ in range(20):  # 40 MiB, of 8
        cycle = []
        cycle.append((cycle, memory.allocate(2 << 20)[1]))
    assert memory.client_live <= 4


def test_memory_that_is_full_says_so(memory):
    kept = [memory.allocate(2 << 20) for _ in range(4)]
    with pytest.raises(OutOfArena):
        memory.allocate(2 << 20)
    assert memory.client_live == len(kept)


def test_where_no_bytes_are_nobody_else_is(memory):
    offset, _ = memory.allocate(0)
    kept = [memory.allocate(1 << 20) for _ in range(4)]
    assert offset not in {at for at, _ in kept}
    assert memory.client_live == len(kept)
    lease = memory.hold_lease()
    assert not lease.offset <= offset < lease.offset + lease.size
    TensorHandle(offset, 0, 2, (0,)).check(memory.arena.data_offset, memory.arena.data_size)
    memory.give_back(lease)
