/* What a round trip of frames costs at best: the reference that `job.roundtrip` is measured against.
 *
 *     pingpong [--count N] [--size BYTES] [--pin none|same|apart] [--over socket|memory]
 *
 * Two processes on a Unix stream socket pair send each other frames of a 4-byte length and a body,
 * one send and (usually) one recv each, no codec, nothing else. Over memory, the frame lies in a page
 * that both have, and a word in it is the doorbell: looked at for 40 us, then waited for (futex(2)). Prints one JSON object with the
 * median and the 99th percentile of N round trips in ns, after a tenth of N to warm up. The reply is
 * compared with what was sent. Written apart from csrc/, so that it shares none of its mistakes. */
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what) {
  perror(what);
  _exit(1);
}

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void send_frame(int fd, const char *frame, size_t size) {
  for (size_t sent = 0; sent < size;) {
    ssize_t put = send(fd, frame + sent, size - sent, MSG_NOSIGNAL);
    if (put < 0 && errno != EINTR) fail("send");
    if (put > 0) sent += (size_t)put;
  }
}

/* Header and body come with one recv as a rule. 0 at the end of the stream. */
static size_t recv_frame(int fd, char *frame, size_t room) {
  size_t got = 0, wanted = 4;
  while (got < wanted) {
    ssize_t more = recv(fd, frame + got, room - got, 0);
    if (more == 0) return 0;
    if (more < 0 && errno != EINTR) fail("recv");
    if (more > 0) got += (size_t)more;
    if (got >= 4 && wanted == 4) {
      uint32_t length;
      memcpy(&length, frame, 4);
      wanted = 4 + (size_t)length;
      if (wanted > room) exit(1);
    }
  }
  return got;
}

/* One direction in shared memory: `rung` counts frames, `sleeps` says that somebody has to be woken. */
typedef struct {
  _Atomic uint32_t rung, sleeps;
  uint32_t taken; /* the reader's */
  char frame[4096 - 12];
} bell;

static void ring(bell *bell, const char *frame, size_t size) {
  memcpy(bell->frame, frame, size);
  atomic_fetch_add(&bell->rung, 1);
  if (atomic_load(&bell->sleeps)) syscall(SYS_futex, &bell->rung, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void answer_bell(bell *bell, char *frame, size_t size) {
  uint64_t end = now_ns() + 40000;
  while (atomic_load(&bell->rung) == bell->taken && now_ns() < end) {
  }
  while (atomic_load(&bell->rung) == bell->taken) {
    atomic_store(&bell->sleeps, 1);
    syscall(SYS_futex, &bell->rung, FUTEX_WAIT, bell->taken, NULL, NULL, 0);
    atomic_store(&bell->sleeps, 0);
  }
  bell->taken++;
  memcpy(frame, bell->frame, size);
}

static void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  if (sched_setaffinity(0, sizeof set, &set) < 0) fail("sched_setaffinity");
}

static int by_size(const void *left, const void *right) {
  uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
  return (a > b) - (a < b);
}

int main(int argc, char **argv) {
  size_t count = 20000, size = 64;
  const char *placement = "none", *medium = "socket";
  for (int i = 1; i < argc; i += 2) {
    const char *value = i + 1 < argc ? argv[i + 1] : "";
    if (!strcmp(argv[i], "--count")) count = strtoul(value, NULL, 10);
    else if (!strcmp(argv[i], "--size")) size = strtoul(value, NULL, 10);
    else if (!strcmp(argv[i], "--pin")) placement = value;
    else if (!strcmp(argv[i], "--over")) medium = value;
    else count = 0;
  }
  int same = !strcmp(placement, "same"), apart = !strcmp(placement, "apart");
  int memory = !strcmp(medium, "memory");
  if (memory && size > sizeof ((bell *)0)->frame - 4) size = 0;
  if (count == 0 || size == 0 || size > 16u << 20 || (!memory && strcmp(medium, "socket")) || (!same && !apart && strcmp(placement, "none"))) {
    fprintf(stderr, "usage: pingpong [--count N] [--size BYTES] [--pin none|same|apart] [--over socket|memory]\n");
    return 2;
  }
  /* The CPUs this process may use, which in a container are not always 0, 1, …. */
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) < 0) fail("sched_getaffinity");
  int cpus[2] = {-1, -1}, found = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE && found < 2; cpu++)
    if (CPU_ISSET(cpu, &allowed)) cpus[found++] = cpu;
  if (apart && found < 2) {
    fprintf(stderr, "pingpong: --pin apart needs two CPUs\n");
    return 2;
  }

  size_t room = 4 + size;
  char *sent = malloc(room), *got = malloc(room);
  uint64_t *times = malloc(count * sizeof *times);
  int pair[2];
  if (!sent || !got || !times || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0) fail("pingpong");
  uint32_t length = (uint32_t)size;
  memcpy(sent, &length, 4);
  for (size_t i = 0; i < size; i++) sent[4 + i] = (char)(i * 31);

  bell *bells = mmap(NULL, 2 * sizeof *bells, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (bells == MAP_FAILED) fail("mmap");
  memset(bells, 0, 2 * sizeof *bells);

  pid_t child = fork();
  if (child < 0) fail("fork");
  if (child == 0) {
    close(pair[0]);
    if (same || apart) pin(cpus[apart]);
    for (size_t i = 0; memory && i < count + count / 10; i++) {
      answer_bell(&bells[0], got, room);
      ring(&bells[1], got, room);
    }
    for (size_t n; !memory && (n = recv_frame(pair[1], got, room)) > 0;) send_frame(pair[1], got, n);
    _exit(0);
  }
  close(pair[1]);
  if (same || apart) pin(cpus[0]);
  for (size_t i = 0, warm = count / 10; i < warm + count; i++) {
    memset(got, 0, room);
    uint64_t start = now_ns();
    size_t n = room;
    if (memory) {
      ring(&bells[0], sent, room);
      answer_bell(&bells[1], got, room);
    } else {
      send_frame(pair[0], sent, room);
      n = recv_frame(pair[0], got, room);
    }
    uint64_t end = now_ns();
    if (n != room || memcmp(sent, got, room)) {
      fprintf(stderr, "pingpong: the reply differs\n");
      return 1;
    }
    if (i >= warm) times[i - warm] = end - start;
  }
  close(pair[0]);
  int status;
  if (waitpid(child, &status, 0) < 0 || status != 0) fail("child");
  qsort(times, count, sizeof *times, by_size);
  printf("{\"count\": %zu, \"size\": %zu, \"pin\": \"%s\", \"over\": \"%s\", \"median_ns\": %llu, \"p99_ns\": %llu}\n", count,
         size, placement, medium, (unsigned long long)times[count / 2],
         (unsigned long long)times[count - 1 - count / 100]);
  free(sent);
  free(got);
  free(times);
  return 0;
}
