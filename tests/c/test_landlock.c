/* Landlock, judged by what a restricted child can still open. */
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "child.h"
#include "landlock.h"

#define READ (VW_LANDLOCK_READ_FILE | VW_LANDLOCK_READ_DIR)
#define WRITE (VW_LANDLOCK_WRITE_FILE | VW_LANDLOCK_TRUNCATE)

static char root[] = "/tmp/vw-landlock-XXXXXX";
static char path_buffer[8][128];

static const char *in_root(int n, const char *name) {
  snprintf(path_buffer[n], sizeof path_buffer[n], "%s/%s", root, name);
  return path_buffer[n];
}

static int try_open(const char *path, int flags) {
  int fd = open(path, flags | O_CLOEXEC, 0600);
  if (fd < 0) return errno;
  close(fd);
  return 0;
}

static void restrict_to(const vw_landlock_rule *rules, size_t count, int abi, int expected) {
  size_t failed;
  CHECK_EQUAL(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  CHECK_EQUAL(vw_landlock_restrict(rules, count, abi, &failed), expected);
  CHECK(failed == SIZE_MAX);
}

static int newest(void) {
  int abi = vw_landlock_abi();
  return abi < VW_LANDLOCK_KNOWN_ABI ? abi : VW_LANDLOCK_KNOWN_ABI;
}

static void folders_and_files(void *argument) {
  (void)argument;
  const vw_landlock_rule rules[] = {
      {in_root(0, "open"), READ},
      {in_root(1, "single.txt"), READ}, /* READ_DIR does not fit a file, and is left out */
      {in_root(2, "writable.txt"), VW_LANDLOCK_READ_FILE | WRITE},
  };
  restrict_to(rules, 3, 0, newest());
  CHECK_EQUAL(try_open(in_root(3, "open"), O_RDONLY | O_DIRECTORY), 0);
  CHECK_EQUAL(try_open(in_root(3, "open/deep/file.txt"), O_RDONLY), 0);
  CHECK_EQUAL(try_open(in_root(3, "open/deep/file.txt"), O_WRONLY), EACCES);
  CHECK_EQUAL(try_open(in_root(3, "open/new.txt"), O_WRONLY | O_CREAT), EACCES);
  CHECK_EQUAL(try_open(in_root(3, "single.txt"), O_RDONLY), 0);
  CHECK_EQUAL(try_open(in_root(3, "single.txt"), O_RDWR), EACCES);
  CHECK_EQUAL(try_open(in_root(3, "writable.txt"), O_RDWR | O_TRUNC), 0);
  CHECK_EQUAL(try_open(in_root(3, "closed.txt"), O_RDONLY), EACCES);
  CHECK_EQUAL(try_open(in_root(3, "open/out.txt"), O_RDONLY), EACCES); /* a link to closed.txt */
  CHECK_EQUAL(try_open(root, O_RDONLY | O_DIRECTORY), EACCES);
  CHECK_EQUAL(try_open("/etc/passwd", O_RDONLY), EACCES);
  CHECK_EQUAL(try_open("/proc/self/status", O_RDONLY), EACCES);
  CHECK(mkdir(in_root(3, "open/folder"), 0700) < 0 && errno == EACCES);
  CHECK(unlink(in_root(3, "open/deep/file.txt")) < 0 && errno == EACCES);
  CHECK(rename(in_root(3, "open/deep/file.txt"), in_root(4, "open/file.txt")) < 0 && errno == EACCES);
}

static void nothing_at_all(void *argument) {
  (void)argument;
  restrict_to(NULL, 0, 0, newest());
  CHECK_EQUAL(try_open(in_root(0, "open/deep/file.txt"), O_RDONLY), EACCES);
  CHECK_EQUAL(try_open("/", O_RDONLY | O_DIRECTORY), EACCES);
}

static void tighter_and_tighter(void *argument) {
  (void)argument;
  const vw_landlock_rule wide[] = {{root, READ}}, narrow[] = {{in_root(0, "open"), READ | WRITE}};
  restrict_to(wide, 1, 0, newest());
  CHECK_EQUAL(try_open(in_root(1, "closed.txt"), O_RDONLY), 0);
  restrict_to(narrow, 1, 0, newest());
  CHECK_EQUAL(try_open(in_root(1, "closed.txt"), O_RDONLY), EACCES);
  CHECK_EQUAL(try_open(in_root(1, "open/deep/file.txt"), O_RDONLY), 0);
  CHECK_EQUAL(try_open(in_root(1, "open/deep/file.txt"), O_WRONLY), EACCES); /* what is gone stays gone */
}

/* As an older kernel would: what its ABI does not know stays possible. */
static void as_abi(void *argument) {
  int abi = *(const int *)argument;
  const vw_landlock_rule rules[] = {
      {root, READ},
      {in_root(0, "writable.txt"), VW_LANDLOCK_TRUNCATE}, /* before ABI 3 nothing is left of this rule */
  };
  int tcp = socket(AF_INET, SOCK_STREAM, 0), local = socket(AF_UNIX, SOCK_STREAM, 0);
  int other = socket(AF_UNIX, SOCK_STREAM, 0), terminal = open("/dev/ptmx", O_RDWR | O_NOCTTY);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  struct sockaddr_un name = {.sun_family = AF_UNIX};
  int length = snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "vw-landlock-%d", getpid());
  socklen_t size = (socklen_t)(sizeof name.sun_family + 1 + (size_t)length);
  CHECK_EQUAL(bind(other, (struct sockaddr *)&name, size), 0);
  CHECK_EQUAL(listen(other, 1), 0);
  CHECK(tcp >= 0 && local >= 0);
  restrict_to(rules, 2, abi, abi);

  CHECK_EQUAL(try_open(in_root(1, "closed.txt"), O_WRONLY), EACCES);
  CHECK_EQUAL(truncate(in_root(1, "closed.txt"), 6) < 0 ? errno : 0, abi >= 3 ? EACCES : 0);
  CHECK_EQUAL(truncate(in_root(1, "writable.txt"), 0), 0);
  CHECK_EQUAL(bind(tcp, (struct sockaddr *)&address, sizeof address) < 0 ? errno : 0, abi >= 4 ? EACCES : 0);
  CHECK_EQUAL(connect(tcp, (struct sockaddr *)&address, sizeof address) < 0 ? errno : 0,
              abi >= 4 ? EACCES : ECONNREFUSED);
  CHECK_EQUAL(kill(getppid(), 0) < 0 ? errno : 0, abi >= 6 ? EPERM : 0);
  CHECK_EQUAL(connect(local, (struct sockaddr *)&name, size) < 0 ? errno : 0, abi >= 6 ? EPERM : 0);
  if (terminal >= 0) close(terminal);
}

static void faults(void *argument) {
  (void)argument;
  size_t failed;
  const vw_landlock_rule good = {in_root(0, "open"), READ};
  CHECK_EQUAL(vw_landlock_restrict(&good, 1, 0, &failed), -EPERM); /* no_new_privs is not set */
  CHECK_EQUAL(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  const struct {
    vw_landlock_rule rule;
    int rc;
  } bad[] = {
      {{in_root(1, "missing"), READ}, -ENOENT},
      {{in_root(2, "single.txt/below"), READ}, -ENOTDIR},
      {{"", READ}, -ENOENT},
      {{in_root(3, "open"), 0}, -EINVAL},
      {{in_root(3, "open"), READ | UINT64_C(1) << 16}, -EINVAL},
      {{in_root(3, "open"), UINT64_C(1) << 63}, -EINVAL},
      {{in_root(4, "single.txt"), VW_LANDLOCK_READ_DIR}, -ENOMSG},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    const vw_landlock_rule rules[] = {good, good, bad[i].rule, good};
    CHECK_EQUAL(vw_landlock_restrict(rules, 4, 0, &failed), bad[i].rc);
    CHECK_EQUAL(failed, 2);
    CHECK_EQUAL(try_open(in_root(5, "closed.txt"), O_RDONLY), 0); /* all rules or none */
  }
  CHECK_EQUAL(open("/dev/null", O_RDONLY), 3); /* nothing was left open */
}

static void *sleep_on(void *argument) {
  (void)argument;
  pause();
  return NULL;
}

static void with_threads(void *argument) {
  (void)argument;
  pthread_t thread;
  size_t failed;
  CHECK_EQUAL(pthread_create(&thread, NULL, sleep_on, NULL), 0);
  CHECK_EQUAL(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  CHECK_EQUAL(vw_landlock_restrict(NULL, 0, 0, &failed), -EBUSY);
}

static void test_rights(void) {
  CHECK_EQUAL(vw_landlock_rights(0), 0);
  CHECK_EQUAL(vw_landlock_rights(1), 0x1fff);
  CHECK_EQUAL(vw_landlock_rights(2), 0x3fff);
  CHECK_EQUAL(vw_landlock_rights(3), 0x7fff);
  CHECK_EQUAL(vw_landlock_rights(4), 0x7fff);
  CHECK_EQUAL(vw_landlock_rights(5), 0xffff);
  CHECK_EQUAL(vw_landlock_rights(99), 0xffff);
}

static void put_file(const char *path) {
  int fd = open(path, O_WRONLY | O_CREAT, 0600);
  CHECK(fd >= 0 && write(fd, "hello\n", 6) == 6);
  close(fd);
}

int main(void) {
  alarm(60);
  test_rights();
  if (vw_landlock_abi() == 0) {
    fprintf(stderr, "this kernel has no Landlock\n");
    return 77; /* skipped */
  }
  CHECK(mkdtemp(root));
  CHECK_EQUAL(mkdir(in_root(0, "open"), 0700), 0);
  CHECK_EQUAL(mkdir(in_root(0, "open/deep"), 0700), 0);
  put_file(in_root(0, "open/deep/file.txt"));
  put_file(in_root(0, "single.txt"));
  put_file(in_root(0, "writable.txt"));
  put_file(in_root(0, "closed.txt"));
  CHECK_EQUAL(symlink("../closed.txt", in_root(0, "open/out.txt")), 0);

  IN_CHILD(folders_and_files);
  IN_CHILD(nothing_at_all);
  IN_CHILD(tighter_and_tighter);
  for (int abi = 1; abi <= newest(); abi++) CHECK_EQUAL(in_child(as_abi, &abi), 0);
  IN_CHILD(faults);
  IN_CHILD(with_threads);

  const char *const names[] = {"open/out.txt", "open/deep/file.txt", "open/deep", "open",
                               "single.txt",   "writable.txt",       "closed.txt"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) CHECK_EQUAL(remove(in_root(0, names[i])), 0);
  CHECK_EQUAL(rmdir(root), 0);
  return 0;
}
