"""The locks, one by one, each in a forked child that can't get out of it, judged by what still works there."""

import ctypes
import errno
import faulthandler
import mmap
import os
import resource
import signal
import socket
import struct
import threading
import time
import traceback
import warnings
from pathlib import Path

import pytest

from vortex_worker._core import lockdown
from vortex_worker._core.arena import Arena
from vortex_worker._core.slots import Slot, SlotSnapshot

ROOT = os.geteuid() == 0
NOBODY = 65534

needs_root = pytest.mark.skipif(not ROOT, reason="changes user")
needs_landlock = pytest.mark.skipif(lockdown.landlock_abi() == 0, reason="this kernel has no Landlock")

PR_SET_NO_NEW_PRIVS = 38
PR_GET_DUMPABLE = 3


def prctl(option: int, argument: int = 0) -> int:
    return ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0)


def in_child(body) -> int:
    """Runs ``body(log)`` in a fork; what it raises fails the test. ``log`` is a pipe it may keep."""
    log, write = os.pipe()
    with warnings.catch_warnings():
        # Some test before may have left threads, of OpenBLAS say; the child does not use them.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(60)
            body(write)
            status = 0
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(write)
    with open(log, "rb") as pipe:
        text = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status <= 0, text
    assert status < 0 or not text, text
    return status


def process_status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def raises(number: int, call, *arguments) -> None:
    """``call`` must fail with exactly this errno."""
    with pytest.raises(OSError, match=rf"^\[Errno {number}\]"):
        call(*arguments)


class TestIsolate:
    def test_descriptors(self):
        def body(log):
            extra = [os.open("/dev/zero", os.O_RDONLY) for _ in range(20)]
            far = os.dup2(extra[0], 700)
            os.dup2(extra[0], 0)
            lockdown.isolate([far, log, 2])
            listed = {int(name) for name in os.listdir("/proc/self/fd")}
            assert listed - {0, 1, 2, log, far} == {min(listed - {0, 1, 2, log, far})}  # listdir's own
            assert os.read(0, 10) == b""  # /dev/null, no more /dev/zero
            assert os.fstat(1).st_rdev == os.fstat(0).st_rdev
            assert os.read(far, 3) == bytes(3)

        in_child(body)

    def test_what_the_kernel_says(self):
        def body(log):
            lockdown.isolate([log])
            status = process_status()
            for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", *(["CapBnd"] if ROOT else [])):
                assert int(status[name], 16) == 0, name
            assert status["NoNewPrivs"] == "1"
            assert status["Seccomp"] == "0"
            assert prctl(PR_GET_DUMPABLE) == 0
            assert os.getsid(0) == os.getpid()

        in_child(body)

    def test_limits(self):
        def body(log):
            before = resource.getrlimit(resource.RLIMIT_DATA)
            lockdown.isolate([log])
            assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
            assert resource.getrlimit(resource.RLIMIT_FSIZE) == (0, 0)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (256, 256)
            assert resource.getrlimit(resource.RLIMIT_NPROC) == (4096, 4096)
            assert resource.getrlimit(resource.RLIMIT_DATA) == before
            with pytest.raises(ValueError, match="limit"):
                resource.setrlimit(resource.RLIMIT_NOFILE, (257, 257))

        in_child(body)

    def test_given_limits(self):
        def body(log):
            lockdown.isolate([log], limits={"data": 1 << 30, "open_files": 20, "processes": 100, "file_size": 5000})
            assert resource.getrlimit(resource.RLIMIT_FSIZE) == (5000, 5000)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (20, 20)
            assert resource.getrlimit(resource.RLIMIT_NPROC) == (100, 100)
            with pytest.raises(MemoryError):
                bytearray(2 << 30)
            held = []
            raises(errno.EMFILE, lambda: [held.append(os.dup(log)) for _ in range(30)])

        in_child(body)

    def test_a_limit_that_is_lower_stays(self):
        def body(log):
            resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))
            lockdown.isolate([log])
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (99, 99)

        in_child(body)

    def test_no_file_can_be_written(self, tmp_path):
        def body(log):
            lockdown.isolate([log])
            fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
            raises(errno.EFBIG, os.write, fd, b"x")  # Python ignores the SIGXFSZ that comes with it

        in_child(body)

    def test_no_core_and_no_looking_in(self):
        def body(log):
            lockdown.isolate([log])
            assert prctl(PR_GET_DUMPABLE) == 0
            os.abort()

        assert in_child(body) == -signal.SIGABRT

    @needs_root
    def test_root_in_name_only(self, tmp_path):
        secret = tmp_path / "secret"
        secret.write_text("x")
        secret.chmod(0)
        os.chown(secret, NOBODY, NOBODY)

        def body(log):
            secret.read_text()
            lockdown.isolate([log])
            assert os.getuid() == 0
            raises(errno.EACCES, secret.read_text)
            raises(errno.EPERM, os.setuid, NOBODY)
            raises(errno.EPERM, os.chown, "/dev/null", 1, 1)

        in_child(body)

    @needs_root
    def test_another_user(self):
        def body(log):
            os.setgroups([1, 2, 3])
            lockdown.isolate([log], user=NOBODY, group=NOBODY - 1)
            assert os.getresuid() == (NOBODY,) * 3
            assert os.getresgid() == (NOBODY - 1,) * 3
            assert os.getgroups() == []
            status = process_status()
            assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
            assert status["NoNewPrivs"] == "1"
            assert prctl(PR_GET_DUMPABLE) == 0
            raises(errno.EPERM, os.setuid, 0)

        in_child(body)

    @needs_root
    def test_as_an_ordinary_user(self):
        def body(log):
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            lockdown.isolate([log])
            assert int(process_status()["CapPrm"], 16) == 0
            assert process_status()["NoNewPrivs"] == "1"

        in_child(body)

        def to_root(log):
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with pytest.raises(PermissionError, match="isolate: changing user"):
                lockdown.isolate([log], user=0)

        in_child(to_root)

    def test_threads_are_refused(self):
        def body(log):
            threading.Thread(target=time.sleep, args=[60], daemon=True).start()
            assert lockdown.thread_count() == 2
            with pytest.raises(OSError, match="one thread only") as error:
                lockdown.isolate([log])
            assert error.value.errno == errno.EBUSY

        in_child(body)

    def test_bad_arguments(self):
        def body(log):
            with pytest.raises(OSError, match="closing descriptors"):
                lockdown.isolate([log, 999])
            for bad in ({"cpu": 1}, {"FSIZE": 0}):
                with pytest.raises(ValueError, match="unknown limits"):
                    lockdown.isolate([log], limits=bad)
            for bad in (-1, 2**32 - 1):
                with pytest.raises(ValueError, match="user or group id"):
                    lockdown.isolate([log], user=bad)
            with pytest.raises(OverflowError):
                lockdown.isolate([log], limits={"open_files": -1})
            os.fstat(log)

        in_child(body)


@needs_landlock
class TestLandlock:
    READ = lockdown.READ_FILE | lockdown.READ_DIR

    @pytest.fixture
    def tree(self, tmp_path):
        (tmp_path / "open/deep").mkdir(parents=True)
        for name in ("open/deep/file", "single", "closed"):
            (tmp_path / name).write_text("hello")
        return tmp_path

    def rules(self, tree: Path, *names: str) -> list[tuple[bytes, int]]:
        return [(os.fsencode(tree / name), self.READ) for name in names]

    def test_what_is_left(self, tree):
        def body(log):
            lockdown.isolate([log])
            assert lockdown.landlock_restrict(self.rules(tree, "open", "single")) == min(lockdown.landlock_abi(), 7)
            assert (tree / "open/deep/file").read_text() == "hello"
            assert (tree / "single").read_text() == "hello"
            assert os.listdir(tree / "open") == ["deep"]
            for path in (tree / "closed", "/etc/passwd", "/proc/self/status", "/dev/null"):
                raises(errno.EACCES, open, path)
            raises(errno.EACCES, os.listdir, tree)
            raises(errno.EACCES, open, tree / "single", "w")
            raises(errno.EACCES, os.mkdir, tree / "open/new")
            raises(errno.EACCES, os.unlink, tree / "open/deep/file")

        in_child(body)

    @pytest.mark.parametrize("abi", range(1, 8))
    def test_as_an_older_kernel(self, tree, abi):
        if abi > lockdown.landlock_abi():
            pytest.skip("newer than this kernel")

        def body(log):
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            tcp = socket.socket()
            assert lockdown.landlock_restrict(self.rules(tree, "open"), abi) == abi
            raises(errno.EACCES, open, tree / "closed")
            assert (tree / "open/deep/file").read_text() == "hello"
            expected = [
                (3, errno.EACCES, lambda: os.truncate(tree / "closed", 1)),
                (4, errno.EACCES, lambda: tcp.bind(("127.0.0.1", 0))),
                (6, errno.EPERM, lambda: os.kill(os.getppid(), 0)),
            ]
            for since, number, call in expected:
                if abi >= since:
                    raises(number, call)
                else:
                    call()

        in_child(body)

    def test_rights_by_abi(self):
        assert [lockdown.landlock_rights(abi) for abi in range(7)] == [
            0, 0x1FFF, 0x3FFF, 0x7FFF, 0x7FFF, 0xFFFF, 0xFFFF
        ]  # fmt: skip
        names = "EXECUTE WRITE_FILE READ_FILE READ_DIR REMOVE_DIR REMOVE_FILE MAKE_CHAR MAKE_DIR MAKE_REG"
        names += " MAKE_SOCK MAKE_FIFO MAKE_BLOCK MAKE_SYM REFER TRUNCATE IOCTL_DEV"
        assert [getattr(lockdown, name) for name in names.split()] == [1 << bit for bit in range(16)]

    def test_a_missing_path_is_named_and_nothing_is_dropped(self, tree):
        def body(log):
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            with pytest.raises(FileNotFoundError) as error:
                lockdown.landlock_restrict(self.rules(tree, "open", "missing", "single"))
            assert error.value.filename == str(tree / "missing")
            assert (tree / "closed").read_text() == "hello"  # no rule at all is in force

        in_child(body)

    @pytest.mark.parametrize(
        ("name", "rights", "message"),
        [
            ("open", 0, "rights 0x0"),
            ("open", 1 << 16, "rights 0x10000"),
            ("single", lockdown.READ_DIR, "rights 0x8 don't apply"),
        ],
    )
    def test_rights_that_do_not_apply(self, tree, name, rights, message):
        def body(log):
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            with pytest.raises(ValueError, match=message):
                lockdown.landlock_restrict([(os.fsencode(tree / name), rights)])

        in_child(body)

    def test_arguments(self, tree):
        def body(log):
            with pytest.raises(PermissionError, match="no_new_privs"):
                lockdown.landlock_restrict([])
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            with pytest.raises(TypeError, match="bytes"):
                lockdown.landlock_restrict([(str(tree), self.READ)])
            with pytest.raises(ValueError, match="zero byte"):
                lockdown.landlock_restrict([(b"/tmp\0/x", self.READ)])
            with pytest.raises(ValueError, match="begin at 1"):
                lockdown.landlock_restrict([], 0)
            threading.Thread(target=time.sleep, args=[60], daemon=True).start()
            with pytest.raises(OSError, match="several threads"):
                lockdown.landlock_restrict([])

        in_child(body)

    def test_no_rules_leave_nothing(self):
        def body(log):
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            lockdown.landlock_restrict([])
            raises(errno.EACCES, os.listdir, "/")
            lockdown.canary(b"/etc/passwd")

        in_child(body)


LOAD_NUMBER = struct.pack("<HBBI", 0x20, 0, 0, 0)  # BPF_LD | BPF_W | BPF_ABS, offset of seccomp_data.nr
GETPPID = {"x86_64": 110, "aarch64": 173}[os.uname().machine]
OPENAT = {"x86_64": 257, "aarch64": 56}[os.uname().machine]
KILL_PROCESS, ERRNO, USER_NOTIF, ALLOW = 0x80000000, 0x00050000, 0x7FC00000, 0x7FFF0000


def program(number: int, action: int) -> bytes:
    """A filter that does ``action`` on one system call, and allows all others."""
    jump = struct.pack("<HBBI", 0x15, 0, 1, number)  # BPF_JMP | BPF_JEQ | BPF_K: else skip one
    returns = [struct.pack("<HBBI", 0x06, 0, 0, value) for value in (action, ALLOW)]
    return LOAD_NUMBER + jump + b"".join(returns)


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
        assert "test_lockdown.py" in text
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


def test_the_order_of_a_worker(tmp_path):
    """S0, S1, S2 as main runs them, then everything that must hold at once."""

    def body(log):
        lockdown.isolate([2, log])
        lockdown.landlock_restrict([(os.fsencode(tmp_path), TestLandlock.READ)])
        lockdown.install_filter(program(GETPPID, ERRNO | 1), all_threads=False)
        thread = threading.Thread(target=time.sleep, args=[60], daemon=True)
        thread.start()
        lockdown.install_filter(program(OPENAT, ERRNO | errno.EACCES), all_threads=True)
        lockdown.canary(b"/etc/passwd")
        lockdown.canary(os.fsencode(tmp_path))

    if lockdown.landlock_abi() == 0:
        pytest.skip("this kernel has no Landlock")
    in_child(body)
