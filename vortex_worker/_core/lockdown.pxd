from libc.stdint cimport int64_t, uint64_t

from vortex_worker._core.arena cimport vw_slot


cdef extern from "lockdown.h" nogil:
    const uint64_t VW_NO_LIMIT
    enum:
        VW_SAME_ID
        VW_FILTER_ALL_THREADS
        VW_FILTER_LISTENER
        VW_FILTER_MOST

    ctypedef struct vw_isolation:
        const int *keep                 # ascending, no two alike
        size_t keep_count
        uint64_t file_size              # bytes
        uint64_t open_files
        uint64_t processes
        uint64_t data                   # bytes
        int64_t user
        int64_t group

    ctypedef enum vw_step:
        VW_STEP_THREADS

    int vw_isolate(const vw_isolation *wanted, vw_step *failed)
    const char *vw_step_name(vw_step step)
    int vw_thread_count()
    int vw_install_filter(const void *program, size_t size, unsigned flags, int *thread)
    int vw_canary(const char *path)


cdef extern from "landlock.h" nogil:
    enum:
        VW_LANDLOCK_EXECUTE
        VW_LANDLOCK_WRITE_FILE
        VW_LANDLOCK_READ_FILE
        VW_LANDLOCK_READ_DIR
        VW_LANDLOCK_REMOVE_DIR
        VW_LANDLOCK_REMOVE_FILE
        VW_LANDLOCK_MAKE_CHAR
        VW_LANDLOCK_MAKE_DIR
        VW_LANDLOCK_MAKE_REG
        VW_LANDLOCK_MAKE_SOCK
        VW_LANDLOCK_MAKE_FIFO
        VW_LANDLOCK_MAKE_BLOCK
        VW_LANDLOCK_MAKE_SYM
        VW_LANDLOCK_REFER
        VW_LANDLOCK_TRUNCATE
        VW_LANDLOCK_IOCTL_DEV

    ctypedef struct vw_landlock_rule:
        const char *path
        uint64_t rights

    int vw_landlock_abi()
    uint64_t vw_landlock_rights(int abi)
    int vw_landlock_restrict(const vw_landlock_rule *rules, size_t count, int abi_limit, size_t *failed)


cdef extern from "view.h" nogil:
    ctypedef struct vw_view_link:
        const char *path
        const char *target

    ctypedef struct vw_view:
        const char *const *shown
        size_t shown_count
        const vw_view_link *links
        size_t link_count

    ctypedef enum vw_view_step:
        VW_VIEW_PATHS
        VW_VIEW_LINK
        VW_VIEW_DETACH

    int vw_view_enter(const vw_view *wanted, vw_view_step *failed, size_t *at)
    const char *vw_view_step_name(vw_view_step step)


cdef extern from "fault.h" nogil:
    enum:
        VW_FAULT_REGIONS

    ctypedef struct vw_fault_region:
        size_t address
        size_t size
        uint64_t offset                 # of address in the arena

    int vw_fault_install(vw_slot *slot, const vw_fault_region *regions, size_t count)
