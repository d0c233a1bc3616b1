/* poll(2) by the one call that a filter has to allow for it on every architecture: aarch64 has no other. */
#ifndef VW_WAIT_H
#define VW_WAIT_H

#include <poll.h>
#include <time.h>

/* As poll(): a timeout in ms, below 0 without end. Any thread; blocks, so never with the GIL. */
static inline int vw_poll(struct pollfd *entries, unsigned count, int timeout_ms) {
#ifdef __linux__
  struct timespec timeout = {.tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1000000L};
  return ppoll(entries, count, timeout_ms < 0 ? NULL : &timeout, NULL);
#else
  return poll(entries, count, timeout_ms);
#endif
}

#endif
