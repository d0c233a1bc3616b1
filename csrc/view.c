#include "view.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "lockdown.h"

/* Newer than some headers; the numbers are the same on every architecture. */
#ifndef SYS_move_mount
#define SYS_open_tree 428
#define SYS_move_mount 429
#define SYS_fsopen 430
#define SYS_fsconfig 431
#define SYS_fsmount 432
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif

/* Of linux/mount.h, which older C libraries' sys/mount.h can't be included beside. */
#define FS_CLOEXEC 1u           /* FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC */
#define FS_SET_STRING 1u        /* FSCONFIG_SET_STRING */
#define FS_CREATE 6u            /* FSCONFIG_CMD_CREATE */
#define MOVE_FROM_DESCRIPTOR 4u /* MOVE_MOUNT_F_EMPTY_PATH */
#define ATTR_RDONLY 1u          /* MOUNT_ATTR_RDONLY */
#define ATTR_NOSUID 2u          /* MOUNT_ATTR_NOSUID */
#define ATTR_NODEV 4u           /* MOUNT_ATTR_NODEV */
#define TREE_CLONE 1u           /* OPEN_TREE_CLONE */
#define RECURSIVE 0x8000u       /* AT_RECURSIVE */

struct attributes { /* struct mount_attr */
  uint64_t set, clear, propagation, user_namespace;
};

/* Folders and links only: what is shown has its memory elsewhere. */
#define ROOT_SIZE "1m"
#define ROOT_INODES "16384"

static bool proper(const char *path) {
  if (path[0] != '/' || strlen(path) >= PATH_MAX) return false;
  while (*path) {
    const char *part = path + 1;
    size_t length = strcspn(part, "/");
    if (length == 0 || (part[0] == '.' && (length == 1 || (length == 2 && part[1] == '.')))) return false;
    path = part + length;
  }
  return true;
}

static int put_text(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return -errno;
  int rc = write(fd, text, strlen(text)) < 0 ? -errno : 0;
  close(fd);
  return rc;
}

/* Outside, a process is seen with the ids that it had: who may signal it, or read its files in /proc,
 * doesn't change. */
static int keep_ids(uid_t user, gid_t group) {
  char text[64];
  int rc = put_text("/proc/self/setgroups", "deny"); /* else it takes privileges to map the group */
  if (rc) return rc;
  snprintf(text, sizeof text, "%u %u 1", user, user);
  if ((rc = put_text("/proc/self/uid_map", text))) return rc;
  snprintf(text, sizeof text, "%u %u 1", group, group);
  return put_text("/proc/self/gid_map", text);
}

/* A descriptor of an empty file system that is mounted on the root. Lookups begin below it, so they
 * still see what they saw; nothing is hidden, as it would be on any other folder. */
static int new_root(void) {
  int context = (int)syscall(SYS_fsopen, "tmpfs", FS_CLOEXEC);
  if (context < 0) return -errno;
  int root = -1, rc = 0;
  if (syscall(SYS_fsconfig, context, FS_SET_STRING, "size", ROOT_SIZE, 0) < 0 ||
      syscall(SYS_fsconfig, context, FS_SET_STRING, "nr_inodes", ROOT_INODES, 0) < 0 ||
      syscall(SYS_fsconfig, context, FS_SET_STRING, "mode", "0755", 0) < 0 ||
      syscall(SYS_fsconfig, context, FS_CREATE, NULL, NULL, 0) < 0 ||
      (root = (int)syscall(SYS_fsmount, context, FS_CLOEXEC, 0u)) < 0 ||
      syscall(SYS_move_mount, root, "", AT_FDCWD, "/", MOVE_FROM_DESCRIPTOR) < 0) {
    rc = -errno;
    if (root >= 0) close(root);
  }
  close(context);
  return rc ? rc : root;
}

/* The folders above `path`, which is relative to the working directory. */
static int make_parents(const char *path) {
  char part[PATH_MAX];
  for (const char *end = path; (end = strchr(end, '/')); end++) {
    size_t length = (size_t)(end - path);
    memcpy(part, path, length);
    part[length] = '\0';
    if (mkdir(part, 0755) < 0 && errno != EEXIST) return -errno;
  }
  return 0;
}

static int make_place(const char *path, bool folder) {
  int rc = make_parents(path);
  if (rc) return rc;
  if (folder) return mkdir(path, 0755) < 0 && errno != EEXIST ? -errno : 0;
  int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
  if (fd < 0) return errno == EEXIST ? 0 : -errno;
  close(fd);
  return 0;
}

static int set_attributes(int tree, uint64_t set) {
  struct attributes wanted = {.set = set};
  return syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | RECURSIVE, &wanted, sizeof wanted) < 0 ? -errno : 0;
}

/* What is open, with all that is mounted below it, at `place`, which is relative to the working directory. Devices
 * work only where one was asked for by itself: a folder of models or nodes may hold any. */
static int bind_open(int fd, const char *place) {
  struct stat status;
  if (fstat(fd, &status) < 0) return -errno;
  int rc = make_place(place, S_ISDIR(status.st_mode));
  if (rc) return rc;
  int tree = (int)syscall(SYS_open_tree, fd, "", AT_EMPTY_PATH | TREE_CLONE | RECURSIVE | O_CLOEXEC);
  if (tree < 0) return -errno;
  if (!S_ISCHR(status.st_mode)) rc = set_attributes(tree, ATTR_NODEV);
  if (rc == 0 && syscall(SYS_move_mount, tree, "", AT_FDCWD, place, MOVE_FROM_DESCRIPTOR) < 0) rc = -errno;
  close(tree);
  return rc;
}

/* Absolute paths are the old root's, relative ones the new root's, which is the working directory. */
static int show(const char *path) {
  int fd = vw_open_name(path);
  if (fd < 0) return fd;
  int rc = bind_open(fd, path + 1);
  close(fd);
  return rc;
}

static int show_link(const vw_view_link *link) {
  int rc = make_parents(link->path + 1);
  if (rc) return rc;
  return symlink(link->target, link->path + 1) < 0 && errno != EEXIST ? -errno : 0;
}

/* By its number in the /proc that is mounted: it may count other than our namespace does. */
static int show_self(void) {
  char number[32], place[48];
  ssize_t length = readlink("/proc/self", number, sizeof number - 1);
  if (length < 0) return -errno;
  number[length] = '\0';
  snprintf(place, sizeof place, "/proc/%s", number);
  int rc = show(place);
  if (rc) return rc;
  return symlink(number, "proc/self") < 0 ? -errno : 0;
}

/* In the new root as working directory: fill it, and make it "/". */
static int fill(const vw_view *wanted, int root, vw_view_step *failed, size_t *at) {
  int rc;

  *failed = VW_VIEW_SHOW;
  for (*at = 0; *at < wanted->shown_count; ++*at)
    if ((rc = show(wanted->shown[*at]))) return rc;

  *failed = VW_VIEW_LINK;
  for (*at = 0; *at < wanted->link_count; ++*at)
    if ((rc = show_link(&wanted->links[*at]))) return rc;
  *at = SIZE_MAX;

  *failed = VW_VIEW_SELF;
  if ((rc = show_self())) return rc;

  *failed = VW_VIEW_READ_ONLY;
  if ((rc = set_attributes(root, ATTR_RDONLY | ATTR_NOSUID))) return rc;

  *failed = VW_VIEW_PIVOT;
  return syscall(SYS_pivot_root, ".", ".") < 0 ? -errno : 0; /* the old root is then on top of the new one */
}

int vw_view_enter(const vw_view *wanted, vw_view_step *failed, size_t *at) {
  int rc;

  *failed = VW_VIEW_THREADS;
  *at = SIZE_MAX;
  int threads = vw_settled_thread_count();
  if (threads != 1) return threads < 0 ? threads : -EBUSY;

  *failed = VW_VIEW_PATHS;
  for (*at = 0; *at < wanted->shown_count; ++*at)
    if (!proper(wanted->shown[*at])) return -EINVAL;
  *at = SIZE_MAX;
  for (size_t i = 0; i < wanted->link_count; i++)
    if (!proper(wanted->links[i].path)) return -EINVAL;

  uid_t user = geteuid();
  gid_t group = getegid();
  *failed = VW_VIEW_NAMESPACE;
  if (unshare(CLONE_NEWNS) < 0) {
    if (errno != EPERM) return -errno;
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0) return -errno;
    *failed = VW_VIEW_USERS;
    if ((rc = keep_ids(user, group))) return rc;
  }

  *failed = VW_VIEW_PRIVATE;
  if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) return -errno;

  *failed = VW_VIEW_ROOT;
  int before = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (before < 0) return -errno;
  int root = new_root();
  if (root < 0) {
    close(before);
    return root;
  }
  rc = fchdir(root) < 0 ? -errno : fill(wanted, root, failed, at);
  if (rc) {
    if (fchdir(root) == 0) umount2(".", MNT_DETACH);
    if (fchdir(before) < 0) (void)!chdir("/");
  }
  close(root);
  close(before);
  if (rc) return rc;

  *failed = VW_VIEW_DETACH;
  if (umount2(".", MNT_DETACH) < 0 || chdir("/") < 0) return -errno;
  return 0;
}

const char *vw_view_step_name(vw_view_step step) {
  switch (step) {
  case VW_VIEW_THREADS: return "one thread only";
  case VW_VIEW_PATHS: return "looking at the paths";
  case VW_VIEW_NAMESPACE: return "a namespace of its own";
  case VW_VIEW_USERS: return "mapping its user and group";
  case VW_VIEW_PRIVATE: return "making mounts private";
  case VW_VIEW_ROOT: return "a root in memory";
  case VW_VIEW_SHOW: return "showing a path";
  case VW_VIEW_LINK: return "showing a link";
  case VW_VIEW_SELF: return "showing /proc/self";
  case VW_VIEW_READ_ONLY: return "making it read-only";
  case VW_VIEW_PIVOT: return "pivot_root";
  case VW_VIEW_DETACH: return "detaching the old root";
  }
  return "?";
}
