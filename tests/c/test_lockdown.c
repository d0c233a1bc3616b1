/* S0, filter installation and the canary, each in a child, judged by what the kernel says of it. */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "child.h"
#include "lockdown.h"

static const vw_isolation usual = {
    .open_files = 256, .processes = 4096, .data = VW_NO_LIMIT, .user = VW_SAME_ID, .group = VW_SAME_ID};

static void isolate(const int *keep, size_t count, vw_isolation wanted) {
  vw_step failed;
  wanted.keep = keep;
  wanted.keep_count = count;
  int rc = vw_isolate(&wanted, &failed);
  if (rc) fprintf(stderr, "isolate: %s: %s\n", vw_step_name(failed), strerror(-rc));
  CHECK_EQUAL(rc, 0);
}

/* A line of /proc/self/status as a number. */
static uint64_t status_of(const char *key, int base) {
  char line[256];
  uint64_t value = UINT64_MAX;
  FILE *stream = fopen("/proc/self/status", "r");
  CHECK(stream);
  while (fgets(line, sizeof line, stream))
    if (!strncmp(line, key, strlen(key)) && line[strlen(key)] == ':')
      value = strtoull(line + strlen(key) + 1, NULL, base);
  fclose(stream);
  return value;
}

static void no_capabilities(void) {
  const char *const sets[] = {"CapInh", "CapPrm", "CapEff", "CapAmb"};
  for (int i = 0; i < 4; i++) CHECK_EQUAL(status_of(sets[i], 16), 0);
  CHECK_EQUAL(status_of("NoNewPrivs", 10), 1);
  CHECK_EQUAL(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), 0);
}

static ino_t inode_of(int fd) {
  struct stat status;
  CHECK_EQUAL(fstat(fd, &status), 0);
  return status.st_ino;
}

static void everything_inherited_goes(void *argument) {
  (void)argument;
  struct stat null, now;
  CHECK_EQUAL(stat("/dev/null", &null), 0);
  int zero = open("/dev/zero", O_RDONLY), far = fcntl(zero, F_DUPFD, 900), kept = dup(zero),
      farther = fcntl(zero, F_DUPFD, 1000);
  CHECK(zero > 2 && far >= 900 && kept > 2 && farther >= 1000);
  CHECK_EQUAL(dup2(zero, 0), 0);
  ino_t device = inode_of(zero), log = inode_of(2);
  const int keep[] = {2, kept, farther};
  isolate(keep, 3, usual);

  for (int fd = 0; fd < 2; fd++) {
    CHECK_EQUAL(fstat(fd, &now), 0);
    CHECK_EQUAL(now.st_rdev, null.st_rdev);
    CHECK_EQUAL(fcntl(fd, F_GETFD), 0); /* survives an exec, as standard descriptors do */
  }
  CHECK_EQUAL(inode_of(2), log);
  CHECK_EQUAL(inode_of(kept), device);
  CHECK_EQUAL(inode_of(farther), device);
  for (int fd = 3; fd < 1100; fd++)
    if (fd != kept && fd != farther) CHECK(fcntl(fd, F_GETFD) < 0 && errno == EBADF);

  no_capabilities();
  if (geteuid() == 0) CHECK_EQUAL(status_of("CapBnd", 16), 0);
  CHECK_EQUAL(getsid(0), getpid());
  const struct {
    int resource;
    rlim_t value;
  } limits[] = {{RLIMIT_CORE, 0}, {RLIMIT_FSIZE, 0}, {RLIMIT_NOFILE, 256}};
  for (int i = 0; i < 3; i++) {
    struct rlimit limit;
    CHECK_EQUAL(getrlimit((__rlimit_resource_t)limits[i].resource, &limit), 0);
    CHECK_EQUAL(limit.rlim_cur, limits[i].value);
    CHECK_EQUAL(limit.rlim_max, limits[i].value);
    limit.rlim_max = limit.rlim_cur = limits[i].value + 1;
    CHECK(setrlimit((__rlimit_resource_t)limits[i].resource, &limit) < 0 && errno == EPERM);
  }
  if (getuid() == 0) { /* root in name only */
    CHECK(setuid(65534) < 0 && errno == EPERM);
    CHECK(chown("/dev/null", 1, 1) < 0 && errno == EPERM);
  }
}

static void closed_standard_descriptors(void *argument) {
  (void)argument;
  int log = fcntl(2, F_DUPFD, 10);
  for (int fd = 0; fd <= 2; fd++) close(fd);
  isolate(&log, 1, usual);
  for (int fd = 0; fd <= 2; fd++) CHECK_EQUAL(fcntl(fd, F_GETFD), 0);
  CHECK_EQUAL(write(1, "x", 1), 1);
  CHECK(fcntl(3, F_GETFD) < 0);
}

static void limits_only_go_down(void *argument) {
  (void)argument;
  struct rlimit limit = {50, 50};
  CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &limit), 0);
  vw_isolation wanted = usual;
  wanted.file_size = 4096;
  const int keep[] = {1, 2};
  isolate(keep, 2, wanted);
  CHECK_EQUAL(getrlimit(RLIMIT_NOFILE, &limit), 0);
  CHECK_EQUAL(limit.rlim_max, 50);
  CHECK_EQUAL(getrlimit(RLIMIT_FSIZE, &limit), 0);
  CHECK_EQUAL(limit.rlim_cur, 4096);
  CHECK_EQUAL(getrlimit(RLIMIT_NPROC, &limit), 0);
  CHECK(limit.rlim_cur <= 4096);
}

static void another_user(void *argument) {
  (void)argument;
  vw_isolation wanted = usual;
  wanted.user = 65534;
  wanted.group = 65533;
  const int keep[] = {1, 2};
  isolate(keep, 2, wanted);
  uid_t uids[3];
  gid_t gids[3], groups[1];
  CHECK_EQUAL(getresuid(&uids[0], &uids[1], &uids[2]), 0);
  CHECK_EQUAL(getresgid(&gids[0], &gids[1], &gids[2]), 0);
  for (int i = 0; i < 3; i++) CHECK(uids[i] == 65534 && gids[i] == 65533);
  CHECK_EQUAL(getgroups(1, groups), 0);
  CHECK_EQUAL(status_of("CapBnd", 16), 0);
  no_capabilities();
  CHECK(setresuid(0, 0, 0) < 0 && errno == EPERM);
}

static void without_privileges(void *argument) { /* as most people run it */
  (void)argument;
  CHECK_EQUAL(setresgid(65534, 65534, 65534), 0);
  CHECK_EQUAL(setresuid(65534, 65534, 65534), 0);
  const int keep[] = {1, 2};
  vw_isolation wanted = usual;
  vw_step failed;
  wanted.keep = keep;
  wanted.keep_count = 2;
  wanted.user = 0;
  CHECK_EQUAL(vw_isolate(&wanted, &failed), -EPERM);
  CHECK_EQUAL(failed, VW_STEP_USER);
  isolate(keep, 2, usual);
  no_capabilities();
}

static void *sleep_on(void *argument) {
  (void)argument;
  pause();
  return NULL;
}

static void refusals(void *argument) {
  (void)argument;
  vw_step failed = VW_STEP_NO_NEW_PRIVS;
  vw_isolation wanted = usual;
  const int not_open[] = {2, 77}, unsorted[] = {2, 1}, twice[] = {2, 2}, negative[] = {-1};
  const struct {
    const int *keep;
    size_t count;
    int rc;
  } bad[] = {{not_open, 2, -EBADF}, {unsorted, 2, -EINVAL}, {twice, 2, -EINVAL}, {negative, 1, -EINVAL}};
  for (int i = 0; i < 4; i++) {
    wanted.keep = bad[i].keep;
    wanted.keep_count = bad[i].count;
    CHECK_EQUAL(vw_isolate(&wanted, &failed), bad[i].rc);
    CHECK_EQUAL(failed, VW_STEP_DESCRIPTORS);
  }
  CHECK_EQUAL(vw_thread_count(), 1);
  pthread_t thread;
  CHECK_EQUAL(pthread_create(&thread, NULL, sleep_on, NULL), 0);
  CHECK_EQUAL(vw_thread_count(), 2);
  CHECK_EQUAL(vw_isolate(&wanted, &failed), -EBUSY);
  CHECK_EQUAL(failed, VW_STEP_THREADS);
}

#define LOAD_NUMBER BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))
#define ON(number, action)                                                                                   \
  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (number), 0, 1), BPF_STMT(BPF_RET | BPF_K, (action))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static const struct sock_filter no_getppid[] = {LOAD_NUMBER, ON(SYS_getppid, SECCOMP_RET_ERRNO | 42), ALLOW};

static void filter_this_thread(void *argument) {
  (void)argument;
  int thread;
  CHECK_EQUAL(vw_install_filter(no_getppid, sizeof no_getppid, 0, &thread), -EPERM); /* no_new_privs first */
  CHECK_EQUAL(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  const size_t wrong[] = {0, 7, 8 * 4097};
  for (int i = 0; i < 3; i++) CHECK_EQUAL(vw_install_filter(no_getppid, wrong[i], 0, &thread), -EINVAL);
  const struct sock_filter endless[] = {LOAD_NUMBER}; /* has no return: the kernel's checker refuses */
  CHECK_EQUAL(vw_install_filter(endless, sizeof endless, 0, &thread), -EINVAL);
  CHECK_EQUAL(status_of("Seccomp", 10), 0);
  CHECK_EQUAL(vw_install_filter(no_getppid, sizeof no_getppid, 0, &thread), 0);
  CHECK_EQUAL(status_of("Seccomp", 10), 2);
  CHECK(syscall(SYS_getppid) < 0 && errno == 42);
}

static int from_main[2], to_main[2]; /* pipes between the main thread and another */

static void *call_when_told(void *own_filter) {
  int thread;
  char byte;
  if (own_filter) CHECK_EQUAL(vw_install_filter(no_getppid, sizeof no_getppid, 0, &thread), 0);
  CHECK_EQUAL(write(to_main[1], "r", 1), 1);
  CHECK_EQUAL(read(from_main[0], &byte, 1), 1);
  long parent = syscall(SYS_getppid);
  return (void *)(intptr_t)(parent < 0 ? errno : 0);
}

static void *other_thread(bool own_filter, bool all_threads, int expected) {
  pthread_t thread;
  char byte;
  void *result;
  int offender;
  CHECK(pipe(from_main) == 0 && pipe(to_main) == 0);
  CHECK_EQUAL(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  CHECK_EQUAL(pthread_create(&thread, NULL, call_when_told, own_filter ? from_main : NULL), 0);
  CHECK_EQUAL(read(to_main[0], &byte, 1), 1);
  int rc =
      vw_install_filter(no_getppid, sizeof no_getppid, all_threads ? VW_FILTER_ALL_THREADS : 0, &offender);
  CHECK_EQUAL(rc, expected);
  CHECK((rc == -EBUSY) == (offender > 0));
  CHECK_EQUAL(write(from_main[1], "g", 1), 1);
  CHECK_EQUAL(pthread_join(thread, &result), 0);
  return result;
}

static void filter_all_threads(void *argument) {
  (void)argument;
  CHECK_EQUAL((intptr_t)other_thread(false, true, 0), 42);
}

static void filter_one_of_two(void *argument) {
  (void)argument;
  CHECK_EQUAL((intptr_t)other_thread(false, false, 0), 0);
}

static void filter_with_a_stranger(void *argument) {
  (void)argument;
  CHECK_EQUAL((intptr_t)other_thread(true, true, -EBUSY), 42);
  CHECK(syscall(SYS_getppid) > 0); /* all or none: this thread is free */
}

static void filter_kills(void *argument) {
  (void)argument;
  const struct sock_filter deadly[] = {LOAD_NUMBER, ON(SYS_getppid, SECCOMP_RET_KILL_PROCESS), ALLOW};
  int thread;
  CHECK_EQUAL(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  CHECK_EQUAL(vw_install_filter(deadly, sizeof deadly, VW_FILTER_ALL_THREADS, &thread), 0);
  syscall(SYS_getppid);
}

static void *ask_parent(void *argument) {
  (void)argument;
  return (void *)(intptr_t)syscall(SYS_getppid);
}

static void filter_tells_a_listener(void *argument) {
  (void)argument;
  const struct sock_filter telling[] = {LOAD_NUMBER, ON(SYS_getppid, SECCOMP_RET_USER_NOTIF), ALLOW};
  int thread;
  CHECK_EQUAL(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  int listener =
      vw_install_filter(telling, sizeof telling, VW_FILTER_ALL_THREADS | VW_FILTER_LISTENER, &thread);
  CHECK(listener > 2);
  pthread_t asking;
  CHECK_EQUAL(pthread_create(&asking, NULL, ask_parent, NULL), 0);
  struct seccomp_notif told;
  memset(&told, 0, sizeof told); /* the kernel wants zeros */
  CHECK_EQUAL(ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &told), 0);
  CHECK_EQUAL(told.data.nr, SYS_getppid);
  struct seccomp_notif_resp answer = {.id = told.id, .val = 4711};
  CHECK_EQUAL(ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer), 0);
  void *result;
  CHECK_EQUAL(pthread_join(asking, &result), 0);
  CHECK_EQUAL((intptr_t)result, 4711);
}

static void canary(void *argument) {
  (void)argument;
  const struct sock_filter no_open[] = {LOAD_NUMBER, ON(SYS_openat, SECCOMP_RET_ERRNO | EACCES), ALLOW};
  int thread;
  CHECK_EQUAL(vw_canary("/etc/passwd"), 0);
  CHECK_EQUAL(vw_canary("/nonexistent"), ENOENT);
  CHECK_EQUAL(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  CHECK_EQUAL(vw_install_filter(no_open, sizeof no_open, 0, &thread), 0);
  CHECK_EQUAL(vw_canary("/etc/passwd"), EACCES);
}

int main(void) {
  alarm(60);
  IN_CHILD(everything_inherited_goes);
  IN_CHILD(closed_standard_descriptors);
  IN_CHILD(limits_only_go_down);
  if (geteuid() == 0) {
    IN_CHILD(another_user);
    IN_CHILD(without_privileges);
  }
  IN_CHILD(refusals);
  IN_CHILD(filter_this_thread);
  IN_CHILD(filter_all_threads);
  IN_CHILD(filter_one_of_two);
  IN_CHILD(filter_with_a_stranger);
  IN_CHILD(filter_tells_a_listener);
  IN_CHILD(canary);
  int status = in_child(filter_kills, NULL);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
  return 0;
}
