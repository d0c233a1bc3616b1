/* The heartbeat thread: it beats, it ends the process when the peer hangs up, it stops. */
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "child.h"
#include "clock.h"
#include "heartbeat.h"

#define MS 1000000u

static vw_slot *shared; /* with the children */

static uint64_t last_beat(void) {
  vw_slot_copy copy;
  vw_slot_snapshot(shared, &copy);
  return copy.heartbeat;
}

static void test_beats_while_the_main_thread_is_busy(void) {
  vw_heartbeat heartbeat = {0};
  uint64_t start = vw_monotonic_ns(), seen = 0, beats = 0;
  CHECK_EQUAL(vw_heartbeat_start(&heartbeat, shared, -1, 5), 0);
  CHECK(last_beat() >= start); /* at once */
  while (vw_monotonic_ns() - start < 300 * MS) {
    uint64_t beat = last_beat();
    CHECK(beat >= seen);
    beats += beat != seen;
    seen = beat;
  }
  CHECK(beats >= 20 && beats <= 62); /* 60 on a quiet machine, never more */
  vw_heartbeat_stop(&heartbeat);
  seen = last_beat();
  usleep(20000);
  CHECK_EQUAL(last_beat(), seen);
}

static void test_start_and_stop(void) {
  vw_heartbeat heartbeat = {0};
  CHECK_EQUAL(vw_heartbeat_start(&heartbeat, shared, -1, 0), -EINVAL);
  CHECK_EQUAL(vw_heartbeat_start(&heartbeat, shared, -1, 3600001), -EINVAL);
  vw_heartbeat_stop(&heartbeat);
  for (int i = 0; i < 20; i++) {
    CHECK_EQUAL(vw_heartbeat_start(&heartbeat, shared, -1, 3600000), 0);
    CHECK_EQUAL(vw_heartbeat_start(&heartbeat, shared, -1, 1), -EALREADY);
    uint64_t start = vw_monotonic_ns();
    vw_heartbeat_stop(&heartbeat); /* does not wait for the hour to end */
    CHECK(vw_monotonic_ns() - start < 2000 * MS);
    vw_heartbeat_stop(&heartbeat);
  }
  int fd = open("/dev/null", O_RDONLY);
  CHECK(fd >= 0 && fd < 10); /* no descriptor was left open */
  close(fd);
}

/* How a child's control socket ends under it. */
enum { PEER_CLOSES, PEER_SHUTS_DOWN, PEER_DIES, NODE_CLOSES_IT };

static int fds[2];

static void stuck_worker(void *argument) {
  vw_heartbeat heartbeat = {0};
  close(fds[1]);
  CHECK_EQUAL(vw_heartbeat_start(&heartbeat, shared, fds[0], 10), 0);
  vw_slot_set_status(shared, VW_BUSY);
  if (*(int *)argument == NODE_CLOSES_IT) close(fds[0]);
  for (volatile uint64_t i = 0;; i++) { /* a node that never comes back */
  }
}

static void close_later(int how) {
  vw_slot_copy copy;
  do {
    usleep(1000);
    vw_slot_snapshot(shared, &copy);
  } while (copy.status != VW_BUSY);
  /* Bytes for the worker, and none of them read, are no hang-up. */
  CHECK_EQUAL(send(fds[1], "job", 3, MSG_NOSIGNAL), 3);
  uint64_t seen = last_beat();
  while (last_beat() < seen + 30 * MS) usleep(1000);
  if (how == PEER_CLOSES) close(fds[1]);
  if (how == PEER_SHUTS_DOWN) CHECK_EQUAL(shutdown(fds[1], SHUT_WR), 0);
  if (how == PEER_SHUTS_DOWN) pause(); /* and stay */
  if (how == PEER_DIES) kill(getpid(), SIGKILL);
  _exit(0);
}

static void test_ends_the_process_at_hang_up(void) {
  for (int how = PEER_CLOSES; how <= NODE_CLOSES_IT; how++) {
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    vw_slot_clear(shared);
    pid_t peer = 0;
    if (how != NODE_CLOSES_IT) {
      peer = fork();
      CHECK(peer >= 0);
      if (peer == 0) {
        close(fds[0]);
        close_later(how);
      }
      close(fds[1]);
    }
    CHECK_EQUAL(in_child(stuck_worker, &how), 0);
    close(fds[0]);
    if (peer == 0) close(fds[1]);
    if (peer) kill(peer, SIGKILL);
    if (peer) CHECK_EQUAL(waitpid(peer, NULL, 0), peer);
  }
}

static void beat_for_ever(void *argument) {
  (void)argument;
  vw_heartbeat heartbeat = {0};
  CHECK_EQUAL(vw_heartbeat_start(&heartbeat, shared, -1, 5), 0);
  vw_slot_set_status(shared, VW_BUSY);
  for (;;) pause();
}

static void test_a_stopped_process_does_not_beat(void) {
  vw_slot_clear(shared);
  fflush(NULL);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) beat_for_ever(NULL);
  vw_slot_copy copy;
  do {
    usleep(1000);
    vw_slot_snapshot(shared, &copy);
  } while (copy.status != VW_BUSY);
  int status;
  kill(child, SIGSTOP);
  CHECK_EQUAL(waitpid(child, &status, WUNTRACED), child);
  CHECK(WIFSTOPPED(status));
  uint64_t seen = last_beat();
  usleep(60000);
  CHECK_EQUAL(last_beat(), seen);
  kill(child, SIGCONT);
  for (int i = 0; last_beat() == seen && i < 2000; i++) usleep(1000);
  CHECK(last_beat() > seen);
  kill(child, SIGKILL);
  CHECK_EQUAL(waitpid(child, &status, 0), child);
}

/* The line of /proc/self/task/TID/FILE that begins with `key`. */
static void thread_line(int tid, const char *file, const char *key, char *line, int size) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/task/%d/%s", tid, file);
  FILE *stream = fopen(path, "r");
  CHECK(stream);
  while (fgets(line, size, stream) && strncmp(line, key, strlen(key))) {
  }
  fclose(stream);
}

static void name_and_signals(void *argument) {
  (void)argument;
  vw_heartbeat heartbeat = {0};
  char line[256];
  CHECK_EQUAL(vw_heartbeat_start(&heartbeat, shared, -1, 5), 0);
  usleep(50000);
  for (int tid = getpid() + 1; tid < getpid() + 1000; tid++) {
    snprintf(line, sizeof line, "/proc/self/task/%d", tid);
    if (access(line, F_OK) < 0) continue;
    thread_line(tid, "comm", "", line, sizeof line);
    if (strcmp(line, "vw-heartbeat\n")) continue; /* the sanitizer's own thread */
    thread_line(tid, "status", "SigBlk:", line, sizeof line);
    /* Bits of 1 to 31 but KILL and STOP; the C library keeps 32 and 33 for itself. */
    CHECK_EQUAL(strtoull(line + 7, NULL, 16) & 0x7fffffff,
                0x7fffffff & ~(1u << (SIGKILL - 1) | 1u << (SIGSTOP - 1)));
    sigset_t mine;
    pthread_sigmask(SIG_SETMASK, NULL, &mine);
    CHECK_EQUAL(sigismember(&mine, SIGTERM), 0); /* the caller's mask is as it was */
    _exit(0);
  }
  CHECK(!"there is a thread named vw-heartbeat");
}

#ifndef __SANITIZE_THREAD__ /* which allows no fork beside threads */
static void stop_in_a_fork(void *heartbeat) {
  vw_heartbeat_stop(heartbeat); /* there is no thread to wait for */
}

static void fork_while_it_runs(void *argument) {
  (void)argument;
  vw_heartbeat heartbeat = {0};
  CHECK_EQUAL(vw_heartbeat_start(&heartbeat, shared, -1, 5), 0);
  CHECK_EQUAL(in_child(stop_in_a_fork, &heartbeat), 0);
  uint64_t seen = last_beat();
  while (last_beat() == seen) usleep(1000); /* ours runs on */
  vw_heartbeat_stop(&heartbeat);
}
#endif

int main(void) {
  alarm(60);
  shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(shared != MAP_FAILED);
  PASS(test_ends_the_process_at_hang_up); /* forks first, threads after: the thread sanitizer wants it so */
  PASS(test_a_stopped_process_does_not_beat);
  IN_CHILD(name_and_signals);
#ifndef __SANITIZE_THREAD__
  IN_CHILD(fork_while_it_runs);
#endif
  PASS(test_beats_while_the_main_thread_is_busy);
  PASS(test_start_and_stop);
  munmap(shared, 4096);
  return 0;
}
