/* The arena: one shared memory file, mapped whole.
 *
 * The supervisor maps all of it read-write. A worker maps all of it read-only from a read-only
 * descriptor, which the kernel then refuses to upgrade, and beside that the header and slots, and
 * its own lease, read-write. After that it closes both descriptors: no further mapping can be made.
 *
 * A vw_arena is counted: its owner holds it once, and each tensor over it once more, so that a tensor
 * that outlives its owner still has its memory, and that the end of a tensor needs no GIL.
 *
 * Every function runs in the process that owns the vw_arena, from one thread at a time, but for
 * vw_arena_hold and vw_arena_drop, which any thread may call; none takes the GIL. 0 or -errno. */
#ifndef VW_ARENA_H
#define VW_ARENA_H

#include <stdbool.h>
#include <stdint.h>

#include "layout.h"

typedef struct vw_arena {
  _Atomic uint64_t holders;
  char *base;       /* the whole file: read-write for the supervisor, read-only in a worker */
  uint64_t size;    /* bytes */
  char *head;       /* header and slots, read-write */
  char *lease;      /* the worker's own region, read-write; NULL before vw_arena_lease */
  uint64_t lease_offset;
  uint64_t lease_size;
  uint64_t data_offset;
  uint64_t data_size;
  int fd;          /* read-write descriptor, or -1 */
  int readonly_fd; /* worker: what `base` is mapped from, or -1 */
  bool writable;   /* `base` is read-write: this is the supervisor */
} vw_arena;

/* Why vw_arena_attach refused a file: for the message. */
enum vw_refusal {
  VW_ACCEPTED = 0,
  VW_BAD_FILE,
  VW_OTHER_FILE,   /* the two descriptors are not of one file */
  VW_NOT_READONLY, /* the second can write: its mapping could be made writable */
  VW_TOO_SMALL,
  VW_BAD_MAGIC,
  VW_BAD_VERSION,
  VW_BAD_DATA,
  VW_REFUSED_MAP,
};

/* A closed arena, held once. NULL: no memory. */
vw_arena *vw_arena_new(void);

/* One holder more, and one less: the last closes and frees it. */
void vw_arena_hold(vw_arena *arena);
void vw_arena_drop(vw_arena *arena);

/* Supervisor: makes a sealed memfd (name NULL) or a new POSIX shared memory object, maps it and
 * writes the header. -EINVAL: `size` is not a multiple of VW_DATA_ALIGN, or less than two of them. */
int vw_arena_create(vw_arena *arena, uint64_t size, const char *name);

/* Supervisor: writes the header as it was made. Every worker can write there, and a hostile one may have. */
void vw_arena_write_header(vw_arena *arena);

/* Worker: maps the file behind the two descriptors, the second of which must be read-only. It takes
 * them over also when it fails. size 0: the file's own. data_offset: where data begins, which then reaches to the
 * end, and the header is not read: other workers may be writing there. 0: as the header says. */
int vw_arena_attach(vw_arena *arena, int fd, int readonly_fd, uint64_t size, uint64_t data_offset,
                    enum vw_refusal *refusal);

/* Worker: maps its lease read-write. Once. -EINVAL: not page-aligned, outside the data, or a second. */
int vw_arena_lease(vw_arena *arena, uint64_t offset, uint64_t size);

/* Closes the descriptors. */
void vw_arena_close_descriptors(vw_arena *arena);

/* Unmaps and closes everything. Idempotent. */
void vw_arena_close(vw_arena *arena);

/* Where [offset, offset + nbytes) is in this process: in the lease if it lies there, else in the
 * whole mapping; NULL outside the arena. `writable` tells whether it may be written to. */
char *vw_arena_at(const vw_arena *arena, uint64_t offset, uint64_t nbytes, bool *writable);

/* The arena offset of process memory [address, address + nbytes), or UINT64_MAX if it isn't arena memory. */
uint64_t vw_arena_locate(const vw_arena *arena, const void *address, uint64_t nbytes);

/* Takes the pages of [offset, offset + nbytes) now, in huge pages where the kernel offers them. */
int vw_arena_prefault(const vw_arena *arena, uint64_t offset, uint64_t nbytes);

/* Supervisor: gives the pages of [offset, offset + nbytes) back; they read as zeros. */
int vw_arena_discard(const vw_arena *arena, uint64_t offset, uint64_t nbytes);

#endif
