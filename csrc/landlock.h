/* Landlock: which files the process can still reach. Rights are given by path, everything else of
 * what the kernel's ABI knows is denied, TCP and the scopes included.
 *
 * Runs in the worker, at S1, before any other thread exists: a domain binds the calling thread and
 * those it makes later. No allocation, no GIL needed. */
#ifndef VW_LANDLOCK_H
#define VW_LANDLOCK_H

#include <stddef.h>
#include <stdint.h>

/* Our own, since build machines' headers are older than the kernels we run on. */
enum {
  VW_LANDLOCK_EXECUTE = 1 << 0,
  VW_LANDLOCK_WRITE_FILE = 1 << 1,
  VW_LANDLOCK_READ_FILE = 1 << 2,
  VW_LANDLOCK_READ_DIR = 1 << 3,
  VW_LANDLOCK_REMOVE_DIR = 1 << 4,
  VW_LANDLOCK_REMOVE_FILE = 1 << 5,
  VW_LANDLOCK_MAKE_CHAR = 1 << 6,
  VW_LANDLOCK_MAKE_DIR = 1 << 7,
  VW_LANDLOCK_MAKE_REG = 1 << 8,
  VW_LANDLOCK_MAKE_SOCK = 1 << 9,
  VW_LANDLOCK_MAKE_FIFO = 1 << 10,
  VW_LANDLOCK_MAKE_BLOCK = 1 << 11,
  VW_LANDLOCK_MAKE_SYM = 1 << 12,
  VW_LANDLOCK_REFER = 1 << 13,     /* ABI 2 */
  VW_LANDLOCK_TRUNCATE = 1 << 14,  /* ABI 3 */
  VW_LANDLOCK_IOCTL_DEV = 1 << 15, /* ABI 5 */
};

#define VW_LANDLOCK_KNOWN_ABI 7 /* 4 TCP, 6 scopes (abstract sockets, signals), 7 audit: nothing to ask for */

typedef struct {
  const char *path;
  uint64_t rights; /* VW_LANDLOCK_…; those that the ABI, or the type of the file, lacks are left out */
} vw_landlock_rule;

/* The kernel's ABI; 0 where Landlock is absent or switched off. */
int vw_landlock_abi(void);

/* Every file right of that ABI: what a ruleset denies unless a rule gives it. */
uint64_t vw_landlock_rights(int abi);

/* Binds the calling thread to the rules, as a kernel of at most abi_limit would (0: as this kernel
 * can). Returns the ABI used, or -errno; *failed is then the index of the rule that could not be
 * added, or SIZE_MAX. -ENOENT, …: its path can't be opened. -ENOMSG: no right of it applies to a
 * file. -EINVAL: unknown rights, or none. Without a rule at fault: -ENOSYS, no Landlock; -EBUSY,
 * there are several threads; -EPERM, no_new_privs is not set. */
int vw_landlock_restrict(const vw_landlock_rule *rules, size_t count, int abi_limit, size_t *failed);

#endif
