/* The view, judged by what a child that is in one still sees. */
#include "view.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "child.h"

static char root[] = "/tmp/vw-view-XXXXXX";
static char path_buffer[8][128];

static const char *in_root(int n, const char *name) {
  snprintf(path_buffer[n], sizeof path_buffer[n], "%s/%s", root, name);
  return path_buffer[n];
}

static int enter(const char *const *shown, size_t count, vw_view_step *failed, size_t *at) {
  const vw_view_link links[] = {{"/short", in_root(7, "open")}};
  const vw_view wanted = {.shown = shown, .shown_count = count, .links = links, .link_count = 1};
  return vw_view_enter(&wanted, failed, at);
}

static int look(const char *path) {
  struct stat status;
  return stat(path, &status) < 0 ? errno : 0;
}

static void only_what_is_listed(void *argument) {
  (void)argument;
  vw_view_step failed;
  size_t at;
  const char *const shown[] = {in_root(0, "open"), in_root(1, "single.txt"), "/dev/null"};
  CHECK_EQUAL(enter(shown, 3, &failed, &at), 0);
  CHECK_EQUAL(look(in_root(2, "open/deep/file.txt")), 0);
  CHECK_EQUAL(look(in_root(2, "single.txt")), 0);
  CHECK_EQUAL(look(in_root(2, "closed.txt")), ENOENT);
  CHECK_EQUAL(look("/short/deep/file.txt"), 0);
  CHECK_EQUAL(look("/proc/self/status"), 0);
  CHECK_EQUAL(look("/proc/version"), ENOENT);
  CHECK_EQUAL(look("/etc"), ENOENT);
  CHECK_EQUAL(look("/../../etc"), ENOENT);
  CHECK_EQUAL(look("../etc"), ENOENT);
  CHECK(open(in_root(2, "open/deep/file.txt"), O_WRONLY) < 0 && errno == EROFS);
  CHECK(mkdir(in_root(2, "new"), 0700) < 0 && errno == EROFS);
  CHECK(mkdir("/new", 0700) < 0 && errno == EROFS);
  CHECK_EQUAL(open("/dev/null", O_RDWR), 3); /* no device is closed by it, and nothing was left open */
}

static void twice(void *argument) {
  (void)argument;
  vw_view_step failed;
  size_t at;
  const char *const first[] = {root}, *const second[] = {in_root(0, "open")};
  CHECK_EQUAL(enter(first, 1, &failed, &at), 0);
  CHECK_EQUAL(enter(second, 1, &failed, &at), 0);
  CHECK_EQUAL(look(in_root(1, "open/deep/file.txt")), 0);
  CHECK_EQUAL(look(in_root(1, "single.txt")), ENOENT);
}

static void nothing_by_halves(void *argument) {
  (void)argument;
  const struct {
    const char *path;
    int rc;
    vw_view_step step;
  } bad[] = {
      {"relative", -EINVAL, VW_VIEW_PATHS},  {"", -EINVAL, VW_VIEW_PATHS},
      {"/", -EINVAL, VW_VIEW_PATHS},         {"/tmp/", -EINVAL, VW_VIEW_PATHS},
      {"/tmp/../etc", -EINVAL, VW_VIEW_PATHS}, {"//tmp", -EINVAL, VW_VIEW_PATHS},
      {"/tmp/.", -EINVAL, VW_VIEW_PATHS},    {in_root(0, "missing"), -ENOENT, VW_VIEW_SHOW},
      {in_root(1, "single.txt/below"), -ENOTDIR, VW_VIEW_SHOW},
  };
  CHECK_EQUAL(chdir(root), 0);
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    vw_view_step failed;
    size_t at;
    const char *const shown[] = {"/dev/null", bad[i].path};
    CHECK_EQUAL(enter(shown, 2, &failed, &at), bad[i].rc);
    CHECK_EQUAL(failed, bad[i].step);
    CHECK_EQUAL(at, 1);
    CHECK_EQUAL(look("closed.txt"), 0); /* the same working directory */
    CHECK_EQUAL(look("/etc"), 0);
    CHECK_EQUAL(look("/../etc"), 0); /* and nothing lies on top of the root */
    CHECK_EQUAL(open("/dev/null", O_RDONLY), 3);
    close(3);
  }
}

/* What needs no privilege: a user namespace beside that of mounts. Outside, the ids are what they were. */
static void as_somebody(void *argument) {
  (void)argument;
  vw_view_step failed;
  size_t at;
  const char *const shown[] = {"/dev/null"};
  if (geteuid() == 0) {
    CHECK_EQUAL(chmod(root, 0755), 0);
    CHECK(setgid(12345) == 0 && setuid(12345) == 0);
    CHECK_EQUAL(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), 0); /* as after an exec: else its /proc is root's */
  }
  uid_t user = geteuid();
  gid_t group = getegid();
  int rc = enter(shown, 1, &failed, &at);
  if (failed == VW_VIEW_NAMESPACE && rc < 0) return; /* this machine allows nobody to make one */
  CHECK_EQUAL(rc, 0);
  CHECK_EQUAL(look("/etc"), ENOENT);
  CHECK_EQUAL(geteuid(), user);
  CHECK_EQUAL(getegid(), group);
}

static void *sleep_on(void *argument) {
  (void)argument;
  pause();
  return NULL;
}

static void with_threads(void *argument) {
  (void)argument;
  pthread_t thread;
  vw_view_step failed;
  size_t at;
  CHECK_EQUAL(pthread_create(&thread, NULL, sleep_on, NULL), 0);
  CHECK_EQUAL(enter(NULL, 0, &failed, &at), -EBUSY);
  CHECK_EQUAL(failed, VW_VIEW_THREADS);
}

static void put_file(const char *path) {
  int fd = open(path, O_WRONLY | O_CREAT, 0600);
  CHECK(fd >= 0 && write(fd, "hello\n", 6) == 6);
  close(fd);
}

static void try_one(void *argument) {
  (void)argument;
  vw_view_step failed;
  size_t at;
  int rc = enter(NULL, 0, &failed, &at);
  if (rc == 0) return;
  fprintf(stderr, "no view can be had here: %s: %s\n", vw_view_step_name(failed), strerror(-rc));
  _exit(77);
}

int main(void) {
  alarm(60);
  if (in_child(try_one, NULL) != 0) return 77; /* skipped */
  CHECK(mkdtemp(root));
  CHECK_EQUAL(mkdir(in_root(0, "open"), 0700), 0);
  CHECK_EQUAL(mkdir(in_root(0, "open/deep"), 0700), 0);
  put_file(in_root(0, "open/deep/file.txt"));
  put_file(in_root(0, "single.txt"));
  put_file(in_root(0, "closed.txt"));

  IN_CHILD(only_what_is_listed);
  IN_CHILD(twice);
  IN_CHILD(nothing_by_halves);
  IN_CHILD(as_somebody);
  IN_CHILD(with_threads);

  const char *const names[] = {"open/deep/file.txt", "open/deep", "open", "single.txt", "closed.txt"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) CHECK_EQUAL(remove(in_root(0, names[i])), 0);
  CHECK_EQUAL(rmdir(root), 0);
  return 0;
}
