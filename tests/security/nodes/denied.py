"""A node that makes one denied system call, after it has done what it can to die unrecognised."""

import contextlib
import ctypes
import mmap
import signal
import sys
import threading
import time

from vortex_worker.executor import AbstractExecutor, Param, Port

GETPGID = 121  # on x86-64; no policy has a use for it
INT_80 = bytes.fromhex("b80b000000cd80c3")  # mov eax, 11; int 0x80; ret: execve, were this i386


def call(number: int, *args: int) -> None:
    ctypes.CDLL(None).syscall(ctypes.c_long(number), *map(ctypes.c_long, args))


def machine_code(code: bytes) -> None:
    room = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    room.write(code)
    ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(room)))()


def start_a_program(how: str) -> None:
    os = sys.modules["os"]  # what the import hook wouldn't let us import
    if how == "posix_spawn":
        os.posix_spawn("/bin/true", ["true"], {})
    elif how == "fork":
        os.fork()
    else:
        os.pipe = lambda: (os.dup(2), os.dup(2))  # the first thing it does, and refused: nothing more would happen
        sys.modules["subprocess"].run(["/bin/true"], check=False)


def handler_object():
    frame = sys._getframe()
    while frame.f_code.co_filename.rpartition("/")[2] != "handler.py":
        frame = frame.f_back
    return frame.f_locals["self"]


class Denied(AbstractExecutor):
    """Makes a system call that is denied."""

    op_type = "Denied"
    output_ports = (Port("how", "STRING"),)
    params = (Param("how", "STRING"),)

    def execute(self, inputs, params):
        how = params["how"]
        if how == "ignored":
            with contextlib.suppress(PermissionError):
                signal.signal(signal.SIGSYS, signal.SIG_IGN)
        elif how == "handled":
            with contextlib.suppress(PermissionError):
                signal.signal(signal.SIGSYS, lambda *_: None)
        elif how == "blocked":
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
        elif how == "descriptors":
            close = ctypes.CDLL(None).close
            for fd in range(256):
                close(fd)
        elif how == "slot":
            slot = handler_object().slot
            slot.set_status(5)
            slot.register(1)
            slot.begin(1 << 60)
        elif how == "a result":
            pass
        if how == "thread":
            thread = threading.Thread(target=call, args=(GETPGID, 7))
            thread.start()
            thread.join()
        elif how == "int 0x80":
            machine_code(INT_80)
        elif how == "x32":
            call(0x4000_0000 | 39)
        elif how == "number -1":
            call(-1)
        elif how == "number 1000":
            call(1000)
        elif how in ("execve", "clone", "socket"):
            call({"execve": 59, "clone": 56, "socket": 41}[how], 17, 1, 0)  # 17 for clone: as fork(2) does
        elif how in ("sendmsg", "seccomp"):
            call({"sendmsg": 46, "seccomp": 317}[how], 1, 0, 0)
        elif how in ("posix_spawn", "subprocess", "fork"):
            start_a_program(how)
        elif how == "a result":
            # The call waits in a thread of its own, and this one answers meanwhile.
            threading.Thread(target=call, args=(GETPGID, 7)).start()
            time.sleep(0.01)
        else:
            call(GETPGID, 7)
        return {"how": how}
