# The one way from a C return code to an exception.
from cpython.exc cimport PyErr_SetFromErrno
from libc cimport errno


cdef inline int check(int rc) except -1:
    """0 or more: as it is. -errno: the OSError of that number."""
    if rc < 0:
        errno.errno = -rc
        PyErr_SetFromErrno(OSError)
        return -1
    return rc
