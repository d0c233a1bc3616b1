#include "slot.h"

#include "clock.h"

#define STORE(field, value) atomic_store_explicit(&slot->field, (value), memory_order_relaxed)
#define LOAD(field) atomic_load_explicit(&slot->field, memory_order_relaxed)

void vw_slot_set_status(vw_slot *slot, uint32_t status) {
  atomic_store_explicit(&slot->status, status, memory_order_release);
}

/* Everything but status and heartbeat. */
static void wipe(vw_slot *slot, int32_t pid) {
  STORE(pid, pid);
  STORE(job_id, 0);
  STORE(activity, 0);
  STORE(step, 0);
  STORE(total, 0);
  STORE(fault_address, 0);
  STORE(fault_signal, 0);
  STORE(fault_time, 0);
  STORE(alive, 0);
}

void vw_slot_register(vw_slot *slot, int32_t pid) {
  wipe(slot, pid);
  vw_slot_beat(slot);
  vw_slot_set_status(slot, VW_STARTING);
}

void vw_slot_begin(vw_slot *slot, uint64_t job_id) {
  STORE(job_id, job_id);
  STORE(step, 0);
  STORE(total, 0);
  atomic_fetch_add_explicit(&slot->activity, 1, memory_order_relaxed);
  vw_slot_set_status(slot, VW_BUSY);
}

void vw_slot_end(vw_slot *slot) { vw_slot_set_status(slot, VW_IDLE); }

void vw_slot_progress(vw_slot *slot, uint32_t step, uint32_t total) {
  STORE(step, step);
  STORE(total, total);
  atomic_fetch_add_explicit(&slot->activity, 1, memory_order_relaxed);
}

void vw_slot_beat(vw_slot *slot) { STORE(heartbeat, vw_monotonic_ns()); }

void vw_slot_fault(vw_slot *slot, uint64_t offset, int signal) {
  STORE(fault_signal, (uint32_t)signal);
  STORE(fault_time, vw_monotonic_ns());
  atomic_store_explicit(&slot->fault_address, offset + 1, memory_order_release);
}

void vw_slot_clear(vw_slot *slot) {
  wipe(slot, 0);
  STORE(heartbeat, 0);
  vw_slot_set_status(slot, VW_FREE);
}

void vw_slot_snapshot(const vw_slot *slot, vw_slot_copy *copy) {
  /* First the two that others were written before. */
  copy->status = atomic_load_explicit(&slot->status, memory_order_acquire);
  copy->fault_address = atomic_load_explicit(&slot->fault_address, memory_order_acquire);
  copy->pid = LOAD(pid);
  copy->job_id = LOAD(job_id);
  copy->heartbeat = LOAD(heartbeat);
  copy->activity = LOAD(activity);
  copy->step = LOAD(step);
  copy->total = LOAD(total);
  copy->fault_signal = LOAD(fault_signal);
  copy->fault_time = LOAD(fault_time);
}
