/* Allocator of one lease: two-level segregated fit (Masmano et al., "TLSF: a new dynamic memory
 * allocator for real-time systems", ECRTS 2004), with its bookkeeping outside the memory it manages.
 *
 * That memory is shared and may be scribbled over by others; the bookkeeping is private. Allocate and
 * free take constant time, but for growing the tables now and then, and a search of one free list
 * before an allocation is refused. One owner, one thread at a time, no GIL needed. */
#ifndef VW_LEASE_H
#define VW_LEASE_H

#include <stdint.h>

#define VW_LEASE_NONE UINT32_MAX
#define VW_LEASE_MAX (UINT64_C(1) << 50) /* bytes: 1 PiB, within what the size classes reach */
enum { VW_LEASE_SL_BITS = 4, VW_LEASE_SL = 1 << VW_LEASE_SL_BITS, VW_LEASE_FL = 48 };

/* A block, free or live. Sizes and offsets count granules of 64 bytes from the lease's start. */
typedef struct vw_block {
  uint64_t offset;
  uint64_t size;
  uint32_t before, after;    /* neighbours in memory */
  uint32_t previous, next;   /* in its free list, or `next` in the list of unused nodes */
  uint32_t live;
} vw_block;

typedef struct vw_lease {
  uint64_t offset; /* bytes */
  uint64_t size;
  uint64_t used; /* bytes in live blocks */
  uint64_t live; /* live blocks */
  vw_block *blocks;
  uint32_t block_capacity;
  uint32_t unused; /* head of the list of unused nodes */
  uint32_t *table; /* open addressing: live offset -> node + 1; 0 empty */
  uint64_t table_capacity; /* a power of two */
  uint64_t fl_bitmap;
  uint32_t sl_bitmap[VW_LEASE_FL];
  uint32_t heads[VW_LEASE_FL][VW_LEASE_SL];
} vw_lease;

/* offset and size are multiples of 64, size is 64 to VW_LEASE_MAX; -EINVAL otherwise. -ENOMEM. */
int vw_lease_init(vw_lease *lease, uint64_t offset, uint64_t size);
void vw_lease_destroy(vw_lease *lease);

/* Puts the byte offset of a block of at least `nbytes` (0 counts as 1) into *offset. -ENOSPC: no free
 * block is that large. -ENOMEM: no memory for the tables; nothing has changed. */
int vw_lease_allocate(vw_lease *lease, uint64_t nbytes, uint64_t *offset);

/* Frees the live block at byte `offset`; *size is how large it was. -ENOENT: there is none. */
int vw_lease_free(vw_lease *lease, uint64_t offset, uint64_t *size);

/* Size of the live block at byte `offset`. -ENOENT: there is none. */
int vw_lease_size(const vw_lease *lease, uint64_t offset, uint64_t *size);

/* Bytes of the largest free block. Looks through one free list. */
uint64_t vw_lease_largest_free(const vw_lease *lease);

#endif
