"""The lease allocator against the plainest model of one: a dict of live blocks."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from vortex_worker._core.lease import LeaseAllocator
from vortex_worker.errors import InvalidHandle, OutOfArena

START = 6 << 20


def rounded(nbytes):
    return max(-(-nbytes // 64), 1) * 64


class Model(RuleBasedStateMachine):
    live = Bundle("live")

    @initialize(granules=st.integers(1, 400))
    def begin(self, granules):
        self.size = 64 * granules
        self.allocator = LeaseAllocator(START, self.size)
        self.blocks = {}

    def gaps(self):
        end = START
        for offset in sorted(self.blocks):
            yield offset - end
            end = offset + self.blocks[offset]
        yield START + self.size - end

    @rule(target=live, nbytes=st.one_of(st.integers(0, 300), st.integers(0, 30_000), st.integers(0, 1 << 64)))
    def allocate(self, nbytes):
        if nbytes >> 64:
            with pytest.raises(OverflowError):
                self.allocator.allocate(nbytes)
            return None
        if rounded(nbytes) > max(self.gaps()):
            with pytest.raises(OutOfArena, match=f"{nbytes} bytes are wanted.* {max(self.gaps())} in one piece"):
                self.allocator.allocate(nbytes)
            return None
        offset = self.allocator.allocate(nbytes)
        assert offset % 64 == 0
        self.blocks[offset] = rounded(nbytes)
        return offset

    @rule(offset=consumes(live))
    def free(self, offset):
        if offset is None:
            return
        assert self.allocator.size_of(offset) == self.blocks[offset]
        assert self.allocator.free(offset) == self.blocks.pop(offset)
        with pytest.raises(InvalidHandle, match=f"no live block begins at offset {offset}"):
            self.allocator.free(offset)

    @rule(offset=st.one_of(st.integers(START - 200, START + 26_000), st.integers(0, (1 << 64) - 1)))
    def free_anything_else(self, offset):
        if offset not in self.blocks:
            with pytest.raises(InvalidHandle):
                self.allocator.free(offset)
            with pytest.raises(InvalidHandle):
                self.allocator.size_of(offset)

    @invariant()
    def agrees(self):
        if not hasattr(self, "blocks"):
            return
        assert all(gap >= 0 for gap in self.gaps())  # no two blocks overlap, none lies outside
        assert self.allocator.live == len(self.blocks)
        assert self.allocator.used == sum(self.blocks.values())
        assert self.allocator.largest_free == max(self.gaps())


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestModel = Model.TestCase


def test_a_full_lease_names_what_is_wanted_and_free():
    allocator = LeaseAllocator(0, 1024)
    first = allocator.allocate(512)
    allocator.allocate(256)
    allocator.free(first)
    with pytest.raises(OutOfArena) as caught:
        allocator.allocate(600)
    assert caught.value.message == "600 bytes are wanted; of 1024 bytes, 768 are free, 512 in one piece"
    assert caught.value.details == {"wanted": "600", "free": "768"}


def test_nothing_takes_one_cache_line():
    allocator = LeaseAllocator(0, 128)
    assert {allocator.allocate(0), allocator.allocate(0)} == {0, 64}
    with pytest.raises(OutOfArena):
        allocator.allocate(0)


def test_every_hole_of_a_fragmented_lease_is_found_and_joined_again():
    allocator = LeaseAllocator(START, 64 * 1000)
    offsets = [allocator.allocate(64) for _ in range(1000)]
    for offset in offsets[::2]:
        allocator.free(offset)
    assert allocator.largest_free == 64
    with pytest.raises(OutOfArena, match="32000 are free, 64 in one piece"):
        allocator.allocate(65)
    assert sorted(allocator.allocate(1) for _ in range(500)) == sorted(offsets[::2])
    for offset in offsets:
        allocator.free(offset)
    assert allocator.largest_free == allocator.size == 64 * 1000
    assert allocator.allocate(64 * 1000) == START


def test_of_regions():
    allocator = LeaseAllocator(START, 128)
    assert (allocator.offset, allocator.size, allocator.live, allocator.used) == (START, 128, 0, 0)
    for offset, size in [(0, 0), (1, 64), (0, 65), ((1 << 64) - 64, 128), (0, 1 << 51)]:
        with pytest.raises(OSError, match="Invalid argument"):
            LeaseAllocator(offset, size)


def test_the_memory_itself_is_never_touched():
    """It lies in nobody's address space here."""
    allocator = LeaseAllocator(1 << 45, 1 << 44)
    offsets = [allocator.allocate(1 << 30) for _ in range(100)]
    for offset in offsets:
        allocator.free(offset)
    assert allocator.largest_free == 1 << 44
