#include "landlock.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lockdown.h"

/* One number on every architecture that has them. */
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif

#define CREATE_RULESET_VERSION 1u /* LANDLOCK_CREATE_RULESET_VERSION */
#define RULE_PATH_BENEATH 1       /* LANDLOCK_RULE_PATH_BENEATH */

#define NET_TCP 3u /* bind, connect: ABI 4 */
#define SCOPES 3u  /* abstract Unix sockets, signals: ABI 6 */

/* As the kernel declares them. A smaller size names an older ABI. */
struct ruleset_attr {
  uint64_t handled_fs;
  uint64_t handled_net; /* ABI 4 */
  uint64_t scoped;      /* ABI 6 */
};

struct path_beneath_attr {
  uint64_t allowed;
  int32_t parent_fd;
} __attribute__((packed));

#define FILE_RIGHTS                                                                                          \
  ((uint64_t)(VW_LANDLOCK_EXECUTE | VW_LANDLOCK_WRITE_FILE | VW_LANDLOCK_READ_FILE | VW_LANDLOCK_TRUNCATE |  \
              VW_LANDLOCK_IOCTL_DEV))
#define KNOWN_RIGHTS 0xffffu

int vw_landlock_abi(void) {
  long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, CREATE_RULESET_VERSION);
  return abi > 0 ? (int)abi : 0;
}

uint64_t vw_landlock_rights(int abi) {
  if (abi < 1) return 0;
  if (abi < 2) return VW_LANDLOCK_REFER - 1u;
  if (abi < 3) return VW_LANDLOCK_TRUNCATE - 1u;
  if (abi < 5) return VW_LANDLOCK_IOCTL_DEV - 1u;
  return KNOWN_RIGHTS;
}

static int add_rule(int ruleset, const vw_landlock_rule *rule, uint64_t handled) {
  if (rule->rights == 0 || rule->rights & ~(uint64_t)KNOWN_RIGHTS) return -EINVAL;
  int fd = vw_open_name(rule->path);
  if (fd < 0) return fd;
  int rc = 0;
  struct stat status;
  if (fstat(fd, &status) < 0) {
    rc = -errno;
  } else {
    uint64_t rights = rule->rights;
    if (!S_ISDIR(status.st_mode)) rights &= FILE_RIGHTS; /* the kernel refuses a rule with others */
    if (rights == 0) {
      rc = -ENOMSG;
    } else if (rights & handled) { /* else: rights this ABI can't deny, hence nothing to give */
      struct path_beneath_attr beneath = {.allowed = rights & handled, .parent_fd = fd};
      if (syscall(SYS_landlock_add_rule, ruleset, RULE_PATH_BENEATH, &beneath, 0) < 0) rc = -errno;
    }
  }
  close(fd);
  return rc;
}

int vw_landlock_restrict(const vw_landlock_rule *rules, size_t count, int abi_limit, size_t *failed) {
  *failed = SIZE_MAX;
  int abi = vw_landlock_abi();
  if (abi == 0) return -ENOSYS;
  int threads = vw_settled_thread_count();
  if (threads != 1) return threads < 0 ? threads : -EBUSY; /* the others would stay free */
  /* Asked here, since with CAP_SYS_ADMIN the kernel would not insist. */
  if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1) return -EPERM;
  if (abi > VW_LANDLOCK_KNOWN_ABI) abi = VW_LANDLOCK_KNOWN_ABI;
  if (abi_limit > 0 && abi > abi_limit) abi = abi_limit;

  struct ruleset_attr attr = {.handled_fs = vw_landlock_rights(abi)};
  size_t size = sizeof attr.handled_fs;
  if (abi >= 4) {
    attr.handled_net = NET_TCP;
    size += sizeof attr.handled_net;
  }
  if (abi >= 6) {
    attr.scoped = SCOPES;
    size += sizeof attr.scoped;
  }
  int ruleset = (int)syscall(SYS_landlock_create_ruleset, &attr, size, 0); /* close-on-exec by itself */
  if (ruleset < 0) return -errno;
  int rc = 0;
  for (size_t i = 0; i < count && rc == 0; i++) {
    rc = add_rule(ruleset, &rules[i], attr.handled_fs);
    if (rc) *failed = i;
  }
  if (rc == 0 && syscall(SYS_landlock_restrict_self, ruleset, 0) < 0) rc = -errno;
  close(ruleset);
  return rc ? rc : abi;
}
