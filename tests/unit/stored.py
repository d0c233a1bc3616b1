"""Client memory of an arena for tests of tensors in it, what is live there, and tensors of every kind."""

import math

import numpy as np
import torch
from hypothesis import strategies as st

from vortex_worker._core.arena import Arena
from vortex_worker._core.lease import LeaseAllocator
from vortex_worker.bridge import tensor as bridge

MIB = 1 << 20
SIZE, DATA = 8 * MIB, 2 * MIB
LEASE, LEASE_SIZE = 4 * MIB, 2 * MIB

dtypes = st.sampled_from(sorted(bridge.DTYPES.items()))
shapes = st.lists(st.integers(0, 5), max_size=5).map(tuple)


def same(a, b):
    """Equal bit for bit: NaNs, and dtypes that can't be compared, too."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if not a.numel():
        return True
    return torch.equal(*(t.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8) for t in (a, b)))


def fill(arena, offset, nbytes, seed, dtype):
    data = np.random.default_rng(seed).integers(0, 2 if dtype is torch.bool else 256, nbytes, dtype=np.uint8)
    arena.write(offset, data)


class Store:
    """Client memory of an arena, and what is live in it."""

    def __init__(self, size=SIZE):
        self.arena = Arena.create(size)
        self.blocks = LeaseAllocator(DATA, size - DATA)

    def allocate(self, nbytes):
        owner = Block(self.blocks, self.blocks.allocate(nbytes))
        return owner.offset, owner


class Block:
    def __init__(self, blocks, offset):
        self.blocks, self.offset = blocks, offset

    def __del__(self):
        self.blocks.free(self.offset)


@st.composite
def tensors(draw):
    """Any dtype, shape and strides; contiguous or not; of memory outside the arena."""
    _, dtype = draw(dtypes)
    shape = draw(shapes)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    data = torch.from_numpy(rng.integers(0, 2 if dtype is torch.bool else 256, 16 * 3125, dtype=np.uint8)).view(dtype)
    kind = draw(st.sampled_from(["contiguous", "permuted", "strided", "expanded"]))
    if kind == "strided":
        strides = tuple(draw(st.integers(0, 9)) for _ in shape)
        return data.as_strided(shape, strides, draw(st.integers(0, 7)))
    tensor = data[: math.prod(shape)].view(shape)
    if kind == "permuted":
        return tensor.permute(draw(st.permutations(range(len(shape)))))
    return tensor.unsqueeze(0).expand(2, *shape) if kind == "expanded" else tensor


STORE = Store()  # of the property tests
