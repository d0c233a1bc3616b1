"""What Python has no words for. A zygote asks the kernel to end it with its supervisor and to hold its memory
in huge pages, and loads libraries that it will need; a supervisor sends a signal to one thread of a worker. No locks;
all run with the GIL."""

from libc.errno cimport errno
from libc.stdint cimport uintptr_t

import os


cdef extern from "<signal.h>" nogil:
    enum: SIGKILL

cdef extern from "<sys/syscall.h>" nogil:
    enum: SYS_tgkill

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from "<sched.h>" nogil:
    int sched_getcpu()

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, ...)
    enum: PR_SET_PDEATHSIG
    enum: PR_SET_NAME

cdef extern from "<dlfcn.h>" nogil:
    void *dlopen(const char *path, int flags)
    enum: RTLD_NOW

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *address, size_t length, int advice)

cdef enum:
    MADV_COLLAPSE_ = 25  # Linux 6.1; older headers lack it
    HUGE_ = 2 << 20
    STEP_ = 16 << 20


def die_with_parent(int signal=SIGKILL):
    """Have the kernel kill this process when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG).

    Another signal than SIGKILL is this process's to act on.

    A parent that has died before is not noticed: look at a pipe or socket to it afterwards.
    """
    if prctl(PR_SET_PDEATHSIG, <unsigned long>signal, 0, 0, 0) < 0:
        raise OSError(errno, os.strerror(errno))


def signal_thread(int pid, int thread, int signal):
    """Send a signal to one thread of a process (tgkill(2)). False: there is no such thread, or not for us."""
    return syscall(SYS_tgkill, <long>pid, <long>thread, <long>signal) == 0


def cpu():
    """The CPU that this thread runs on, now (sched_getcpu(3))."""
    return sched_getcpu()


def set_name(bytes name not None):
    """The name that ``ps`` and ``top`` show: at most 15 bytes."""
    prctl(PR_SET_NAME, <unsigned long><uintptr_t><const char *>name, 0, 0, 0)


def load_library(bytes path not None):
    """Map a shared library for good (dlopen(3)), as Python would: whoever imports or loads it later finds it there.

    Returns whether it could be; if not, whoever needs it meets the reason.
    """
    return dlopen(<const char *>path, RTLD_NOW) is not NULL


def collapse():
    """Gather this process's private anonymous memory in 2 MiB pages (madvise(2), MADV_COLLAPSE), step by step.

    A fork copies one entry per page, so a process of huge pages forks several times faster. What
    the kernel can't gather stays as it is, and so does everything where the kernel is older than 6.1.

    Yields:
        the bytes that are now in huge pages as a whole, after each step of 16 MiB.
    """
    cdef uintptr_t start, end, size
    with open("/proc/self/maps") as file:
        lines = file.readlines()
    for line in lines:
        bounds, permissions, _, _, inode, *name = line.split(None, 5)
        if permissions != "rw-p" or inode != "0" or (name and name[0].startswith("[stack")):
            continue
        low, high = bounds.split("-")
        start = (<uintptr_t>int(low, 16) + HUGE_ - 1) // HUGE_ * HUGE_
        end = <uintptr_t>int(high, 16) // HUGE_ * HUGE_
        while start < end:
            size = min(end - start, STEP_)
            yield size if madvise(<void *>start, size, MADV_COLLAPSE_) == 0 else 0
            start += size
