"""Filters, the canary, and all locks in their order: in forked children, judged by what still works there."""

import ctypes
import errno
import os
import signal
import threading
import time

import pytest
from child import (
    ERRNO,
    GETPPID,
    KILL_PROCESS,
    LOAD_NUMBER,
    OPENAT,
    PR_SET_NO_NEW_PRIVS,
    READ,
    USER_NOTIF,
    in_child,
    prctl,
    process_status,
    program,
)

from vortex_worker._core import lockdown


class TestFilter:
    def test_one_thread(self):
        def body(log):
            with pytest.raises(PermissionError, match="no_new_privs"):
                lockdown.install_filter(program(GETPPID, ERRNO | 42), all_threads=False)
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            assert lockdown.install_filter(program(GETPPID, ERRNO | 42), all_threads=False) is None
            assert process_status()["Seccomp"] == "2"
            assert ctypes.CDLL(None).getppid() == -42  # for the C library it never fails: it passes that on

        in_child(body)

    @pytest.mark.parametrize("all_threads", [True, False])
    def test_threads_that_are_there_already(self, all_threads):
        def body(log):
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            go, found = threading.Event(), []
            thread = threading.Thread(target=lambda: (go.wait(), found.append(ctypes.CDLL(None).getppid())))
            thread.start()
            lockdown.install_filter(program(GETPPID, ERRNO | 42), all_threads=all_threads)
            go.set()
            thread.join()
            assert (found == [-42]) == all_threads

        in_child(body)

    def test_a_thread_with_a_filter_of_its_own(self):
        def body(log):
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            ready, done = threading.Event(), threading.Event()

            def other():
                lockdown.install_filter(program(GETPPID, ERRNO | 42), all_threads=False)
                tid.append(threading.get_native_id())
                ready.set()
                done.wait()

            tid = []
            thread = threading.Thread(target=other)
            thread.start()
            ready.wait()
            with pytest.raises(OSError, match=r"thread \d+ has a filter of its own") as error:
                lockdown.install_filter(program(GETPPID, ERRNO | 43), all_threads=True)
            assert str(tid[0]) in str(error.value)
            done.set()
            thread.join()
            assert os.getppid() > 0

        in_child(body)

    def test_death(self):
        def body(log):
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            lockdown.install_filter(program(GETPPID, KILL_PROCESS), all_threads=True)
            os.getppid()

        assert in_child(body) == -signal.SIGSYS

    def test_a_listener(self):
        def body(log):
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            listener = lockdown.install_filter(program(GETPPID, USER_NOTIF), all_threads=True, listener=True)
            assert os.readlink(f"/proc/self/fd/{listener}") == "anon_inode:seccomp notify"

        in_child(body)

    @pytest.mark.parametrize("code", [b"", b"x", bytes(7), bytes(9), bytes(8 * 4097)])
    def test_what_is_no_program(self, code):
        with pytest.raises(ValueError, match="a filter program of"):
            lockdown.install_filter(code, all_threads=True)

    def test_what_the_kernel_refuses(self):
        def body(log):
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            with pytest.raises(OSError, match="seccomp: Invalid argument"):
                lockdown.install_filter(LOAD_NUMBER, all_threads=True)  # does not return
            assert process_status()["Seccomp"] == "0"

        in_child(body)


class TestCanary:
    def test_an_open_door(self):
        with pytest.raises(RuntimeError, match="sandbox canary: opened /etc/passwd"):
            lockdown.canary(b"/etc/passwd")

    def test_a_missing_file_proves_nothing(self):
        with pytest.raises(RuntimeError, match="/nonexistent failed with ENOENT, which proves nothing"):
            lockdown.canary(b"/nonexistent")

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOSYS])
    def test_a_closed_door(self, number):
        def body(log):
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            lockdown.install_filter(program(OPENAT, ERRNO | number), all_threads=True)
            if number == errno.ENOSYS:
                with pytest.raises(RuntimeError, match="ENOSYS"):
                    lockdown.canary(b"/etc/passwd")
            lockdown.canary(b"/etc/passwd", (errno.EACCES, errno.EPERM, number))

        in_child(body)


def test_the_order_of_a_worker(tmp_path):
    """S0, S1, S2 as main runs them, then everything that must hold at once."""

    def body(log):
        lockdown.isolate([2, log])
        lockdown.landlock_restrict([(os.fsencode(tmp_path), READ)])
        lockdown.install_filter(program(GETPPID, ERRNO | 1), all_threads=False)
        thread = threading.Thread(target=time.sleep, args=[60], daemon=True)
        thread.start()
        lockdown.install_filter(program(OPENAT, ERRNO | errno.EACCES), all_threads=True)
        lockdown.canary(b"/etc/passwd")
        lockdown.canary(os.fsencode(tmp_path))

    if lockdown.landlock_abi() == 0:
        pytest.skip("this kernel has no Landlock")
    in_child(body)
