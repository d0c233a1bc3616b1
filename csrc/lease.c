#include "lease.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "layout.h"

#define GRANULE VW_HANDLE_ALIGN
#define NONE VW_LEASE_NONE

/* ---- size classes: fl is the power of two, sl one of 16 steps in it; below 16 granules, exact */

static void class_of(uint64_t size, uint32_t *fl, uint32_t *sl) {
  if (size < VW_LEASE_SL) {
    *fl = 0;
    *sl = (uint32_t)size;
    return;
  }
  uint32_t log = 63u - (uint32_t)__builtin_clzll(size);
  *fl = log - VW_LEASE_SL_BITS + 1;
  *sl = (uint32_t)(size >> (log - VW_LEASE_SL_BITS)) & (VW_LEASE_SL - 1);
}

/* The smallest class whose every block is at least `size`. */
static bool class_above(uint64_t size, uint32_t *fl, uint32_t *sl) {
  if (size >= VW_LEASE_SL) {
    uint32_t log = 63u - (uint32_t)__builtin_clzll(size);
    size += (UINT64_C(1) << (log - VW_LEASE_SL_BITS)) - 1;
  }
  class_of(size, fl, sl);
  return *fl < VW_LEASE_FL;
}

/* ---- nodes */

static uint32_t take_node(vw_lease *lease) {
  if (lease->unused == NONE) {
    uint32_t old = lease->block_capacity, new = old ? old * 2 : 64;
    if (new <= old || new == NONE) return NONE;
    vw_block *blocks = realloc(lease->blocks, (size_t)new * sizeof *blocks);
    if (!blocks) return NONE;
    for (uint32_t i = old; i < new; i++) blocks[i].next = i + 1 < new ? i + 1 : NONE;
    lease->blocks = blocks;
    lease->block_capacity = new;
    lease->unused = old;
  }
  uint32_t node = lease->unused;
  lease->unused = lease->blocks[node].next;
  return node;
}

static void drop_node(vw_lease *lease, uint32_t node) {
  lease->blocks[node].next = lease->unused;
  lease->unused = node;
}

/* ---- free lists */

static void list_free(vw_lease *lease, uint32_t node) {
  uint32_t fl, sl;
  vw_block *block = &lease->blocks[node];
  class_of(block->size, &fl, &sl);
  uint32_t head = lease->heads[fl][sl];
  block->live = 0;
  block->previous = NONE;
  block->next = head;
  if (head != NONE) lease->blocks[head].previous = node;
  lease->heads[fl][sl] = node;
  lease->sl_bitmap[fl] |= 1u << sl;
  lease->fl_bitmap |= UINT64_C(1) << fl;
}

static void unlist_free(vw_lease *lease, uint32_t node) {
  uint32_t fl, sl;
  const vw_block *block = &lease->blocks[node];
  class_of(block->size, &fl, &sl);
  if (block->next != NONE) lease->blocks[block->next].previous = block->previous;
  if (block->previous != NONE) {
    lease->blocks[block->previous].next = block->next;
    return;
  }
  lease->heads[fl][sl] = block->next;
  if (block->next == NONE && !(lease->sl_bitmap[fl] &= ~(1u << sl))) lease->fl_bitmap &= ~(UINT64_C(1) << fl);
}

/* A free block of at least `size` granules, or NONE. */
static uint32_t find_free(const vw_lease *lease, uint64_t size) {
  uint32_t fl, sl;
  if (class_above(size, &fl, &sl)) {
    uint32_t fits = lease->sl_bitmap[fl] & (~0u << sl);
    if (fits) return lease->heads[fl][__builtin_ctz(fits)];
    uint64_t above = lease->fl_bitmap & (~UINT64_C(0) << (fl + 1));
    if (above) {
      fl = (uint32_t)__builtin_ctzll(above);
      return lease->heads[fl][__builtin_ctz(lease->sl_bitmap[fl])];
    }
  }
  /* Its own class may hold one that fits, too. Only who would otherwise be refused searches it: "full"
   * means that no free block is large enough. */
  class_of(size, &fl, &sl);
  uint32_t node = lease->heads[fl][sl];
  while (node != NONE && lease->blocks[node].size < size) node = lease->blocks[node].next;
  return node;
}

/* ---- live offsets: open addressing with linear probing and backward-shift deletion */

static uint64_t slot_of(const vw_lease *lease, uint64_t offset) {
  return (offset * UINT64_C(0x9e3779b97f4a7c15)) >> 32 & (lease->table_capacity - 1);
}

static void table_put(vw_lease *lease, uint32_t node) {
  uint64_t at = slot_of(lease, lease->blocks[node].offset);
  while (lease->table[at]) at = (at + 1) & (lease->table_capacity - 1);
  lease->table[at] = node + 1;
}

static int table_reserve(vw_lease *lease) {
  if ((lease->live + 1) * 2 <= lease->table_capacity) return 0;
  uint64_t old_capacity = lease->table_capacity, capacity = old_capacity ? old_capacity * 2 : 64;
  uint32_t *old = lease->table, *table = calloc(capacity, sizeof *table);
  if (!table) return -ENOMEM;
  lease->table = table;
  lease->table_capacity = capacity;
  for (uint64_t i = 0; i < old_capacity; i++)
    if (old[i]) table_put(lease, old[i] - 1);
  free(old);
  return 0;
}

/* Where byte `offset` is in the table, or UINT64_MAX. */
static uint64_t table_find(const vw_lease *lease, uint64_t offset) {
  if (offset < lease->offset || offset % GRANULE || !lease->table_capacity) return UINT64_MAX;
  uint64_t granule = (offset - lease->offset) / GRANULE;
  for (uint64_t at = slot_of(lease, granule); lease->table[at]; at = (at + 1) & (lease->table_capacity - 1))
    if (lease->blocks[lease->table[at] - 1].offset == granule) return at;
  return UINT64_MAX;
}

static void table_remove(vw_lease *lease, uint64_t at) {
  uint64_t mask = lease->table_capacity - 1;
  for (uint64_t next = (at + 1) & mask; lease->table[next]; next = (next + 1) & mask) {
    uint64_t home = slot_of(lease, lease->blocks[lease->table[next] - 1].offset);
    if (((next - home) & mask) >= ((next - at) & mask)) {
      lease->table[at] = lease->table[next];
      at = next;
    }
  }
  lease->table[at] = 0;
}

/* ---- the allocator */

int vw_lease_init(vw_lease *lease, uint64_t offset, uint64_t size) {
  memset(lease, 0, sizeof *lease);
  if (!size || offset % GRANULE || size % GRANULE || size > VW_LEASE_MAX || offset > UINT64_MAX - size)
    return -EINVAL;
  lease->offset = offset;
  lease->size = size;
  lease->unused = NONE;
  for (uint32_t fl = 0; fl < VW_LEASE_FL; fl++)
    for (uint32_t sl = 0; sl < VW_LEASE_SL; sl++) lease->heads[fl][sl] = NONE;
  uint32_t node = take_node(lease);
  if (node == NONE) return -ENOMEM;
  lease->blocks[node] = (vw_block){.size = size / GRANULE, .before = NONE, .after = NONE};
  list_free(lease, node);
  return 0;
}

void vw_lease_destroy(vw_lease *lease) {
  free(lease->blocks);
  free(lease->table);
  memset(lease, 0, sizeof *lease);
}

int vw_lease_allocate(vw_lease *lease, uint64_t nbytes, uint64_t *offset) {
  if (nbytes > lease->size) return -ENOSPC;
  uint64_t size = nbytes ? (nbytes + GRANULE - 1) / GRANULE : 1;
  uint32_t node = find_free(lease, size);
  if (node == NONE) return -ENOSPC;
  int rc = table_reserve(lease);
  if (rc) return rc;
  uint32_t rest = NONE;
  if (lease->blocks[node].size > size) { /* before anything changes: it may need memory */
    rest = take_node(lease);
    if (rest == NONE) return -ENOMEM;
  }
  unlist_free(lease, node);
  vw_block *block = &lease->blocks[node];
  if (rest != NONE) {
    lease->blocks[rest] = (vw_block){
        .offset = block->offset + size, .size = block->size - size, .before = node, .after = block->after};
    if (block->after != NONE) lease->blocks[block->after].before = rest;
    block->after = rest;
    block->size = size;
    list_free(lease, rest);
  }
  block->live = 1;
  table_put(lease, node);
  lease->live++;
  lease->used += size * GRANULE;
  *offset = lease->offset + block->offset * GRANULE;
  return 0;
}

/* Joins `node` with the free block behind it. */
static void merge_after(vw_lease *lease, uint32_t node) {
  vw_block *block = &lease->blocks[node];
  uint32_t gone = block->after;
  block->size += lease->blocks[gone].size;
  block->after = lease->blocks[gone].after;
  if (block->after != NONE) lease->blocks[block->after].before = node;
  drop_node(lease, gone);
}

int vw_lease_free(vw_lease *lease, uint64_t offset, uint64_t *size) {
  uint64_t at = table_find(lease, offset);
  if (at == UINT64_MAX) return -ENOENT;
  uint32_t node = lease->table[at] - 1;
  *size = lease->blocks[node].size * GRANULE;
  table_remove(lease, at);
  lease->live--;
  lease->used -= *size;
  uint32_t after = lease->blocks[node].after, before = lease->blocks[node].before;
  if (after != NONE && !lease->blocks[after].live) {
    unlist_free(lease, after);
    merge_after(lease, node);
  }
  if (before != NONE && !lease->blocks[before].live) {
    unlist_free(lease, before);
    merge_after(lease, before);
    node = before;
  }
  list_free(lease, node);
  return 0;
}

int vw_lease_size(const vw_lease *lease, uint64_t offset, uint64_t *size) {
  uint64_t at = table_find(lease, offset);
  if (at == UINT64_MAX) return -ENOENT;
  *size = lease->blocks[lease->table[at] - 1].size * GRANULE;
  return 0;
}

uint64_t vw_lease_largest_free(const vw_lease *lease) {
  if (!lease->fl_bitmap) return 0;
  uint32_t fl = 63u - (uint32_t)__builtin_clzll(lease->fl_bitmap);
  uint32_t sl = 31u - (uint32_t)__builtin_clz(lease->sl_bitmap[fl]);
  uint64_t largest = 0;
  for (uint32_t node = lease->heads[fl][sl]; node != NONE; node = lease->blocks[node].next)
    if (lease->blocks[node].size > largest) largest = lease->blocks[node].size;
  return largest * GRANULE;
}
