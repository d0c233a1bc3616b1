"""The arena from Python: who may write where, lifetimes of views, and what is refused."""

import ctypes
import fcntl
import gc
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vortex_worker._core import dlpack
from vortex_worker._core.arena import Arena
from vortex_worker._core.handle import ARROW_IPC, TensorHandle
from vortex_worker.errors import ConfigError, InvalidHandle

MIB = 1 << 20
SIZE = 8 * MIB
DATA = 2 * MIB
LEASE, LEASE_SIZE = 4 * MIB, 2 * MIB


def close(arena):
    if arena.views:  # in frames of an exception that pytest.raises still has
        gc.collect()
    arena.close()  # BufferError if the test left a view


@pytest.fixture
def arena():
    made = Arena.create(SIZE)
    yield made
    close(made)


def reopen(fd, flags):
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


def join(arena):
    worker = Arena.attach(reopen(arena.fd, os.O_RDWR), reopen(arena.fd, os.O_RDONLY))
    worker.lease(LEASE, LEASE_SIZE)
    return worker


@pytest.fixture
def worker(arena):
    made = join(arena)
    yield made
    close(made)


class Owner:
    """Something that a weak reference can watch."""


HANDLE = TensorHandle(LEASE, 64, 12, (4, 4))

# ------------------------------------------------------------------ creation


def test_layout_of_the_header(arena):
    header = bytes(memoryview(arena.buffer(0, 64)))
    assert header[:8] == b"VORTEXW1"
    assert struct.unpack_from("<IIQQQI", header, 8) == (1, 0, 0, DATA, SIZE - DATA, 256)
    assert header[44:] == bytes(20)
    assert not any(memoryview(arena.buffer(64, 256 * 64)))
    assert (arena.size, arena.data_offset, arena.data_size) == (SIZE, DATA, SIZE - DATA)
    assert (arena.lease_offset, arena.lease_size, arena.lease_address) == (0, 0, 0)
    assert not arena.closed


@pytest.mark.parametrize("size", [0, 1, DATA, 3 * MIB, SIZE + 4096, 1 << 63, (1 << 64) - DATA])
def test_sizes_that_can_not_be(size):
    with pytest.raises(ValueError, match="it takes a multiple of 2097152 bytes, at least 4194304"):
        Arena.create(size)


def test_too_large_for_the_system():
    with pytest.raises(OSError):  # noqa: PT011 - ENOMEM or EFBIG, as the system likes
        Arena.create(1 << 62)


def test_seals_hold(arena):
    seals = fcntl.fcntl(arena.fd, fcntl.F_GET_SEALS)
    assert seals & (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL) == 7
    for size in (SIZE // 2, SIZE * 2):
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(arena.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert not os.get_inheritable(arena.fd)


def test_named():
    name = f"/vw-test-{os.getpid()}"
    arena = Arena.create(SIZE, name)
    try:
        with pytest.raises(FileExistsError):
            Arena.create(SIZE, name)
        path = f"/dev/shm{name}"
        assert os.stat(path).st_mode & 0o777 == 0o600
        worker = Arena.attach(os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY), SIZE)
        arena.write(DATA, b"seen")
        assert bytes(memoryview(worker.buffer(DATA, 4))) == b"seen"
    finally:
        os.unlink(f"/dev/shm{name}")
    for wrong in ("a\0b", "\0"):
        with pytest.raises(ValueError, match="no null bytes"):
            Arena.create(SIZE, wrong)


# ---------------------------------------------------------------- attachment


def refused(fd, readonly_fd, size=0):
    with pytest.raises(ConfigError) as caught:
        Arena.attach(fd, readonly_fd, size)
    for taken_over in {fd, readonly_fd} - {-1}:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(taken_over)
    return str(caught.value)


def test_files_that_are_no_arena(arena):
    def pair():
        return reopen(arena.fd, os.O_RDWR), reopen(arena.fd, os.O_RDONLY)

    assert "is not shared memory" in refused(*os.pipe())
    assert "is not shared memory" in refused(-1, -1)
    other = os.memfd_create("other", os.MFD_CLOEXEC)
    assert "another file" in refused(pair()[0], reopen(other, os.O_RDONLY))
    assert "smaller than" in refused(reopen(other, os.O_RDWR), reopen(other, os.O_RDONLY))
    os.close(other)
    assert "smaller than" in refused(*pair(), SIZE + 1)
    assert "not read-only" in refused(reopen(arena.fd, os.O_RDWR), reopen(arena.fd, os.O_RDWR))
    same = reopen(arena.fd, os.O_RDWR)
    assert "not read-only" in refused(same, same)
    assert "can't be mapped" in refused(reopen(arena.fd, os.O_RDONLY), reopen(arena.fd, os.O_RDONLY))
    arena.write(0, b"vortexw1")
    assert "magic number" in refused(*pair())
    arena.write(0, b"VORTEXW1")
    arena.write(8, struct.pack("<I", 2))
    assert "version other than 1" in refused(*pair())
    arena.write(8, struct.pack("<I", 1))
    for offset, size in [(64, 4096), (16448, 4096), (DATA, SIZE), ((1 << 64) - 64, 64), (DATA, (1 << 64) - 64)]:
        arena.write(24, struct.pack("<QQ", offset, size))
        assert "data area" in refused(*pair())


def test_a_header_that_others_may_write_need_not_be_read(arena):
    arena.write(0, b"\xa5" * 64)
    worker = Arena.attach(reopen(arena.fd, os.O_RDWR), reopen(arena.fd, os.O_RDONLY), 0, DATA)
    assert (worker.data_offset, worker.data_size) == (DATA, SIZE - DATA)
    for offset in (64, 16448, SIZE, SIZE + 4096, (1 << 64) - 4096):
        with pytest.raises(ConfigError, match="data area"):
            Arena.attach(reopen(arena.fd, os.O_RDWR), reopen(arena.fd, os.O_RDONLY), 0, offset)


def test_a_header_of_the_first_fields_only(arena):
    arena.write(24, bytes(40))
    worker = join(arena)
    assert (worker.data_offset, worker.data_size) == (DATA, SIZE - DATA)


def test_data_where_the_header_says(arena):
    arena.write(24, struct.pack("<QQ", 64 << 10, 1 << 20))
    worker = Arena.attach(reopen(arena.fd, os.O_RDWR), reopen(arena.fd, os.O_RDONLY))
    assert (worker.data_offset, worker.data_size) == (64 << 10, 1 << 20)
    dlpack.capsule(worker, TensorHandle(64 << 10, 64, 2, (64,)))
    with pytest.raises(InvalidHandle, match="outside the region"):
        dlpack.capsule(worker, TensorHandle(64 << 10, (1 << 20) + 64, 2, ((1 << 20) + 64,)))


@pytest.mark.parametrize(
    ("offset", "size"),
    [(LEASE, 0), (LEASE + 1, 4096), (LEASE, 100), (0, 4096), (DATA - 4096, 8192), (SIZE - 4096, 8192), (SIZE, 4096)],
)
def test_leases_that_can_not_be(arena, offset, size):
    worker = Arena.attach(reopen(arena.fd, os.O_RDWR), reopen(arena.fd, os.O_RDONLY))
    with pytest.raises(ConfigError, match=f"the lease, {size} bytes at {offset}, must be made of whole pages"):
        worker.lease(offset, size)


def test_one_lease_only(worker, arena):
    for one in (worker, arena):
        with pytest.raises(ConfigError, match="the only one"):
            one.lease(LEASE, LEASE_SIZE)
    assert (worker.lease_offset, worker.lease_size) == (LEASE, LEASE_SIZE)
    assert worker.lease_address % mmap.PAGESIZE == 0


def test_no_mapping_after_the_descriptors_are_closed(arena):
    worker = Arena.attach(reopen(arena.fd, os.O_RDWR), reopen(arena.fd, os.O_RDONLY))
    worker.seal_descriptors()
    worker.seal_descriptors()
    assert worker.fd == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        worker.lease(LEASE, LEASE_SIZE)


# ------------------------------------------------------------ who may write

CHILD = """
import ctypes, os, sys
from vortex_worker._core.arena import Arena
fd, where, bit = map(int, sys.argv[1:])
worker = Arena.attach(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
os.close(fd)
worker.lease(4 << 20, 2 << 20)
worker.seal_descriptors()
base = worker.lease_address - (4 << 20) if bit == 2 else worker.address
if bit == 1:
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    assert mprotect(ctypes.c_void_p(base + where // 4096 * 4096), 4096, 3) == -1
    assert ctypes.get_errno() == 13
print("writes", flush=True)
ctypes.memset(base + where, 7, 1)
print("wrote", flush=True)
"""


@pytest.mark.parametrize(
    ("where", "bit", "status"),
    [
        (LEASE + 5, 2, 0),  # its lease, where it is mapped read-write
        (LEASE + 5, 0, -signal.SIGSEGV),  # the same, through the read-only mapping
        (DATA, 1, -signal.SIGSEGV),  # an input; neither can its mapping be upgraded
        (SIZE - 1, 1, -signal.SIGSEGV),
        (64, 0, -signal.SIGSEGV),  # slots: only through `head`
    ],
)
def test_inputs_are_read_only_by_the_mmu(arena, where, bit, status):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(arena.fd), str(where), str(bit)],
        pass_fds=[arena.fd], capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert done.stdout.splitlines() == (["writes"] if status else ["writes", "wrote"])
    assert memoryview(arena.buffer(where, 1))[0] == (0 if status else 7)


def test_buffers_are_writable_in_the_lease_only(arena, worker):
    mine = memoryview(worker.buffer(LEASE + 64, 8))
    assert not mine.readonly
    mine[:] = b"mywrites"
    assert bytes(memoryview(arena.buffer(LEASE + 64, 8))) == b"mywrites"
    for offset, nbytes in [(DATA, 8), (LEASE - 4, 8), (LEASE + LEASE_SIZE - 4, 8), (0, 64)]:
        view = memoryview(worker.buffer(offset, nbytes))
        assert view.readonly
        with pytest.raises(TypeError):
            view[0] = 1
        assert not memoryview(arena.buffer(offset, nbytes)).readonly


def test_write_and_copy(arena, worker):
    worker.write(LEASE, b"0123456789")
    worker.write(LEASE + 2, memoryview(b"ab"))
    assert bytes(memoryview(arena.buffer(LEASE, 10))) == b"01ab456789"
    source = ctypes.create_string_buffer(bytes(range(256)) * 8192)  # 2 MiB: with the GIL given up
    worker.copy_from(LEASE, ctypes.addressof(source), LEASE_SIZE)
    assert memoryview(arena.buffer(LEASE, LEASE_SIZE)) == memoryview(source)[:LEASE_SIZE].cast("B")
    worker.copy_from(LEASE, 0, 0)  # nothing, from nowhere


@pytest.mark.parametrize("offset", [DATA, LEASE - 1, LEASE + LEASE_SIZE - 1, LEASE + LEASE_SIZE])
def test_what_is_not_leased_is_not_written(worker, offset):
    with pytest.raises(InvalidHandle, match="not in this worker's lease: read-only"):
        worker.write(offset, b"12")
    assert worker.views == 0


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(SIZE, 1), (0, SIZE + 1), ((1 << 64) - 1, 2), (64, (1 << 64) - 1), (SIZE - 1, 2)]
)
def test_outside_the_arena(arena, offset, nbytes):
    with pytest.raises(InvalidHandle, match=f"outside the arena of {SIZE} bytes"):
        arena.buffer(offset, nbytes)
    with pytest.raises(InvalidHandle, match="outside the arena"):
        arena.copy_from(offset, 0, nbytes)
    assert arena.views == 0


def test_write_takes_contiguous_buffers_only(arena):
    with pytest.raises(BufferError):
        arena.write(DATA, memoryview(b"abcdef")[::2])
    with pytest.raises(TypeError):
        arena.write(DATA, "text")


def test_locate(arena, worker):
    assert worker.locate(worker.lease_address + 64, 64) == LEASE + 64
    assert worker.locate(worker.address + DATA, 64) == DATA
    assert arena.locate(arena.address, SIZE) == 0
    assert worker.locate(worker.address + SIZE - 1, 2) == -1
    assert worker.locate(worker.lease_address + LEASE_SIZE - 1, 2) == -1
    assert worker.locate(id(worker), 8) == -1
    assert worker.locate(0, 0) == -1


def test_prefault_and_discard(arena, worker):
    worker.write(LEASE, b"kept")
    worker.prefault(LEASE, LEASE_SIZE)
    worker.prefault(DATA + 100, 5)
    arena.prefault(DATA, SIZE - DATA)
    assert bytes(memoryview(arena.buffer(LEASE, 4))) == b"kept"
    arena.discard(LEASE, LEASE_SIZE)
    assert bytes(memoryview(worker.buffer(LEASE, 4))) == bytes(4)
    for offset, nbytes in [(LEASE + 1, 4096), (LEASE, 100), (0, 4096)]:
        with pytest.raises(OSError, match="Invalid argument"):
            arena.discard(offset, nbytes)
    with pytest.raises(OSError, match="Invalid argument"):
        worker.discard(LEASE, LEASE_SIZE)
    with pytest.raises(OSError, match="Invalid argument"):
        worker.prefault(SIZE, 1)


# ------------------------------------------------------------------ lifetimes


def test_buffers_are_counted_and_keep_their_owner(arena):
    owner = Owner()
    watch = weakref.ref(owner)
    buffer = arena.buffer(DATA, 16, owner)
    view = memoryview(buffer)
    assert (arena.views, len(buffer), view.nbytes) == (1, 16, 16)
    del buffer, owner
    assert arena.views == 1
    assert watch() is not None
    view.release()
    del view
    assert arena.views == 0
    assert watch() is None


def test_closing_with_live_views_is_refused(arena):
    buffer, capsule = arena.buffer(DATA, 16), dlpack.capsule(arena, HANDLE)
    with pytest.raises(BufferError, match="the arena has 2 live views: drop them first"):
        arena.close()
    assert not arena.closed
    del buffer
    with pytest.raises(BufferError, match="1 live views"):
        arena.close()
    del capsule
    arena.close()
    assert arena.closed


def test_a_closed_arena(arena):
    arena.close()
    arena.close()
    assert arena.closed
    assert (arena.fd, arena.views, arena.address) == (-1, 0, 0)
    for use in (
        lambda: arena.buffer(DATA, 16),
        lambda: dlpack.capsule(arena, HANDLE),
        lambda: arena.write(DATA, b"x"),
        lambda: arena.prefault(DATA, 1),
        lambda: arena.discard(DATA, 4096),
        lambda: arena.lease(LEASE, LEASE_SIZE),
    ):
        with pytest.raises(ValueError, match="the arena is closed"):
            use()
    assert arena.locate(0, 0) == -1


def test_an_arena_that_is_dropped_stays_mapped_for_its_views():
    arena = Arena.create(SIZE)
    arena.write(DATA, b"still here")
    buffer = arena.buffer(DATA, 10)
    del arena
    assert bytes(memoryview(buffer)) == b"still here"


def test_a_buffer_in_a_reference_cycle_is_counted_down(arena):
    owner = Owner()
    owner.buffer = arena.buffer(DATA, 16, owner)
    del owner
    gc.collect()
    assert arena.views == 0


def test_no_descriptor_or_mapping_is_left():
    def state():
        with open("/proc/self/maps") as maps:
            mapped = sum("vortex-arena" in line for line in maps)
        return mapped, len(os.listdir("/proc/self/fd"))

    before = state()
    arena = Arena.create(SIZE)
    worker = join(arena)
    assert state()[0] == before[0] + 4  # one, and three of the worker's
    arena.close()
    del arena, worker
    assert state() == before


def test_an_unread_capsule_lets_go(arena):
    owner = Owner()
    watch = weakref.ref(owner)
    capsule = dlpack.capsule(arena, HANDLE, owner)
    del owner
    assert 'capsule object "dltensor"' in repr(capsule)
    assert arena.views == 1
    assert watch() is not None
    del capsule
    assert arena.views == 0
    assert watch() is None


def test_an_adopted_capsule_lets_go_once(arena):
    from torch.utils.dlpack import from_dlpack

    owner = Owner()
    watch = weakref.ref(owner)
    capsule = dlpack.capsule(arena, HANDLE, owner)
    tensor = from_dlpack(capsule)
    del owner, capsule
    assert arena.views == 1
    view = tensor[1]
    del tensor
    assert arena.views == 1
    assert watch() is not None
    del view
    assert arena.views == 0
    assert watch() is None


@pytest.mark.parametrize("with_owner", [True, False])
def test_views_may_end_in_any_thread(arena, with_owner):
    from torch.utils.dlpack import from_dlpack

    owner = Owner() if with_owner else None
    watch = weakref.ref(owner) if owner else lambda: None
    tensors = [from_dlpack(dlpack.capsule(arena, HANDLE, owner)) for _ in range(400)]
    del owner
    assert arena.views == 400

    def drop():
        while True:
            try:
                tensors.pop()
            except IndexError:
                return

    threads = [threading.Thread(target=drop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert arena.views == 0
    assert watch() is None


def test_capsules_of_bad_handles(arena):
    for handle, says in [
        (TensorHandle(0, 64, 2, (64,)), "outside the region"),  # the header is no data
        (TensorHandle(SIZE - 64, 128, 2, (128,)), "outside the region"),
        (TensorHandle(LEASE + 8, 64, 2, (64,)), "multiple of 64"),
        (TensorHandle(LEASE, 64, 2, (65,)), "nbytes is 64"),
        (TensorHandle(LEASE, 64, 0, (), None, ARROW_IPC), "read it through ArrowBridge"),
    ]:
        with pytest.raises(InvalidHandle, match=says):
            dlpack.capsule(arena, handle)
    with pytest.raises(TypeError):
        dlpack.capsule(arena, None)
    with pytest.raises(TypeError):
        dlpack.capsule(None, HANDLE)
    assert arena.views == 0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(DATA, SIZE - 1), st.binary(max_size=300)), max_size=20))
def test_what_is_written_is_read(writes):
    arena, shadow = Arena.create(SIZE), bytearray(SIZE - DATA)
    for offset, data in writes:
        data = data[: SIZE - offset]
        arena.write(offset, data)
        shadow[offset - DATA : offset - DATA + len(data)] = data
    assert memoryview(arena.buffer(DATA, SIZE - DATA)) == shadow
