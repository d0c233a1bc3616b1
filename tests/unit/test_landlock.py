"""Landlock's rules, in a forked child that can't get out of them, judged by what still works there."""

import errno
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from child import PR_SET_NO_NEW_PRIVS, READ, in_child, needs_landlock, prctl, raises

from vortex_worker._core import lockdown


@needs_landlock
class TestLandlock:
    @pytest.fixture
    def tree(self, tmp_path):
        (tmp_path / "open/deep").mkdir(parents=True)
        for name in ("open/deep/file", "single", "closed"):
            (tmp_path / name).write_text("hello")
        return tmp_path

    def rules(self, tree: Path, *names: str) -> list[tuple[bytes, int]]:
        return [(os.fsencode(tree / name), READ) for name in names]

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
                lockdown.landlock_restrict([(str(tree), READ)])
            with pytest.raises(ValueError, match="zero byte"):
                lockdown.landlock_restrict([(b"/tmp\0/x", READ)])
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
