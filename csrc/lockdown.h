/* The locks of a worker that are neither Landlock's nor a policy's: what it inherits (S0), the
 * installation of ready-made filter programs (S1, S2), and the canary that proves them.
 *
 * All of it runs in the worker, once, while the process is still trusted; no allocation, no GIL. */
#ifndef VW_LOCKDOWN_H
#define VW_LOCKDOWN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VW_NO_LIMIT UINT64_MAX
#define VW_SAME_ID (-1)

typedef struct {
  const int *keep; /* descriptors that stay open: ascending, no two alike */
  size_t keep_count;
  uint64_t file_size;  /* RLIMIT_FSIZE, bytes; 0 also stops a log into a regular file, by SIGXFSZ */
  uint64_t open_files; /* RLIMIT_NOFILE */
  uint64_t processes;  /* RLIMIT_NPROC: every thread of the user counts; root is not bound by it */
  uint64_t data;       /* RLIMIT_DATA, bytes of private memory; VW_NO_LIMIT: leave it */
  int64_t user, group; /* change to these; VW_SAME_ID: stay */
} vw_isolation;

/* Which step of vw_isolate failed: the order in which they happen. */
typedef enum {
  VW_STEP_THREADS,      /* there must be one: several of the locks bind a thread, not the process */
  VW_STEP_DESCRIPTORS,  /* close all but `keep`; 0, 1 and 2 become /dev/null where not kept */
  VW_STEP_SESSION,      /* no controlling terminal */
  VW_STEP_BOUNDING,     /* the capability bounding set, while CAP_SETPCAP is still there */
  VW_STEP_USER,         /* while CAP_SETUID is still there */
  VW_STEP_LIMITS,       /* after the user changed: NPROC is counted for the new one */
  VW_STEP_CAPABILITIES, /* ambient, permitted, effective, inheritable */
  VW_STEP_DUMPABLE,     /* after the user changed, which resets it */
  VW_STEP_NO_NEW_PRIVS,
} vw_step;

/* S0. 0, or -errno and the step that failed; the process is then half locked and should exit. */
int vw_isolate(const vw_isolation *wanted, vw_step *failed);
const char *vw_step_name(vw_step step);

/* Threads of this process, from /proc: 1 or more, or -errno. */
int vw_thread_count(void);
/* The same, once threads that have ended are no longer counted: waits 0.1 s at most for there to be one. */
int vw_settled_thread_count(void);

/* A descriptor of what lies at `path`, of its name only (O_PATH): a device or a fifo is not opened for real. -ELOOP if
 * any part of it is a link: one that was resolved, and checked, may have been replaced since (openat2(2), Linux 5.6). */
int vw_open_name(const char *path);

#define VW_FILTER_MOST 4096u /* BPF_MAXINSNS */

enum {
  VW_FILTER_ALL_THREADS = 1, /* TSYNC: all threads or none */
  VW_FILTER_LISTENER = 2,    /* return a descriptor for the program's SECCOMP_RET_USER_NOTIF */
};

/* Installs a BPF program of `size` bytes (struct sock_filter, 8 bytes each). 0, or the listener's
 * descriptor, or -errno: -EINVAL (size, or the kernel's checker), -EPERM (no_new_privs is not set),
 * -EBUSY (all threads: *thread is one that has a filter of its own and could not take this one). */
int vw_install_filter(const void *program, size_t size, unsigned flags, int *thread);

/* Tries to open `path` for reading. The errno it failed with, or 0: the file is open to this
 * process, so a lock that should be there is not. */
int vw_canary(const char *path);

#endif
