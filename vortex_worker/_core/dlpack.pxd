from libc.stdint cimport uint32_t

from vortex_worker._core.arena cimport Arena, vw_arena
from vortex_worker._core.handle cimport TensorHandle, vw_handle, vw_itemsize


cdef extern from "dlpack.h" nogil:
    ctypedef struct vw_dl_version:
        uint32_t major
        uint32_t minor

    ctypedef struct vw_dl_keep:
        void *arena
        void *owner

    ctypedef struct vw_dl_managed:
        vw_dl_keep keep

    ctypedef struct vw_dl_versioned:
        vw_dl_keep keep

    ctypedef struct vw_dl_tensor:
        pass

    ctypedef struct vw_dl_exchange:
        vw_dl_version version
        int (*to_object)(vw_dl_versioned *tensor, void **object) except -1
        int (*look_at)(void *object, vw_dl_tensor *tensor) except -1

    int vw_dl_describe(const vw_dl_tensor *tensor, vw_handle *handle, const void **address)

    vw_dl_managed *vw_dl_new(
        const vw_handle *handle, void *data, void (*deleter)(vw_dl_managed *) noexcept nogil
    )
    vw_dl_versioned *vw_dl_new_versioned(
        const vw_handle *handle, void *data, void (*deleter)(vw_dl_versioned *) noexcept nogil
    )


cdef class Importer:
    cdef vw_dl_exchange *_table     # the framework's own, which lives as long as the process; or NULL
    cdef object _adopt              # its function for capsules

    cdef object adopt(self, TensorHandle handle, char *data, vw_arena *arena, object owner)
