"""The locks that a worker puts on itself, and the fault handler. Trusted code calls these once, in
the order of ``main``; what each lock is for stands in csrc/lockdown.h, view.h, landlock.h and fault.h."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.ref cimport Py_INCREF
from libc.errno cimport EBUSY, EINVAL, ENOMSG, ENOSYS, EPERM, errno as errno_
from libc.stdint cimport uint64_t, uintptr_t

from vortex_worker._core._check cimport check
from vortex_worker._core.arena cimport vw_arena
from vortex_worker._core.slots cimport Slot

import errno
import os

cdef extern from "<sys/mman.h>" nogil:
    int mprotect(void *address, size_t size, int protection)
    enum: PROT_READ
    enum: PROT_EXEC

# Landlock's file rights. For a file: EXECUTE, WRITE_FILE, READ_FILE, TRUNCATE, IOCTL_DEV; for a
# folder and everything below it: all.
EXECUTE = VW_LANDLOCK_EXECUTE
WRITE_FILE = VW_LANDLOCK_WRITE_FILE
READ_FILE = VW_LANDLOCK_READ_FILE
READ_DIR = VW_LANDLOCK_READ_DIR
REMOVE_DIR = VW_LANDLOCK_REMOVE_DIR
REMOVE_FILE = VW_LANDLOCK_REMOVE_FILE
MAKE_CHAR = VW_LANDLOCK_MAKE_CHAR
MAKE_DIR = VW_LANDLOCK_MAKE_DIR
MAKE_REG = VW_LANDLOCK_MAKE_REG
MAKE_SOCK = VW_LANDLOCK_MAKE_SOCK
MAKE_FIFO = VW_LANDLOCK_MAKE_FIFO
MAKE_BLOCK = VW_LANDLOCK_MAKE_BLOCK
MAKE_SYM = VW_LANDLOCK_MAKE_SYM
REFER = VW_LANDLOCK_REFER
TRUNCATE = VW_LANDLOCK_TRUNCATE
IOCTL_DEV = VW_LANDLOCK_IOCTL_DEV

_LIMITS = {
    "file_size": 0,         # RLIMIT_FSIZE: a worker writes no file
    "open_files": 256,      # RLIMIT_NOFILE: a dozen, and what reading nodes and weights takes
    "processes": 4096,      # RLIMIT_NPROC: threads of all workers of this user together
    "data": None,           # RLIMIT_DATA, bytes of private memory; None: as it is
}


def isolate(keep, *, limits=None, user=None, group=None):
    """S0: give up all that was inherited, once and for all.

    Every descriptor but ``keep`` closes (0, 1 and 2 become /dev/null), then: a session of its own,
    ``user`` and ``group`` if given, resource limits, no capability in any set, not dumpable,
    no_new_privs. As root, the uid stays 0 but means nothing any more.

    Args:
        keep: descriptors that stay open.
        limits: any of ``file_size`` (bytes; 0), ``open_files`` (256), ``processes`` (4096), ``data``
            (bytes of private memory; as it is). Limits that are lower already stay. No core files.
            With ``file_size`` 0, a write to a regular file is SIGXFSZ: also a log on stderr.
        user, group: numeric ids to change to; needs root.

    Raises:
        OSError: a step failed, the message says which. The process is half locked and should exit.
            EBUSY: it has several threads.
    """
    cdef vw_isolation wanted
    cdef vw_step failed = VW_STEP_THREADS
    cdef int rc
    limits = dict(limits or {})
    unknown = limits.keys() - _LIMITS.keys()
    if unknown:
        raise ValueError(f"unknown limits {sorted(unknown)}: there are {list(_LIMITS)}")
    limits = _LIMITS | limits
    wanted.file_size = limits["file_size"]
    wanted.open_files = limits["open_files"]
    wanted.processes = limits["processes"]
    wanted.data = VW_NO_LIMIT if limits["data"] is None else limits["data"]
    wanted.user = VW_SAME_ID if user is None else _id(user)
    wanted.group = VW_SAME_ID if group is None else _id(group)
    kept = sorted(set(keep))
    cdef int *fds = <int *>PyMem_Malloc((len(kept) + 1) * sizeof(int))
    if fds == NULL:
        raise MemoryError
    try:
        for i, fd in enumerate(kept):
            fds[i] = fd
        wanted.keep = fds
        wanted.keep_count = len(kept)
        rc = vw_isolate(&wanted, &failed)
    finally:
        PyMem_Free(fds)
    if rc < 0:
        raise OSError(-rc, f"isolate: {vw_step_name(failed).decode()}: {os.strerror(-rc)}")


def _id(number):
    # -1 would mean "leave it", and drop nothing.
    if not 0 <= number < 0xFFFFFFFF:
        raise ValueError(f"user or group id {number}: it must be 0 to 4294967294")
    return number


def thread_count():
    """Threads of this process, as the kernel counts them."""
    return check(vw_thread_count())


def enter_view(shown, links=()):
    """S0, before ``isolate``: from now on nothing exists but what is listed, and all of it read-only.

    The process gets a mount namespace of its own, without the privilege for that one of users, too, and "/" as
    working directory. Beside what is listed it sees its own part of /proc.

    Args:
        shown: absolute paths (bytes) of files and folders, as ``os.path.realpath`` gives them, none inside another.
        links: pairs of path and text of symbolic links that lie outside of them.

    Raises:
        OSError: it can't be had (the message says which step failed), and the process sees what it saw before.
        RuntimeError: the same, but the process is half in, and must exit.
    """
    cdef vw_view wanted
    cdef vw_view_step failed = VW_VIEW_PATHS
    cdef size_t i, at = 0
    cdef int rc
    shown, links = list(shown), list(links)
    wanted.shown_count, wanted.link_count = len(shown), len(links)
    cdef const char **paths = <const char **>PyMem_Malloc((wanted.shown_count + 1) * sizeof(char *))
    cdef vw_view_link *table = <vw_view_link *>PyMem_Malloc((wanted.link_count + 1) * sizeof(vw_view_link))
    try:
        if paths == NULL or table == NULL:
            raise MemoryError
        for i in range(wanted.shown_count):
            paths[i] = c_path(shown[i])
        for i in range(wanted.link_count):
            path, target = links[i]
            table[i].path = c_path(path)
            table[i].target = c_path(target)
        wanted.shown, wanted.links = paths, table
        rc = vw_view_enter(&wanted, &failed, &at)
    finally:
        PyMem_Free(paths)
        PyMem_Free(table)
    if rc == 0:
        return
    why = f"view: {vw_view_step_name(failed).decode()}: {os.strerror(-rc)}"
    if failed == VW_VIEW_DETACH:
        raise RuntimeError(why)
    if failed == VW_VIEW_LINK and at < wanted.link_count:
        raise OSError(-rc, why, os.fsdecode(links[at][0]))
    raise OSError(-rc, why, *([os.fsdecode(shown[at])] if at < wanted.shown_count else []))


def landlock_abi():
    """What the kernel's Landlock can do; 0 where there is none."""
    return vw_landlock_abi()


def landlock_rights(int abi):
    """Every file right of that ABI, and so what ``landlock_restrict`` takes away."""
    return vw_landlock_rights(abi)


def landlock_restrict(rules, abi=None):
    """S1: from now on, only what ``rules`` give. Also no TCP (ABI 4), no device ioctl (5), and no
    abstract socket or signal to outside (6).

    Args:
        rules: pairs of path (bytes) and rights. A folder's hold for all below it; rights that a
            file can't have are left out for one, and so are rights newer than the ABI.
        abi: behave as on a kernel of this ABI, if that is less than the kernel's.

    Returns:
        the ABI in force, at most 7.

    Raises:
        OSError: a path can't be opened (named, and no rule at all is in force), ENOSYS: no
            Landlock; EBUSY: several threads; EPERM: no_new_privs is not set.
        ValueError: unknown rights, or none that apply.
    """
    cdef size_t failed, i
    cdef int rc
    cdef int limit = 0
    cdef uint64_t rights
    if abi is not None:
        if abi < 1:
            raise ValueError(f"Landlock ABI {abi}: they begin at 1")
        limit = min(abi, 1 << 16)
    rules = [(path, given) for path, given in rules]
    cdef size_t count = len(rules)
    cdef vw_landlock_rule *table = <vw_landlock_rule *>PyMem_Malloc((count + 1) * sizeof(vw_landlock_rule))
    if table == NULL:
        raise MemoryError
    try:
        for i in range(count):
            path, rights = rules[i]
            table[i].path = c_path(path)
            table[i].rights = rights
        rc = vw_landlock_restrict(table, count, limit, &failed)
    finally:
        PyMem_Free(table)
    if rc >= 0:
        return rc
    if failed < count:
        path, rights = rules[failed]
        if rc == -EINVAL or rc == -ENOMSG:
            raise ValueError(f"Landlock rule for {os.fsdecode(path)!r}: rights {rights:#x} don't apply to it")
        raise OSError(-rc, os.strerror(-rc), os.fsdecode(path))
    reasons = {
        ENOSYS: "this kernel has none",
        EBUSY: "there are several threads",
        EPERM: "no_new_privs is not set",
    }
    raise OSError(-rc, f"Landlock: {reasons.get(-rc, os.strerror(-rc))}")


cdef const char *c_path(path) except NULL:
    """The bytes of a path, for as long as the object lives."""
    if not isinstance(path, bytes):
        raise TypeError(f"a path is bytes here, not {type(path).__name__}")
    if b"\0" in path:
        raise ValueError("a path holds no zero byte")
    return PyBytes_AS_STRING(path)


def install_filter(bytes program not None, *, bint all_threads, bint listener=False):
    """Install a compiled seccomp program (``struct sock_filter``, 8 bytes each), for good.

    Args:
        all_threads: on every thread of the process, or on none; else on the calling one only.
        listener: return the descriptor on which the program's SECCOMP_RET_USER_NOTIF are told.

    Raises:
        ValueError: it is not a program of 1 to 4096 instructions.
        OSError: EPERM: no_new_privs is not set; EBUSY: a thread has a filter of its own and could
            not take this one; EINVAL: the kernel refuses the program.
    """
    cdef unsigned flags = 0
    cdef int thread, rc
    cdef size_t size = PyBytes_GET_SIZE(program)
    if size == 0 or size % 8 or size // 8 > VW_FILTER_MOST:
        raise ValueError(f"a filter program of {size} bytes: it must be 1 to {VW_FILTER_MOST} times 8")
    if all_threads:
        flags |= VW_FILTER_ALL_THREADS
    if listener:
        flags |= VW_FILTER_LISTENER
    rc = vw_install_filter(PyBytes_AS_STRING(program), size, flags, &thread)
    if rc == -EBUSY and all_threads:
        who = f"thread {thread}" if thread else "a thread"
        raise OSError(EBUSY, f"seccomp: {who} has a filter of its own and can't take this one")
    if rc == -EPERM:
        raise OSError(EPERM, "seccomp: no_new_privs is not set")
    if rc < 0:
        raise OSError(-rc, f"seccomp: {os.strerror(-rc)}")
    return rc if listener else None


def freeze_code(int maps):
    """Take the right to write from all memory of this process that may be executed, and see that it is so.

    Args:
        maps: a descriptor of /proc/self/maps, opened before Landlock closed it.

    Raises:
        OSError: the kernel refuses.
        RuntimeError: some memory is writable and executable all the same, or everything is (personality(2),
            READ_IMPLIES_EXEC).
    """
    for start, end in _writable_code(maps):
        if mprotect(<void *><uintptr_t>start, end - start, PROT_READ | PROT_EXEC) < 0:
            raise OSError(errno_, f"freezing code at {start:#x}: {os.strerror(errno_)}")
    left = _writable_code(maps)
    if left:
        raise RuntimeError(f"{len(left)} pieces of memory can be written and executed")


def _writable_code(int maps):
    """``(start, end)`` of each mapping that can be."""
    text = b""
    os.lseek(maps, 0, os.SEEK_SET)
    while piece := os.read(maps, 1 << 16):
        text += piece
    found = []
    for line in text.splitlines():
        bounds, rights, _, _, _, *name = line.split(None, 5)
        if b"w" in rights and b"x" in rights:
            if name and name[0].startswith((b"[heap]", b"[stack")):
                raise RuntimeError(f"{name[0].decode()} is executable")
            start, end = bounds.split(b"-")
            found.append((int(start, 16), int(end, 16)))
    return found


def canary(path, expected=(errno.EACCES, errno.EPERM)):
    """Prove the sandbox: open a file that exists, which must be denied.

    Raises:
        RuntimeError: it opened, or failed in a way (such as ENOENT) that proves nothing.
    """
    cdef int found = vw_canary(c_path(path))
    if found == 0:
        raise RuntimeError(f"sandbox canary: opened {os.fsdecode(path)}")
    if found not in expected:
        name = errno.errorcode.get(found, found)
        raise RuntimeError(f"sandbox canary: {os.fsdecode(path)} failed with {name}, which proves nothing")


def install_fault_handler(Slot slot not None, regions=None):
    """Record in ``slot`` where in the arena a SIGSEGV or SIGBUS hits, then let it kill as before.

    Install it after ``faulthandler.enable()``: that then still prints.

    Args:
        regions: ``(address, size, arena offset)`` of the arena's mappings; up to 8. None: those of
            the slot's arena as they are now, so after ``Arena.lease``.
    """
    cdef vw_fault_region table[VW_FAULT_REGIONS]
    cdef vw_arena *arena = slot.arena.c
    cdef size_t count = 0
    slot.at()
    if regions is None:
        regions = [(<size_t>arena.base, arena.size, 0)]
        if arena.lease != NULL:
            regions.append((<size_t>arena.lease, arena.lease_size, arena.lease_offset))
    for address, size, offset in regions:
        if count == VW_FAULT_REGIONS:
            raise ValueError(f"more than {VW_FAULT_REGIONS} regions")
        table[count].address = address
        table[count].size = size
        table[count].offset = offset
        count += 1
    check(vw_fault_install(slot.at(), table, count))
    # The handler has a pointer into the arena until the process ends, so the arena never closes.
    Py_INCREF(slot)
    slot.arena._views += 1
