/* The one clock of this project: CLOCK_MONOTONIC in nanoseconds, the same in every process. */
#ifndef VW_CLOCK_H
#define VW_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Any process, any thread, signal handlers too; on usual machines no system call (vDSO). */
static inline uint64_t vw_monotonic_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
