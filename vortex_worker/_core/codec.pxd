from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from vortex_worker._core.handle cimport vw_handle


cdef extern from "<stdbool.h>" nogil:
    ctypedef bint c_bool "bool"


cdef extern from "codec.h" nogil:
    enum vw_body:
        VW_JOB_SUBMIT
        VW_JOB_PROGRESS
        VW_JOB_RESULT
        VW_RELEASE

    enum vw_kind:
        VW_TENSOR
        VW_OBJECT
        VW_NULL
        VW_BOOLEAN
        VW_INT64
        VW_UINT64
        VW_FLOAT64
        VW_TEXT
        VW_DATA
        VW_LIST
        VW_MAP

    enum vw_part:
        VW_FIRST
        VW_SECOND

    enum: VW_VALUE_DEPTH

    ctypedef struct vw_span:
        const uint8_t *at               # inside the frame's body
        uint32_t size

    ctypedef union vw_scalar:
        uint64_t natural
        int64_t integer
        double real

    ctypedef struct vw_node:
        uint8_t kind
        uint8_t part
        uint32_t end
        vw_span key
        vw_scalar number "is"
        vw_span bytes

    ctypedef struct vw_packet:
        vw_body body
        uint64_t job_id
        uint64_t deadline
        vw_span text
        vw_span preview
        uint32_t step, total
        uint64_t timings[4]
        uint32_t count
        vw_node nodes[256]

    int vw_packet_read(vw_packet *packet, const void *body, size_t size)
    int vw_handle_read(vw_handle *handle, vw_span message)


cdef extern from "encode.h" nogil:
    ctypedef struct vw_out:
        uint8_t *data
        size_t size
        size_t capacity
        c_bool failed

    void vw_out_free(vw_out *out)
    void vw_out_number(vw_out *out, uint32_t field, uint64_t value)
    void vw_out_nonzero(vw_out *out, uint32_t field, uint64_t value)
    void vw_out_signed(vw_out *out, uint32_t field, int64_t value)
    void vw_out_real(vw_out *out, uint32_t field, double value)
    void vw_out_bytes(vw_out *out, uint32_t field, const void *bytes, size_t size)
    void vw_out_handle(vw_out *out, uint32_t field, const vw_handle *handle)
    size_t vw_out_begin(vw_out *out, uint32_t field)
    void vw_out_varint(vw_out *out, uint64_t value)
    void vw_out_end(vw_out *out, size_t begun)


cdef class ObjectHandle:
    cdef readonly uint64_t id           # the worker's own numbering
    cdef readonly str type              # its port type


cdef class JobSubmit:
    cdef readonly uint64_t job_id
    cdef readonly uint64_t deadline     # CLOCK_MONOTONIC ns; 0: none
    cdef readonly str op_type
    cdef readonly dict inputs, params   # plain data, TensorHandle, ObjectHandle
    cdef readonly object malformed      # the JobError that its values are; None


cdef class JobProgress:
    cdef readonly uint64_t job_id
    cdef readonly uint32_t step, total
    cdef readonly str message
    cdef readonly object preview        # TensorHandle; None
    cdef readonly object malformed      # as JobSubmit


cdef class JobResult:
    cdef readonly uint64_t job_id
    cdef readonly dict outputs          # as inputs
    cdef readonly object error          # the JobError that the job ended with; None
    cdef readonly tuple timings         # ns: decode, map, execute, save
    cdef readonly object malformed      # as JobSubmit


cdef class Release:
    cdef readonly list offsets, objects
