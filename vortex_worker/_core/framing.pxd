from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "<stdbool.h>" nogil:
    ctypedef bint c_bool "bool"


cdef extern from "frame.h" nogil:
    enum:
        VW_FRAME_HEADER
        VW_FRAME_LIMIT
        VW_WRITER_COPY
    const uint64_t VW_NOW
    const uint64_t VW_FOREVER

    ctypedef struct vw_frame:
        const uint8_t *body             # inside the reader, until the next feed, fill or recv
        uint32_t size

    ctypedef struct vw_reader:
        size_t capacity
        size_t begin
        size_t end
        uint32_t max_frame
        uint32_t announced
        c_bool eof
        uint32_t turns

    ctypedef struct vw_writer:
        size_t size
        size_t sent

    int vw_reader_init(vw_reader *reader, uint32_t max_frame)
    void vw_reader_free(vw_reader *reader)
    int vw_reader_feed(vw_reader *reader, const void *data, size_t size, size_t *taken)
    int vw_reader_next(vw_reader *reader, vw_frame *frame)
    long vw_reader_fill(vw_reader *reader, int fd, c_bool wait)
    void vw_reader_spin(vw_reader *reader)
    void vw_reader_sent(vw_reader *reader, uint64_t ns)
    int vw_reader_recv(vw_reader *reader, int fd, uint64_t deadline, vw_frame *frame)

    int vw_writer_init(vw_writer *writer)
    void vw_writer_free(vw_writer *writer)
    uint8_t *vw_writer_body(vw_writer *writer)
    int vw_writer_load(vw_writer *writer, const void *body, size_t size, uint32_t max_frame)
    int vw_writer_flush(vw_writer *writer, int fd, uint64_t deadline)
    c_bool vw_writer_torn(const vw_writer *writer)
    int vw_writer_lead(vw_writer *writer, int fd, int descriptor)
    int vw_peek_descriptor(int fd)


cdef class FrameReader:
    cdef vw_reader c


cdef class FrameSocket:
    cdef vw_reader reader
    cdef vw_writer writer
    cdef int fd                         # -1: closed
    cdef readonly uint64_t taken        # frames that recv and poll gave out
    cdef bint receiving, sending        # a thread is in there, maybe without the GIL
    cdef bint closing                   # close() waits for it

    # For codecs: the frame's bytes where they are. Valid until the next call on this socket.
    # 1: *frame. 0: the stream ended.
    cdef int recv_frame(self, object timeout, vw_frame *frame) except -1
    # Sends `size` bytes; they may lie in vw_writer_body(&self.writer), which saves a copy.
    cdef int send_frame(self, const void *body, size_t size, object timeout) except -1

    cdef int require_open(self) except -1
    cdef int leave(self) except -1
