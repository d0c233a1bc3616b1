"""Frames over a stream socket: a 4-byte little-endian length, then the body."""

import sys

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, EMSGSIZE, ENODATA, ENOMSG, ETIMEDOUT
from libc.stdint cimport uint64_t
from posix.unistd cimport close

from vortex_worker._core._check cimport check

from vortex_worker.errors import ProtocolError


cdef extern from "clock.h" nogil:
    uint64_t vw_monotonic_ns()


cdef extern from "<sys/socket.h>" nogil:
    int SHUT_RD
    int SHUT_RDWR
    int shutdown(int fd, int how)


MAX_FRAME = 16 << 20  # 16 MiB, the limit unless another is configured
HEADER_SIZE = VW_FRAME_HEADER


cdef uint64_t deadline_of(object timeout) except? 1:
    """Seconds from now, or None, as a CLOCK_MONOTONIC deadline."""
    cdef double seconds
    if timeout is None:
        return VW_FOREVER
    seconds = timeout
    if not seconds > 0:  # NaN too
        return VW_NOW
    if seconds > 1e9:  # 30 years, and no overflow
        return VW_FOREVER
    return vw_monotonic_ns() + <uint64_t>(seconds * 1e9)


cdef int start_reader(vw_reader *reader, object max_frame) except -1:
    # Wider than uint32_t, so that every number gets the same answer.
    if not 1 <= max_frame <= VW_FRAME_LIMIT:
        raise ValueError(f"max_frame is {max_frame}: it must be 1 to {VW_FRAME_LIMIT} bytes")
    return check(vw_reader_init(reader, max_frame))


cdef object bad_length(vw_reader *reader):
    return ProtocolError(
        f"a frame announces {reader.announced} bytes: it must be 1 to {reader.max_frame}",
        {"length": str(reader.announced), "limit": str(reader.max_frame)},
    )


cdef object cut_frame(vw_reader *reader):
    cdef size_t held = reader.end - reader.begin
    if held < VW_FRAME_HEADER:
        return ProtocolError(f"the stream ended inside a frame's header, {held} of 4 bytes in")
    return ProtocolError(
        f"the stream ended inside a frame, {held - VW_FRAME_HEADER} of {reader.announced} bytes in"
    )


cdef bytes copy_of(vw_frame *frame):
    return PyBytes_FromStringAndSize(<const char *>frame.body, frame.size)


cdef class FrameReader:
    """The parser alone: bytes in, frames out. Knows no socket."""

    def __cinit__(self, max_frame=MAX_FRAME):
        start_reader(&self.c, max_frame)

    def __dealloc__(self):
        vw_reader_free(&self.c)

    def feed(self, bytes data not None):
        """Take in bytes of the stream, cut anywhere; give the bodies that are complete with them.

        Raises:
            ProtocolError: a length is 0 or above the limit. Again at every later call.
        """
        cdef const char *at = PyBytes_AS_STRING(data)
        cdef size_t left = PyBytes_GET_SIZE(data)
        cdef size_t taken
        cdef vw_frame frame
        cdef int rc
        frames = []
        while True:
            rc = vw_reader_next(&self.c, &frame)
            if rc == 1:
                frames.append(copy_of(&frame))
            elif rc < 0:
                raise bad_length(&self.c)
            elif left == 0:
                return frames
            else:
                check(vw_reader_feed(&self.c, at, left, &taken))
                at += taken
                left -= taken

    @property
    def pending(self):
        """Bytes held of a frame that is not complete."""
        return self.c.end - self.c.begin

    @property
    def capacity(self):
        """Bytes of memory held."""
        return self.c.capacity


cdef class FrameSocket:
    """A connected stream socket that carries frames. Owns its descriptor.

    One thread may receive while another sends; two of a kind at once is a RuntimeError. Blocking
    and non-blocking descriptors behave alike. ``timeout`` is in seconds; None waits, 0 never waits.
    """

    def __cinit__(self, int fd, max_frame=MAX_FRAME):
        self.fd = -1  # until nothing can fail any more: then, and only then, it is ours to close
        start_reader(&self.reader, max_frame)
        check(vw_writer_init(&self.writer))
        if fd < 0:
            raise ValueError(f"fd is {fd}: not a descriptor")
        self.fd = fd

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)
        vw_reader_free(&self.reader)
        vw_writer_free(&self.writer)

    cdef int require_open(self) except -1:
        if self.fd < 0 or self.closing:
            raise ValueError("the frame socket is closed")
        return 0

    def spin(self):
        """Let ``recv`` look for some 100 µs before it waits, where that has paid: a peer on another CPU that
        answers soon is then heard sooner than by being woken."""
        vw_reader_spin(&self.reader)

    def crowded(self, uint32_t turns):
        """Whether ``recv`` and ``send`` have let somebody else on this CPU go first so often, and no frame that ``recv`` looked
        for has come without: most likely that is the peer. Counts anew when it says so."""
        if self.reader.turns < turns:
            return False
        self.reader.turns = 0
        return True

    cdef int leave(self) except -1:
        # The last one out of a socket that was closed meanwhile.
        if self.closing and not self.receiving and not self.sending:
            self.closing = False
            close(self.fd)
            self.fd = -1
        return 0

    cdef int recv_frame(self, object timeout, vw_frame *frame) except -1:
        cdef uint64_t deadline
        cdef int rc
        self.require_open()
        if self.receiving:
            raise RuntimeError("another thread is receiving from this frame socket")
        rc = vw_reader_next(&self.reader, frame)  # already here: no system call
        if rc == 1:
            return 1
        deadline = deadline_of(timeout)
        self.receiving = True
        try:
            while True:
                if deadline == VW_NOW:
                    rc = vw_reader_recv(&self.reader, self.fd, deadline, frame)
                else:
                    with nogil:
                        rc = vw_reader_recv(&self.reader, self.fd, deadline, frame)
                if rc != -EINTR:
                    break
                PyErr_CheckSignals()
        finally:
            self.receiving = False
            self.leave()
        if rc >= 0:
            return rc
        if rc == -EMSGSIZE:
            raise bad_length(&self.reader)
        if rc == -ENODATA:
            raise cut_frame(&self.reader)
        if rc == -ETIMEDOUT:
            raise TimeoutError(f"no frame within {timeout} s")
        return check(rc)

    cdef int send_frame(self, const void *body, size_t size, object timeout) except -1:
        cdef uint64_t deadline
        cdef int rc
        self.require_open()
        if self.sending:
            raise RuntimeError("another thread is sending on this frame socket")
        if vw_writer_torn(&self.writer):
            raise BrokenPipeError("an earlier frame was cut short: nothing more can be sent")
        if vw_writer_load(&self.writer, body, size, self.reader.max_frame):
            raise ValueError(f"a frame of {size} bytes: it must be 1 to {self.reader.max_frame}")
        # A small frame nearly always fits into the socket's buffer. Trying that first keeps the GIL,
        # and so the 5 ms that taking it back can cost while another thread computes.
        cdef uint64_t begun = vw_monotonic_ns()
        rc = vw_writer_flush(&self.writer, self.fd, VW_NOW) if size <= VW_WRITER_COPY else -EINTR
        vw_reader_sent(&self.reader, vw_monotonic_ns() - begun)
        if rc == 0:
            return 0
        deadline = deadline_of(timeout)
        self.sending = True
        try:
            while rc == -EINTR or (rc == -ETIMEDOUT and deadline != VW_NOW):
                PyErr_CheckSignals()
                with nogil:
                    rc = vw_writer_flush(&self.writer, self.fd, deadline)
                if rc == -ETIMEDOUT:
                    break
        finally:
            self.sending = False
            self.leave()
        if rc == -ETIMEDOUT:
            raise TimeoutError(f"the peer did not take a frame of {size} bytes within {timeout} s")
        return check(rc)

    def recv(self, timeout=None):
        """The next frame's body; None when the peer has closed between two frames.

        Raises:
            ProtocolError: a length is 0 or above the limit, or the stream ended inside a frame.
            TimeoutError: no whole frame in time; what has come of it is kept.
        """
        cdef vw_frame frame
        if self.recv_frame(timeout, &frame) == 0:
            return None
        self.taken += 1
        return copy_of(&frame)

    def poll(self, Py_ssize_t most=sys.maxsize):
        """The bodies of all complete frames that are here now, up to ``most``; [] if none. Never waits.

        Takes what one receive gives; call again when the descriptor is readable again, or at once if there is
        ``more``. Look at ``eof`` when the list is empty: a closed peer stays readable.

        Raises:
            ProtocolError: a length is 0 or above the limit, and no frame came before it.
        """
        cdef vw_frame frame
        cdef long got
        cdef int rc
        cdef bint filled = False
        self.require_open()
        if self.receiving:
            raise RuntimeError("another thread is receiving from this frame socket")
        frames = []
        while True:
            rc = vw_reader_next(&self.reader, &frame)
            if rc == 1:
                self.taken += 1
                frames.append(copy_of(&frame))
                if len(frames) >= most:
                    return frames
            elif rc < 0:
                if frames:
                    return frames  # those came whole; the next call will raise
                raise bad_length(&self.reader)
            elif filled:
                return frames
            else:
                filled = True
                got = vw_reader_fill(&self.reader, self.fd, False)
                if got < 0 and got != -EAGAIN and got != -EINTR:
                    if frames:
                        return frames
                    check(<int>got)

    def send(self, bytes body not None, timeout=None):
        """Send one frame.

        Raises:
            ValueError: ``body`` is empty, or above the limit.
            ConnectionError: nobody reads any more.
            TimeoutError: the peer did not take it in time. If a part had left already, the
                stream is of no more use: every later send is a BrokenPipeError.
        """
        self.send_frame(PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), timeout)

    def send_with(self, bytes body not None, int descriptor):
        """Send one frame and, beside its first bytes, a descriptor: the receiver gets one of its own.

        Waits as long as it takes. Raises as ``send``, and OSError: the descriptor can't be sent.
        """
        cdef int rc = -EINTR
        self.require_open()
        if self.sending:
            raise RuntimeError("another thread is sending on this frame socket")
        if vw_writer_torn(&self.writer):
            raise BrokenPipeError("an earlier frame was cut short: nothing more can be sent")
        if vw_writer_load(&self.writer, PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), self.reader.max_frame):
            raise ValueError(f"a frame of {len(body)} bytes: it must be 1 to {self.reader.max_frame}")
        while rc == -EINTR:
            PyErr_CheckSignals()
            rc = vw_writer_lead(&self.writer, self.fd, descriptor)
        while rc == 0 and vw_writer_torn(&self.writer):
            rc = vw_writer_flush(&self.writer, self.fd, VW_FOREVER)
            if rc == -EINTR:
                PyErr_CheckSignals()
                rc = 0
        check(rc)

    def peek_descriptor(self):
        """The descriptor that came beside the next byte, as a new one of ours; -1: there is none.

        To be asked before that byte is received: receiving it discards the descriptor.
        """
        self.require_open()
        cdef int found = vw_peek_descriptor(self.fd)
        return -1 if found == -ENOMSG else check(found)

    @property
    def buffered(self):
        """Bytes received and not given out: nothing may be left to come, and the descriptor not be readable."""
        return self.reader.end - self.reader.begin

    def stop_receiving(self):
        """Take in nothing more, and end the wait of a thread in ``recv``, as at the stream's end.

        What has come already can still be taken. Any thread.
        """
        if self.fd >= 0:
            shutdown(self.fd, SHUT_RD)

    @property
    def more(self):
        """Whether ``poll`` would give a frame, or raise, of what has been received already."""
        cdef vw_reader ahead = self.reader
        cdef vw_frame frame
        return vw_reader_next(&ahead, &frame) != 0

    @property
    def eof(self):
        """The peer has closed, and everything it sent before has been received."""
        return bool(self.reader.eof)

    @property
    def closed(self):
        return self.fd < 0 or self.closing

    def fileno(self):
        """The descriptor; -1 once closed."""
        return -1 if self.closing else self.fd

    def close(self):
        """Close. Idempotent. A thread that waits in ``recv`` or ``send`` is woken first."""
        if self.fd < 0 or self.closing:
            return
        self.closing = True
        if self.receiving or self.sending:
            # Closing a descriptor wakes nobody, and its number might be taken before they look.
            shutdown(self.fd, SHUT_RDWR)
        self.leave()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
