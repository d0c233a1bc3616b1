/* Asks the kernel what it would do with a system call, for `vortex-worker doctor --matrix`.
 *
 * Every call is made by one of two instructions, whose addresses are known: a filter on top of those that are
 * asked about can so hold back what they let through (SECCOMP_RET_TRACE with nobody tracing: ENOSYS), and a call
 * that is allowed is tried without being run. Runs in a child that is there for nothing else, after its lockdown,
 * in any thread and without the GIL; takes no memory and makes no other call. x86-64 only. */
#ifndef VW_PROBE_H
#define VW_PROBE_H

#include <stddef.h>
#include <stdint.h>

enum { VW_PROBE_NATIVE = 0, VW_PROBE_INT_80 = 1 };

typedef struct {
  int64_t number;
  uint64_t args[6];
  int64_t result; /* what the kernel returned: -errno */
  uint32_t way;
  uint32_t state; /* 0: not tried; 1: tried; 2: it returned */
} vw_probe_call;

typedef struct {
  vw_probe_call *calls;
  size_t count;
  unsigned long caller; /* pthread_self() of a thread that is not to make them; 0: any */
} vw_probe_work;

/* -ENOSYS where this machine's calls can't be made this way. */
int vw_probe_supported(void);

/* The two addresses that a filter sees as instruction_pointer. */
void vw_probe_addresses(uint64_t *native, uint64_t *int_80);

/* Makes the calls in order, each with its state set before and after. A function for GOMP_parallel, too. */
void vw_probe_run(void *work);

#endif
