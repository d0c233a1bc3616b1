from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "handle.h" nogil:
    enum: VW_MAX_NDIM
    enum: VW_DTYPE_COUNT

    enum vw_problem:
        VW_OK
        VW_BAD_ENCODING
        VW_BAD_ALIGNMENT
        VW_OUT_OF_REGION
        VW_ARROW_HAS_SHAPE
        VW_BAD_DTYPE
        VW_BAD_NDIM
        VW_BAD_SHAPE
        VW_BAD_STRIDE
        VW_TOO_LARGE
        VW_SIZE_MISMATCH
        VW_EXTENT

    ctypedef struct vw_handle:
        uint64_t offset
        uint64_t nbytes
        uint32_t dtype
        uint32_t encoding
        uint32_t ndim
        bint strided
        int64_t shape[32]
        int64_t strides[32]

    ctypedef struct vw_verdict:
        vw_problem problem
        uint64_t found
        uint64_t accepted

    uint32_t vw_itemsize(uint32_t dtype)
    vw_verdict vw_handle_check(const vw_handle *handle, uint64_t offset, uint64_t size)


cdef class TensorHandle:
    cdef vw_handle c                # the handle itself; never changes once made

    cdef int require(self, uint64_t offset, uint64_t size) except -1
    cdef int require_raw(self) except -1
