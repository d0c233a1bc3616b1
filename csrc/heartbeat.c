#include "heartbeat.h"

#include <errno.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"
#include "wait.h"

/* The loop below takes some hundred bytes. The rest is what glibc puts on a thread's stack by itself:
 * thread-local storage of every library loaded, which the minimum it names includes. */
#define STACK_SIZE ((size_t)64 << 10)

/* The heartbeat thread: takes its lock. Without it a death is noticed all the same, later. */
static void take_lock(vw_heartbeat *heartbeat) {
  heartbeat->lock.next = &heartbeat->held.list;
  heartbeat->held.list.next = &heartbeat->lock;
  heartbeat->held.list_op_pending = NULL;
  heartbeat->held.futex_offset = (long)((uintptr_t)&heartbeat->slot->alive - (uintptr_t)&heartbeat->lock);
  /* In place of the C library's list, which is empty: this thread uses no mutex. */
  if (syscall(SYS_set_robust_list, &heartbeat->held, sizeof heartbeat->held) == 0)
    atomic_store(&heartbeat->slot->alive, (uint32_t)syscall(SYS_gettid) | FUTEX_WAITERS);
}

/* A node that closes the control socket. The supervisor hears of it, and ends this process when it has found out why:
 * an end by us could come before the kernel's word of a denied call. It is for the case that there is none. */
#define GRACE_NS 2000000000u

static void *beat(void *argument) {
  vw_heartbeat *heartbeat = argument;
  prctl(PR_SET_NAME, "vw-heartbeat", 0, 0, 0);
  take_lock(heartbeat);
  sem_post(&heartbeat->up);
  struct pollfd watched[2] = {
      {.fd = heartbeat->fd, .events = POLLRDHUP}, /* POLLHUP, POLLERR, POLLNVAL come unasked */
      {.fd = heartbeat->stop_fd, .events = POLLIN},
  };
  const uint64_t interval = (uint64_t)heartbeat->interval_ms * 1000000u;
  uint64_t next = vw_monotonic_ns() + interval;
  uint64_t deadline = UINT64_MAX; /* of a process whose control socket is closed */
  for (;;) {
    uint64_t now = vw_monotonic_ns();
    if (now >= deadline) _exit(0);
    if (now >= next) {
      vw_slot_beat(heartbeat->slot);
      /* Counted from now: after a SIGSTOP, missed beats are not made up for. */
      next = now + interval;
    }
    int ready = vw_poll(watched, 2, (int)((next - now + 999999u) / 1000000u));
    if (ready <= 0) continue;
    if (watched[0].revents & (POLLHUP | POLLRDHUP | POLLERR)) _exit(0);
    if (watched[0].revents & POLLNVAL) {
      watched[0].fd = -1;
      deadline = vw_monotonic_ns() + GRACE_NS;
    }
    if (watched[1].revents) {
      atomic_store(&heartbeat->slot->alive, 0); /* given up in order: no sign of death */
      return NULL;
    }
  }
}

static int start_thread(vw_heartbeat *heartbeat) {
  long least = sysconf(_SC_THREAD_STACK_MIN);
  pthread_attr_t attributes;
  int rc = pthread_attr_init(&attributes);
  if (rc) return -rc;
  rc = pthread_attr_setstacksize(&attributes, STACK_SIZE + (least > 0 ? (size_t)least : 0));
  if (rc == 0) {
    /* Inherited by the thread, so it never runs with one open. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&heartbeat->thread, &attributes, beat, heartbeat);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
  }
  pthread_attr_destroy(&attributes);
  return -rc;
}

int vw_heartbeat_start(vw_heartbeat *heartbeat, vw_slot *slot, int fd, uint32_t interval_ms) {
  if (heartbeat->running) return -EALREADY;
  if (interval_ms == 0 || interval_ms > 3600000u) return -EINVAL; /* an hour, and an int for poll */
  heartbeat->slot = slot;
  heartbeat->fd = fd;
  heartbeat->interval_ms = interval_ms;
  heartbeat->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (heartbeat->stop_fd < 0) return -errno;
  vw_slot_beat(slot);
  sem_init(&heartbeat->up, 0, 0); /* can't fail: 0 is a value that a semaphore may have */
  int rc = start_thread(heartbeat);
  /* On a busy machine lockdown could come before the thread's first turn: it would then hold no lock. */
  while (rc == 0 && sem_wait(&heartbeat->up) && errno == EINTR) {
  }
  sem_destroy(&heartbeat->up);
  if (rc) {
    close(heartbeat->stop_fd);
    return rc;
  }
  heartbeat->running = true;
  heartbeat->owner = getpid();
  return 0;
}

void vw_heartbeat_stop(vw_heartbeat *heartbeat) {
  if (!heartbeat->running) return;
  heartbeat->running = false;
  if (heartbeat->owner == getpid()) {
    eventfd_write(heartbeat->stop_fd, 1); /* can't fail: the counter is 0 */
    pthread_join(heartbeat->thread, NULL);
  }
  close(heartbeat->stop_fd);
}
