/* A worker's slot: what it is doing, for the supervisor and anyone else who has the arena mapped.
 *
 * The worker writes its own slot; the supervisor reads all, and clears one whose worker is gone. A
 * hostile worker can write every slot at any time, so a reader takes one copy and judges that.
 *
 * Memory order. Each field stands for itself and most accesses are relaxed. Two orders are promised:
 * whoever reads a status reads the pid, job and times that were written before it, and whoever reads
 * a fault address reads its signal and time. Hence release on storing those two, acquire on loading.
 *
 * Any process, any thread, no GIL needed; no function waits or fails. */
#ifndef VW_SLOT_H
#define VW_SLOT_H

#include "layout.h"

typedef struct {
  int32_t pid;
  uint32_t status;
  uint64_t job_id;
  uint64_t heartbeat;
  uint64_t activity;
  uint32_t step;
  uint32_t total;
  uint64_t fault_address;
  uint32_t fault_signal;
  uint64_t fault_time;
} vw_slot_copy;

/* Worker, before its handshake: wipes what a predecessor left, beats once, and is `starting`. */
void vw_slot_register(vw_slot *slot, int32_t pid);

/* Worker: a job begins (`busy`) and ends (`idle`). Its id stays readable after the end. */
void vw_slot_begin(vw_slot *slot, uint64_t job_id);
void vw_slot_end(vw_slot *slot);

/* Worker's main thread: it got somewhere. */
void vw_slot_progress(vw_slot *slot, uint32_t step, uint32_t total);

/* Worker's heartbeat thread: the process runs. */
void vw_slot_beat(vw_slot *slot);

/* Worker's signal handler. `offset` is into the arena. */
void vw_slot_fault(vw_slot *slot, uint64_t offset, int signal);

/* Supervisor: free again, everything else 0. */
void vw_slot_clear(vw_slot *slot);

void vw_slot_set_status(vw_slot *slot, uint32_t status);

/* Each field, loaded once. */
void vw_slot_snapshot(const vw_slot *slot, vw_slot_copy *copy);

#endif
