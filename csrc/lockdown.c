#include "lockdown.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Newer than some headers; the numbers are the same on every architecture. */
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#define RESOLVE_NO_LINKS 4u /* RESOLVE_NO_SYMLINKS of linux/openat2.h */
#ifndef SECCOMP_FILTER_FLAG_NEW_LISTENER
#define SECCOMP_FILTER_FLAG_NEW_LISTENER (1UL << 3)
#endif
#ifndef SECCOMP_FILTER_FLAG_TSYNC_ESRCH
#define SECCOMP_FILTER_FLAG_TSYNC_ESRCH (1UL << 4)
#endif

int vw_thread_count(void) {
  struct stat status;
  if (stat("/proc/self/task", &status) < 0) return -errno;
  if (status.st_nlink < 3) return -ENOSYS; /* ".", ".." and one a thread, else it is no Linux /proc */
  return (int)(status.st_nlink - 2);
}

/* The kernel counts a thread until it is done with it, a moment after everybody else has seen it end: on a busy
   machine that moment can be a millisecond. One that stays is no such thread. */
int vw_settled_thread_count(void) {
  int threads = vw_thread_count();
  for (int looks = 0; threads > 1 && looks < 100; looks++) {
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL); /* 1 ms */
    threads = vw_thread_count();
  }
  return threads;
}

int vw_open_name(const char *path) {
  struct { /* struct open_how */
    uint64_t flags, mode, resolve;
  } how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_NO_LINKS};
  int fd = (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
  return fd < 0 ? -errno : fd;
}

static bool kept(const vw_isolation *wanted, int fd) {
  for (size_t i = 0; i < wanted->keep_count; i++)
    if (wanted->keep[i] == fd) return true;
  return false;
}

static int close_between(unsigned first, unsigned last) {
  return first > last || syscall(SYS_close_range, first, last, 0u) == 0 ? 0 : -errno;
}

/* A standard descriptor that is merely closed would be the next one opened: a stray print would
 * then write into the control socket or the arena. */
static int close_others(const vw_isolation *wanted) {
  int previous = -1;
  for (size_t i = 0; i < wanted->keep_count; i++) {
    int fd = wanted->keep[i];
    if (fd <= previous) return -EINVAL;
    if (fcntl(fd, F_GETFD) < 0) return -errno;
    previous = fd;
  }
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0) return -errno;
  for (int fd = 0; fd <= 2; fd++)
    if (!kept(wanted, fd) && fd != null && dup2(null, fd) < 0) return -errno;
  /* dup2 gives a descriptor that survives exec, and so should one that open put there. */
  if (null <= 2 && fcntl(null, F_SETFD, 0) < 0) return -errno;

  unsigned next = 3;
  for (size_t i = 0; i < wanted->keep_count; i++) {
    unsigned fd = (unsigned)wanted->keep[i];
    if (fd < next) continue;
    int rc = close_between(next, fd - 1);
    if (rc) return rc;
    next = fd + 1;
  }
  return close_between(next, ~0u);
}

/* Raw system calls: glibc's wrappers signal every thread, and there is one. */
static int change_user(const vw_isolation *wanted) {
  if (wanted->user != VW_SAME_ID || wanted->group != VW_SAME_ID)
    if (syscall(SYS_setgroups, 0, NULL) < 0) return -errno;
  if (wanted->group != VW_SAME_ID) {
    gid_t group = (gid_t)wanted->group;
    if (syscall(SYS_setresgid, group, group, group) < 0) return -errno;
  }
  if (wanted->user != VW_SAME_ID) {
    uid_t user = (uid_t)wanted->user;
    if (syscall(SYS_setresuid, user, user, user) < 0) return -errno;
  }
  return 0;
}

/* Soft and hard alike, so that it can't be raised again. One that is lower already stays. */
static int lower_limit(int resource, uint64_t value) {
  struct rlimit limit;
  if (getrlimit((__rlimit_resource_t)resource, &limit) < 0) return -errno;
  if (value < limit.rlim_max) limit.rlim_max = (rlim_t)value;
  limit.rlim_cur = limit.rlim_max;
  return setrlimit((__rlimit_resource_t)resource, &limit) < 0 ? -errno : 0;
}

static int lower_limits(const vw_isolation *wanted) {
  int rc = lower_limit(RLIMIT_CORE, 0); /* a core file would hold other people's inputs */
  if (!rc) rc = lower_limit(RLIMIT_FSIZE, wanted->file_size);
  if (!rc) rc = lower_limit(RLIMIT_NOFILE, wanted->open_files);
  if (!rc) rc = lower_limit(RLIMIT_NPROC, wanted->processes);
  if (!rc && wanted->data != VW_NO_LIMIT) rc = lower_limit(RLIMIT_DATA, wanted->data);
  return rc;
}

/* EPERM: without CAP_SETPCAP the set can't shrink, and need not, since with no_new_privs an exec
 * gains nothing from it. */
static int drop_bounding(void) {
  for (unsigned long capability = 0; capability < 64; capability++) {
    int there = prctl(PR_CAPBSET_READ, capability, 0, 0, 0);
    if (there < 0) break; /* EINVAL: above the kernel's last */
    if (there && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 && errno != EPERM) return -errno;
  }
  return 0;
}

static int drop_capabilities(void) {
  if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0) return -errno;
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct sets[2] = {{0}, {0}};
  if (syscall(SYS_capset, &header, sets) < 0) return -errno;
  if (syscall(SYS_capget, &header, sets) < 0) return -errno;
  for (int i = 0; i < 2; i++)
    if (sets[i].effective | sets[i].permitted | sets[i].inheritable) return -EPERM;
  return 0;
}

int vw_isolate(const vw_isolation *wanted, vw_step *failed) {
  int rc;

  *failed = VW_STEP_THREADS;
  int threads = vw_settled_thread_count();
  if (threads != 1) return threads < 0 ? threads : -EBUSY;

  *failed = VW_STEP_DESCRIPTORS;
  if ((rc = close_others(wanted))) return rc;

  *failed = VW_STEP_SESSION;
  if (setsid() < 0 && errno != EPERM) return -errno; /* EPERM: leads a group, so already on its own */

  *failed = VW_STEP_BOUNDING;
  if ((rc = drop_bounding())) return rc;

  *failed = VW_STEP_USER;
  if ((rc = change_user(wanted))) return rc;

  *failed = VW_STEP_LIMITS;
  if ((rc = lower_limits(wanted))) return rc;

  *failed = VW_STEP_CAPABILITIES;
  if ((rc = drop_capabilities())) return rc;

  *failed = VW_STEP_DUMPABLE;
  if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) return -errno;

  *failed = VW_STEP_NO_NEW_PRIVS;
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) return -errno;
  return 0;
}

const char *vw_step_name(vw_step step) {
  switch (step) {
  case VW_STEP_THREADS: return "one thread only";
  case VW_STEP_DESCRIPTORS: return "closing descriptors";
  case VW_STEP_SESSION: return "setsid";
  case VW_STEP_BOUNDING: return "shrinking the capability bounding set";
  case VW_STEP_USER: return "changing user";
  case VW_STEP_LIMITS: return "resource limits";
  case VW_STEP_CAPABILITIES: return "dropping capabilities";
  case VW_STEP_DUMPABLE: return "clearing dumpable";
  case VW_STEP_NO_NEW_PRIVS: return "no_new_privs";
  }
  return "?";
}

int vw_install_filter(const void *program, size_t size, unsigned flags, int *thread) {
  *thread = 0;
  if (size == 0 || size % sizeof(struct sock_filter) || size / sizeof(struct sock_filter) > VW_FILTER_MOST)
    return -EINVAL;
  /* The kernel would also take CAP_SYS_ADMIN instead. Without no_new_privs the filter could be
     * shed by a set-user-id program's bugs, so it counts as not installed. */
  int no_new_privs = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
  if (no_new_privs != 1) return no_new_privs < 0 ? -errno : -EPERM;

  unsigned long kernel_flags = 0;
  if (flags & VW_FILTER_ALL_THREADS) kernel_flags |= SECCOMP_FILTER_FLAG_TSYNC;
  if (flags & VW_FILTER_LISTENER) kernel_flags |= SECCOMP_FILTER_FLAG_NEW_LISTENER;
  /* Both give a positive number: only so can a descriptor be told from a thread id. */
  if (kernel_flags == (SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_NEW_LISTENER))
    kernel_flags |= SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
  struct sock_fprog prog = {
      .len = (unsigned short)(size / sizeof(struct sock_filter)),
      .filter = (struct sock_filter *)(uintptr_t)program, /* only read */
  };
  long rc = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, kernel_flags, &prog);
  if (rc < 0) return errno == ESRCH ? -EBUSY : -errno;
  if (rc > 0 && !(flags & VW_FILTER_LISTENER)) {
    *thread = (int)rc;
    return -EBUSY;
  }
  return (int)rc;
}

int vw_canary(const char *path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  if (fd < 0) return errno;
  close(fd);
  return 0;
}
