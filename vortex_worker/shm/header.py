"""The ShmHeader: the arena's first 64 bytes.

::

    0 magic u64 · 8 version u32 · 12 flags u32 · 16 clock_tick u64
    24 data_offset u64 · 32 data_size u64 · 40 slot_count u32 · 44 zeros

From 24 on: version 1's use of what the first layout reserved. A supervisor that leaves it zero works.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from vortex_worker.errors import ConfigError

MAGIC = int.from_bytes(b"VORTEXW1", "little")
VERSION = 1
HEADER_SIZE = 64
SLOT_SIZE = 64
SLOT_COUNT = 256
DATA_ALIGN = 2 << 20  # 2 MiB: data begins on a huge page

_FIELDS = struct.Struct("<QIIQQQI20x")


class ShmHeader(NamedTuple):
    """The header's fields as they stand in memory, which may be zeros from ``data_offset`` on."""

    magic: int
    version: int
    flags: int
    clock_tick: int
    data_offset: int
    data_size: int
    slot_count: int

    @classmethod
    def unpack(cls, data: bytes) -> ShmHeader:
        """From 64 bytes.

        Raises:
            ConfigError: they are not an arena's, or of another version.
        """
        if len(data) < HEADER_SIZE:
            raise ConfigError(f"an arena's header is {HEADER_SIZE} bytes, not {len(data)}")
        header = cls(*_FIELDS.unpack_from(data))
        if header.magic != MAGIC:
            raise ConfigError(f"not an arena: it begins with {data[:8]!r}, not b'VORTEXW1'")
        if header.version != VERSION:
            raise ConfigError(f"an arena of version {header.version}: this reads version {VERSION}")
        return header

    def data(self, size: int) -> tuple[int, int]:
        """Offset and size of the data in an arena of ``size`` bytes, also where the header leaves it open."""
        first = -(-(HEADER_SIZE + SLOT_COUNT * SLOT_SIZE) // DATA_ALIGN) * DATA_ALIGN
        offset = self.data_offset or first
        return offset, self.data_size or size - offset


def read_header(fd: int) -> ShmHeader:
    """The header of the arena behind a descriptor.

    Raises:
        ConfigError: it is none.
    """
    return ShmHeader.unpack(os.pread(fd, HEADER_SIZE, 0))
