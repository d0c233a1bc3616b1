"""Isolation, in a forked child that can't get out of it, judged by what still works there."""

import errno
import os
import resource
import signal
import threading
import time

import pytest
from child import NOBODY, PR_GET_DUMPABLE, ROOT, in_child, needs_root, prctl, process_status, raises

from vortex_worker._core import lockdown


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
