/* The worker's heartbeat: a thread that stores the time in the slot, and ends the process when the
 * supervisor is gone.
 *
 * It is C because it must run while Python can't: a node may hold the GIL for minutes without being
 * dead, and a worker whose supervisor died must not stay for as long. Every signal is blocked in it.
 * After start it calls ppoll, clock_gettime, exit_group and, when stopped, exit: what the sandbox's
 * filters allow. Start it before lockdown, as creating a thread takes more.
 *
 * It also holds a lock, the slot's `alive`, which nobody ever wants: when a thread that holds a robust futex dies,
 * however it does, the kernel marks it and wakes who waits (get_robust_list(2)), and it does that before it takes
 * the process's memory apart, which can take 40 ms. */
#ifndef VW_HEARTBEAT_H
#define VW_HEARTBEAT_H

#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "slot.h"

typedef struct {
  vw_slot *slot;
  int fd;      /* control socket, watched for hang-up only; -1: none */
  int stop_fd; /* eventfd: readable when the thread shall end */
  uint32_t interval_ms;
  bool running;
  pid_t owner; /* a fork of it has this struct, but not the thread */
  pthread_t thread;
  sem_t up; /* until start returns: posted when the thread has made the calls that lockdown denies */
  struct robust_list_head held; /* the thread's: read by the kernel when it ends */
  struct robust_list lock;
} vw_heartbeat;

/* Beats at once, then every interval_ms (1 or more). The struct, the slot and fd must stay as they
 * are until vw_heartbeat_stop. Main thread. 0, -EINVAL, -EALREADY, or -errno. */
int vw_heartbeat_start(vw_heartbeat *heartbeat, vw_slot *slot, int fd, uint32_t interval_ms);

/* Ends the thread, and waits for that (microseconds). Main thread; idempotent. */
void vw_heartbeat_stop(vw_heartbeat *heartbeat);

#endif
