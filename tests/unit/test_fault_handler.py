"""What a worker that dies of a fault leaves in its slot."""

import ctypes
import faulthandler
import mmap
import os
import signal
import struct
import time

import pytest
from child import ALLOW, KILL_PROCESS, LOAD_NUMBER, PR_SET_NO_NEW_PRIVS, in_child, prctl

from vortex_worker._core import lockdown
from vortex_worker._core.arena import Arena
from vortex_worker._core.slots import Slot, SlotSnapshot


class TestFaultHandler:
    @pytest.fixture
    def arena(self):
        arena = Arena.create(8 << 20)
        yield arena
        arena.close()

    @staticmethod
    def attach(arena: Arena) -> Arena:
        """As a worker: the whole read-only, 2 MiB from 4 MiB on read-write."""
        worker = Arena.attach(os.dup(arena.fd), os.open(f"/proc/self/fd/{arena.fd}", os.O_RDONLY))
        worker.lease(4 << 20, 2 << 20)
        return worker

    def test_a_write_to_read_only_memory(self, arena):
        def body(log):
            faulthandler.disable()
            worker = self.attach(arena)
            lockdown.install_fault_handler(Slot(worker, 9))
            ctypes.memset(worker.address + (4 << 20) + 100, 1, 1)  # the lease, but not by its own mapping

        before = time.monotonic_ns()
        assert in_child(body) == -signal.SIGSEGV
        found = Slot(arena, 9).snapshot()
        assert found.fault_address == (4 << 20) + 100 + 1
        assert found.fault_signal == signal.SIGSEGV
        assert before <= found.fault_time <= time.monotonic_ns()

    def test_python_prints_its_traceback_after_it(self, arena):
        read, write = os.pipe()

        def body(log):
            faulthandler.enable(write)
            worker = self.attach(arena)
            lockdown.install_fault_handler(Slot(worker, 9))
            ctypes.memset(worker.address, 1, 1)

        assert in_child(body) == -signal.SIGSEGV
        os.close(write)
        with open(read, "rb") as pipe:
            text = pipe.read().decode()
        assert "Fatal Python error: Segmentation fault" in text
        assert "test_fault_handler.py" in text
        assert Slot(arena, 9).snapshot().fault_address == 1

    def test_given_regions(self, arena):
        def body(log):
            faulthandler.disable()
            memory = mmap.mmap(-1, 1 << 16, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), 1 << 16, mmap.PROT_READ)
            lockdown.install_fault_handler(Slot(arena, 3), [(address + 100, 50, 7000)])
            ctypes.memset(address + 149, 1, 1)

        assert in_child(body) == -signal.SIGSEGV
        assert Slot(arena, 3).snapshot().fault_address == 7049 + 1

    def test_other_faults_are_not_recorded(self, arena):
        def body(log):
            faulthandler.disable()
            lockdown.install_fault_handler(Slot(self.attach(arena), 9))
            ctypes.memset(64, 1, 1)

        assert in_child(body) == -signal.SIGSEGV
        assert Slot(arena, 9).snapshot() == SlotSnapshot(*[0] * 10)

    def test_behind_the_locks(self, arena):
        """Without another handler before it, dying of a fault takes no system call that a filter could deny."""

        def body(log):
            faulthandler.disable()
            worker = self.attach(arena)
            lockdown.install_fault_handler(Slot(worker, 9))
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            # Only memset's fault happens from here: whatever call the handler made would be SIGSYS.
            deny_all = LOAD_NUMBER + struct.pack("<HBBI", 0x15, 0, 1, 15)  # rt_sigreturn on x86-64
            deny_all += struct.pack("<HBBI", 0x06, 0, 0, ALLOW) + struct.pack("<HBBI", 0x06, 0, 0, KILL_PROCESS)
            address = worker.address + 5
            memset = ctypes.PyDLL(None).memset
            memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
            lockdown.install_filter(deny_all, all_threads=True)
            memset(address, 1, 1)

        if os.uname().machine != "x86_64":
            pytest.skip("knows one number of rt_sigreturn")
        assert in_child(body) == -signal.SIGSEGV
        assert Slot(arena, 9).snapshot().fault_address == 6

    def test_too_many_regions(self, arena):
        with pytest.raises(ValueError, match="more than 8 regions"):
            lockdown.install_fault_handler(Slot(arena, 0), [(0, 0, 0)] * 9)

    def test_the_arena_stays_open(self, arena):
        def body(log):
            slot = Slot(arena, 0)
            lockdown.install_fault_handler(slot)
            with pytest.raises(BufferError):
                arena.close()

        in_child(body)
