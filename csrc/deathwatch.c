#include "deathwatch.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Newer than some headers; the number is the same on every architecture. */
#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
#define FLAG_32_BITS 2u /* FUTEX_32, FUTEX2_SIZE_U32 */

/* struct futex_waitv of linux/futex.h, which older headers lack. */
typedef struct {
  uint64_t value;
  uint64_t address;
  uint32_t flags;
  uint32_t reserved;
} waiter;

int vw_deathwatch_supported(void) {
  /* No waiters: EINVAL where there is such a call. */
  return syscall(SYS_futex_waitv, NULL, 0, 0, NULL, 0) < 0 && errno == EINVAL ? 0 : -ENOSYS;
}

int vw_deathwatch_wait(vw_deathwatch *watch, uint32_t rung, _Atomic uint32_t *const *words,
                       const uint32_t *expected, unsigned count) {
  waiter waiters[VW_WATCH_MOST + 1];
  if (count > VW_WATCH_MOST) return -EINVAL;
  for (unsigned i = 0; i < count; i++)
    waiters[i] = (waiter){expected[i], (uintptr_t)words[i], FLAG_32_BITS, 0};
  waiters[count] = (waiter){rung, (uintptr_t)&watch->bell, FLAG_32_BITS | FUTEX_PRIVATE_FLAG, 0};
  if (syscall(SYS_futex_waitv, waiters, count + 1, 0, NULL, 0) >= 0) return 0;
  return errno == EAGAIN ? 0 : -errno; /* one had changed before */
}

void vw_deathwatch_ring(vw_deathwatch *watch) {
  atomic_fetch_add(&watch->bell, 1);
  syscall(SYS_futex, &watch->bell, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}
