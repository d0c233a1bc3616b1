/* The arena's fixed layout: what a supervisor in any language writes and reads.
 *
 *   0       ShmHeader            64 bytes
 *   64      slot 0               64 bytes each, 256 of them
 *   …
 *   16448   (nothing)
 *   2 MiB   data, unless the header says otherwise
 *
 *   ShmHeader  0 magic u64 · 8 version u32 · 12 flags u32 · 16 clock_tick u64
 *              24 data_offset u64 · 32 data_size u64 · 40 slot_count u32 · 44 zeros
 *   slot       0 pid i32 · 4 status u32 · 8 job_id u64 · 16 heartbeat u64
 *              24 activity u64 · 32 step u32 · 36 total u32
 *              40 fault_address u64 · 48 fault_signal u32 · 52 alive u32 · 56 fault_time u64
 *
 * From 24 on, both are version 1's use of bytes that the first layout reserved: a supervisor that
 * leaves them zero works. Little-endian; times are CLOCK_MONOTONIC ns; every field is accessed
 * atomically, by either side at any time. */
#ifndef VW_LAYOUT_H
#define VW_LAYOUT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define VW_MAGIC UINT64_C(0x3157584554524f56) /* "VORTEXW1", little-endian */
#define VW_VERSION 1u
#define VW_SLOT_COUNT 256u
#define VW_DATA_ALIGN (UINT64_C(2) << 20) /* 2 MiB: data and leases begin on huge-page boundaries */
#define VW_HANDLE_ALIGN UINT64_C(64)      /* a cache line, and what SIMD loads like */

enum vw_status {
  VW_FREE = 0,
  VW_IDLE = 1,
  VW_BUSY = 2,
  VW_STARTING = 3,
  VW_DRAINING = 4,
  VW_DEAD = 5,
};

typedef struct vw_header {
  _Atomic uint64_t magic;
  _Atomic uint32_t version;
  _Atomic uint32_t flags;
  _Atomic uint64_t clock_tick;
  _Atomic uint64_t data_offset;
  _Atomic uint64_t data_size;
  _Atomic uint32_t slot_count;
  uint8_t reserved[20];
} vw_header;

typedef struct vw_slot {
  _Atomic int32_t pid;
  _Atomic uint32_t status;
  _Atomic uint64_t job_id;
  _Atomic uint64_t heartbeat;
  _Atomic uint64_t activity; /* bumped by the worker's main thread: job start, each progress report */
  _Atomic uint32_t step;
  _Atomic uint32_t total;
  _Atomic uint64_t fault_address; /* arena offset + 1 of the access that killed it; 0: none */
  _Atomic uint32_t fault_signal;
  _Atomic uint32_t alive; /* a robust futex of the heartbeat thread: the kernel marks it when that dies */
  _Atomic uint64_t fault_time;
} vw_slot;

#define VW_SLOTS_END (sizeof(vw_header) + VW_SLOT_COUNT * sizeof(vw_slot)) /* 16448 */

_Static_assert(VW_MAGIC == UINT64_C(0x3157584554524f56), "magic");
_Static_assert(sizeof(vw_header) == 64, "ShmHeader is 64 bytes");
_Static_assert(offsetof(vw_header, magic) == 0, "magic at 0");
_Static_assert(offsetof(vw_header, version) == 8, "version at 8");
_Static_assert(offsetof(vw_header, flags) == 12, "flags at 12");
_Static_assert(offsetof(vw_header, clock_tick) == 16, "clock_tick at 16");
_Static_assert(offsetof(vw_header, data_offset) == 24, "data_offset at 24");
_Static_assert(offsetof(vw_header, data_size) == 32, "data_size at 32");
_Static_assert(offsetof(vw_header, slot_count) == 40, "slot_count at 40");
_Static_assert(sizeof(vw_slot) == 64, "a slot is 64 bytes");
_Static_assert(offsetof(vw_slot, pid) == 0, "pid at 0");
_Static_assert(offsetof(vw_slot, status) == 4, "status at 4");
_Static_assert(offsetof(vw_slot, job_id) == 8, "job_id at 8");
_Static_assert(offsetof(vw_slot, heartbeat) == 16, "heartbeat at 16");
_Static_assert(offsetof(vw_slot, activity) == 24, "activity at 24");
_Static_assert(offsetof(vw_slot, step) == 32, "step at 32");
_Static_assert(offsetof(vw_slot, total) == 36, "total at 36");
_Static_assert(offsetof(vw_slot, fault_address) == 40, "fault_address at 40");
_Static_assert(offsetof(vw_slot, fault_signal) == 48, "fault_signal at 48");
_Static_assert(offsetof(vw_slot, alive) == 52, "alive at 52");
_Static_assert(offsetof(vw_slot, fault_time) == 56, "fault_time at 56");
_Static_assert(VW_SLOTS_END == 16448, "slots end at 16448");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "shared words must be lock-free");

/* Slot i of a mapped arena. i < VW_SLOT_COUNT. */
static inline vw_slot *vw_slot_at(void *arena, uint32_t i) {
  return (vw_slot *)(void *)((char *)arena + sizeof(vw_header) + (size_t)i * sizeof(vw_slot));
}

#endif
