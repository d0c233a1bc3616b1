/* The supervisor's side of the slots' `alive` words (heartbeat.h): waits until one of them changes.
 *
 * A change is a hint, not a proof: a hostile worker can write the word as it likes. What follows from it must be
 * right also when the worker lives on. Supervisor only; one thread waits, any thread may ring. */
#ifndef VW_DEATHWATCH_H
#define VW_DEATHWATCH_H

#include "layout.h"

#define VW_WATCH_MOST 127u /* FUTEX_WAITV_MAX less the bell */

typedef struct {
  _Atomic uint32_t bell;
} vw_deathwatch;

/* Whether the kernel can (Linux 5.16). */
int vw_deathwatch_supported(void);

/* Waits until a word is not what is expected of it, or the bell has rung since `rung`. Without the GIL.
 * 0, -EINTR, or -errno. count is at most VW_WATCH_MOST. */
int vw_deathwatch_wait(vw_deathwatch *watch, uint32_t rung, _Atomic uint32_t *const *words,
                       const uint32_t *expected, unsigned count);

void vw_deathwatch_ring(vw_deathwatch *watch);

#endif
