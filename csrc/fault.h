/* Names the port that a node wrote to: when a worker dies of SIGSEGV or SIGBUS inside the arena, the
 * place goes into its slot, where the supervisor finds it.
 *
 * The one file with static state, since a signal handler gets no user data. The static library is
 * linked into several extensions: only `lockdown` may call this.
 *
 * The worker installs it before lockdown. In the handler there are only stores and clock_gettime, and
 * what Python's faulthandler, which was there before, does on its way: no handler is installed after
 * lockdown, so a filter need not allow it. */
#ifndef VW_FAULT_H
#define VW_FAULT_H

#include <stddef.h>
#include <stdint.h>

#include "slot.h"

#define VW_FAULT_REGIONS 8u

typedef struct {
  uintptr_t address;
  size_t size;
  uint64_t offset; /* of `address` in the arena */
} vw_fault_region;

/* Handles SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGABRT from now on, on an alternate stack of the calling
 * thread's own (other threads: on the stack they have). A fault inside a region is recorded in the slot;
 * then, as with any other, the handler that was there before is called once, and the signal kills. One
 * that was ignored stays so, and the last three are left alone where nobody handled them. A second call replaces slot and regions only. 0, -EINVAL (too many regions),
 * or -errno. */
int vw_fault_install(vw_slot *slot, const vw_fault_region *regions, size_t count);

#endif
