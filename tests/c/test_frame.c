/* Frames: the parser on streams cut everywhere, then the same over sockets. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "clock.h"
#include "frame.h"

#define LIMIT (16u << 20)

static uint64_t random_state = 88172645463325252u;

static uint32_t random_below(uint32_t bound) { /* xorshift64 (Marsaglia, 2003): the same every run */
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (uint32_t)(random_state >> 32) % bound;
}

static size_t put_frame(uint8_t *at, uint32_t size, uint8_t seed) {
  for (int i = 0; i < 4; i++) at[i] = (uint8_t)(size >> 8 * i);
  for (uint32_t i = 0; i < size; i++) at[4 + i] = (uint8_t)(seed + i * 7);
  return 4 + (size_t)size;
}

static void check_frame(const vw_frame *frame, uint32_t size, uint8_t seed) {
  CHECK_EQUAL(frame->size, size);
  for (uint32_t i = 0; i < size; i++) CHECK_EQUAL(frame->body[i], (uint8_t)(seed + i * 7));
}

static const uint32_t sizes[] = {1, 2, 3, 4, 5, 64, 100, 1};
enum { SIZES = sizeof sizes / sizeof *sizes };

/* Feeds a piece, and checks the frames that it completes against the list. */
static void feed(vw_reader *reader, const uint8_t *bytes, size_t size, size_t *seen) {
  for (;;) {
    vw_frame frame;
    int rc = vw_reader_next(reader, &frame);
    if (rc == 1) {
      check_frame(&frame, sizes[*seen % SIZES], (uint8_t)(*seen % SIZES));
      ++*seen;
      continue;
    }
    CHECK_EQUAL(rc, 0);
    if (size == 0) return;
    size_t taken;
    CHECK_EQUAL(vw_reader_feed(reader, bytes, size, &taken), 0);
    CHECK(taken > 0 && taken <= size);
    bytes += taken;
    size -= taken;
  }
}

static void test_cut_everywhere(void) {
  uint8_t stream[512];
  size_t total = 0;
  for (int i = 0; i < SIZES; i++) total += put_frame(stream + total, sizes[i], (uint8_t)i);
  for (size_t first = 0; first <= total; first++) {
    for (size_t second = first; second <= total; second++) {
      vw_reader reader;
      size_t seen = 0;
      CHECK_EQUAL(vw_reader_init(&reader, 100), 0); /* room for one frame of 100, and no more */
      feed(&reader, stream, first, &seen);
      feed(&reader, stream + first, second - first, &seen);
      feed(&reader, stream + second, total - second, &seen);
      CHECK_EQUAL(seen, SIZES);
      CHECK_EQUAL(reader.begin, reader.end);
      CHECK_EQUAL(reader.capacity, 104);
      vw_reader_free(&reader);
    }
  }
}

static void test_byte_by_byte_and_all_at_once(void) {
  enum { ROUNDS = 2000 };
  uint8_t *stream = malloc(ROUNDS * 512);
  size_t total = 0, seen = 0;
  for (int i = 0; i < ROUNDS * SIZES; i++)
    total += put_frame(stream + total, sizes[i % SIZES], (uint8_t)(i % SIZES));
  vw_reader reader;
  CHECK_EQUAL(vw_reader_init(&reader, LIMIT), 0);
  for (size_t i = 0; i < total; i++) feed(&reader, stream + i, 1, &seen);
  CHECK_EQUAL(seen, ROUNDS * SIZES);
  feed(&reader, stream, total, &seen);
  CHECK_EQUAL(seen, 2 * ROUNDS * SIZES);
  CHECK_EQUAL(reader.capacity, VW_READER_START);
  vw_reader_free(&reader);
  free(stream);
}

static void test_random_sizes_and_pieces(void) {
  enum { FRAMES = 300 };
  static uint32_t lengths[FRAMES];
  uint8_t *stream = malloc((size_t)FRAMES * 300004);
  size_t total = 0, at = 0, seen = 0;
  for (int i = 0; i < FRAMES; i++) {
    lengths[i] = 1 + random_below(random_below(8) ? 500 : 300000);
    total += put_frame(stream + total, lengths[i], (uint8_t)i);
  }
  vw_reader reader;
  CHECK_EQUAL(vw_reader_init(&reader, 300000), 0);
  while (seen < FRAMES) {
    vw_frame frame;
    if (vw_reader_next(&reader, &frame) == 1) {
      check_frame(&frame, lengths[seen], (uint8_t)seen);
      seen++;
    } else {
      size_t piece = 1 + random_below(random_below(4) ? 3000 : 100000), taken;
      if (piece > total - at) piece = total - at;
      CHECK_EQUAL(vw_reader_feed(&reader, stream + at, piece, &taken), 0);
      CHECK(taken > 0);
      at += taken;
      CHECK(reader.capacity <= 300004);
    }
  }
  CHECK_EQUAL(at, total);
  vw_reader_free(&reader);
  free(stream);
}

static void test_bad_lengths(void) {
  const uint32_t bad[] = {0, LIMIT + 1, 0x7fffffff, 0x80000000u, 0xffffffffu};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    vw_reader reader;
    vw_frame frame;
    uint8_t header[9];
    size_t taken;
    CHECK_EQUAL(vw_reader_init(&reader, LIMIT), 0);
    put_frame(header, 1, 0);
    for (int b = 0; b < 4; b++) header[5 + b] = (uint8_t)(bad[i] >> 8 * b);
    CHECK_EQUAL(vw_reader_feed(&reader, header, 9, &taken), 0);
    CHECK_EQUAL(vw_reader_next(&reader, &frame), 1); /* the good one before it comes out */
    CHECK_EQUAL(vw_reader_next(&reader, &frame), -EMSGSIZE);
    CHECK_EQUAL(vw_reader_next(&reader, &frame), -EMSGSIZE); /* and for ever */
    CHECK_EQUAL(reader.announced, bad[i]);
    CHECK_EQUAL(reader.capacity, VW_READER_START);
    vw_reader_free(&reader);
  }
  vw_reader reader;
  CHECK_EQUAL(vw_reader_init(&reader, 0), -EINVAL);
  CHECK_EQUAL(vw_reader_init(&reader, VW_FRAME_LIMIT + 1), -EINVAL);
}

static void test_memory_follows_what_arrived(void) {
  vw_reader reader;
  vw_frame frame;
  size_t taken, total = 4 + LIMIT;
  uint8_t *big = malloc(total);
  put_frame(big, LIMIT, 3);
  CHECK_EQUAL(vw_reader_init(&reader, LIMIT), 0);
  CHECK_EQUAL(vw_reader_feed(&reader, big, 1000, &taken), 0);
  CHECK_EQUAL(vw_reader_next(&reader, &frame), 0);
  CHECK_EQUAL(reader.capacity, VW_READER_START); /* 16 MiB announced, 996 bytes sent */
  for (size_t at = 1000; at < total; at += taken) {
    CHECK_EQUAL(vw_reader_feed(&reader, big + at, total - at < 5000 ? total - at : 5000, &taken), 0);
    CHECK(reader.capacity <= 2 * reader.end || reader.capacity == VW_READER_START);
    CHECK(reader.capacity <= total);
  }
  CHECK_EQUAL(vw_reader_feed(&reader, "x", 1, &taken), 0);
  CHECK_EQUAL(taken, 0); /* full with one whole frame: that has to go first */
  CHECK_EQUAL(vw_reader_next(&reader, &frame), 1);
  CHECK_EQUAL(memcmp(frame.body, big + 4, LIMIT), 0);
  CHECK_EQUAL(vw_reader_feed(&reader, big, 4, &taken), 0);
  CHECK_EQUAL(reader.capacity, VW_READER_START); /* given back */
  vw_reader_free(&reader);
  free(big);
}

static void pair(int type, int fds[2]) { CHECK_EQUAL(socketpair(AF_UNIX, type, 0, fds), 0); }

static void test_recv_and_ends(void) {
  int fds[2];
  uint8_t stream[256];
  vw_reader reader;
  vw_frame frame;
  for (int cut = 0; cut <= 14; cut++) { /* 14: clean; else the stream ends inside the second frame */
    pair(SOCK_STREAM, fds);
    CHECK_EQUAL(vw_reader_init(&reader, 100), 0);
    size_t size = put_frame(stream, 3, 1);
    size += put_frame(stream + size, 3, 2);
    size_t sent = cut == 14 ? size : (size_t)cut;
    CHECK_EQUAL(write(fds[1], stream, sent), sent);
    close(fds[1]);
    int rc = 1;
    for (size_t i = 0; i < sent / 7; i++) {
      rc = vw_reader_recv(&reader, fds[0], VW_FOREVER, &frame);
      CHECK_EQUAL(rc, 1);
      check_frame(&frame, 3, (uint8_t)(i + 1));
    }
    for (int again = 0; again < 2; again++) {
      rc = vw_reader_recv(&reader, fds[0], VW_FOREVER, &frame);
      CHECK_EQUAL(rc, sent % 7 == 0 ? 0 : -ENODATA);
      CHECK(reader.eof);
    }
    close(fds[0]);
    vw_reader_free(&reader);
  }
}

static void test_buffered_frames_need_no_socket(void) {
  int fds[2];
  uint8_t stream[64];
  vw_reader reader;
  vw_frame frame;
  pair(SOCK_STREAM, fds);
  CHECK_EQUAL(vw_reader_init(&reader, LIMIT), 0);
  size_t size = put_frame(stream, 3, 1);
  size += put_frame(stream + size, 5, 2);
  CHECK_EQUAL(write(fds[1], stream, size), size);
  CHECK_EQUAL(vw_reader_recv(&reader, fds[0], VW_FOREVER, &frame), 1);
  CHECK_EQUAL(vw_reader_recv(&reader, -1, VW_FOREVER, &frame), 1); /* any system call would be EBADF */
  check_frame(&frame, 5, 2);
  CHECK_EQUAL(vw_reader_recv(&reader, -1, VW_FOREVER, &frame), -EBADF);
  close(fds[0]);
  close(fds[1]);
  vw_reader_free(&reader);
}

static void test_deadlines_and_nonblocking(void) {
  int fds[2];
  vw_reader reader;
  vw_frame frame;
  uint8_t stream[64];
  size_t size = put_frame(stream, 3, 1);
  for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
    pair(SOCK_STREAM | (nonblocking ? SOCK_NONBLOCK : 0), fds);
    CHECK_EQUAL(vw_reader_init(&reader, LIMIT), 0);
    CHECK_EQUAL(vw_reader_recv(&reader, fds[0], VW_NOW, &frame), -ETIMEDOUT);
    uint64_t start = vw_monotonic_ns();
    CHECK_EQUAL(vw_reader_recv(&reader, fds[0], start + 20000000u, &frame), -ETIMEDOUT);
    CHECK(vw_monotonic_ns() - start >= 20000000u);
    CHECK_EQUAL(write(fds[1], stream, 5), 5); /* a part stays for later */
    CHECK_EQUAL(vw_reader_recv(&reader, fds[0], VW_NOW, &frame), -ETIMEDOUT);
    CHECK_EQUAL(write(fds[1], stream + 5, size - 5), size - 5);
    CHECK_EQUAL(vw_reader_recv(&reader, fds[0], nonblocking ? VW_FOREVER : VW_NOW, &frame), 1);
    check_frame(&frame, 3, 1);
    close(fds[0]);
    close(fds[1]);
    vw_reader_free(&reader);
  }
}

static void ignore(int signal) { (void)signal; }

static void *send_late(void *argument) { /* a signal, then a frame, to the thread that waits */
  const int *fds = argument;
  uint8_t stream[64];
  size_t size = put_frame(stream, 3, 1);
  usleep(30000);
  kill(getpid(), SIGUSR1);
  usleep(30000);
  CHECK_EQUAL(write(fds[1], stream, size), size);
  return NULL;
}

static void test_interrupted(void) {
  struct sigaction action = {.sa_handler = ignore}; /* no SA_RESTART */
  sigaction(SIGUSR1, &action, NULL);
  for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
    int fds[2], rc, interruptions = 0;
    vw_reader reader;
    vw_frame frame;
    pthread_t thread;
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    pair(SOCK_STREAM | (nonblocking ? SOCK_NONBLOCK : 0), fds);
    CHECK_EQUAL(vw_reader_init(&reader, LIMIT), 0);
    pthread_sigmask(SIG_BLOCK, &usr1, NULL); /* in the sender: the signal is for the receiver */
    CHECK_EQUAL(pthread_create(&thread, NULL, send_late, fds), 0);
    pthread_sigmask(SIG_UNBLOCK, &usr1, NULL);
    while ((rc = vw_reader_recv(&reader, fds[0], VW_FOREVER, &frame)) == -EINTR) interruptions++;
    CHECK_EQUAL(rc, 1);
    CHECK_EQUAL(interruptions, 1);
    pthread_join(thread, NULL);
    close(fds[0]);
    close(fds[1]);
    vw_reader_free(&reader);
  }
}

static void test_reset_is_an_end(void) {
  int fds[2];
  vw_reader reader;
  vw_frame frame;
  pair(SOCK_STREAM, fds);
  CHECK_EQUAL(vw_reader_init(&reader, LIMIT), 0);
  CHECK_EQUAL(write(fds[0], "unread", 6), 6);
  close(fds[1]); /* with bytes unread: the next recv here is ECONNRESET */
  CHECK_EQUAL(vw_reader_recv(&reader, fds[0], VW_FOREVER, &frame), 0);
  close(fds[0]);
  vw_reader_free(&reader);
}

/* A seqpacket socket keeps the bounds of each send, so that they can be counted. */
static void test_one_send_a_frame(void) {
  int fds[2];
  vw_writer writer;
  uint8_t *body = malloc(LIMIT), *got = malloc(1 << 20);
  for (uint32_t i = 0; i < LIMIT; i++) body[i] = (uint8_t)(i * 5);
  CHECK_EQUAL(vw_writer_init(&writer), 0);
  pair(SOCK_SEQPACKET, fds);
  const uint32_t lengths[] = {1, 64, 65535, 65536, 65537, 150000};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    uint32_t size = lengths[i], first = size < VW_WRITER_COPY ? size : VW_WRITER_COPY;
    CHECK_EQUAL(vw_writer_load(&writer, body, size, LIMIT), 0);
    CHECK_EQUAL(vw_writer_flush(&writer, fds[0], VW_NOW), 0);
    CHECK(!vw_writer_torn(&writer));
    CHECK_EQUAL(recv(fds[1], got, 1 << 20, 0), 4 + first);
    CHECK_EQUAL(got[0] | got[1] << 8 | got[2] << 16 | got[3] << 24, size);
    CHECK_EQUAL(memcmp(got + 4, body, first), 0);
    if (size > first) {
      CHECK_EQUAL(recv(fds[1], got, 1 << 20, 0), size - first);
      CHECK_EQUAL(memcmp(got, body + first, size - first), 0);
    }
    CHECK_EQUAL(recv(fds[1], got, 1, MSG_DONTWAIT), -1);
  }
  memset(vw_writer_body(&writer), 'z', 10); /* a codec writing in place */
  CHECK_EQUAL(vw_writer_load(&writer, vw_writer_body(&writer), 10, LIMIT), 0);
  CHECK_EQUAL(vw_writer_flush(&writer, fds[0], VW_NOW), 0);
  CHECK_EQUAL(recv(fds[1], got, 1 << 20, 0), 14);
  CHECK_EQUAL(memcmp(got, "\n\0\0\0zzzzzzzzzz", 14), 0);
  CHECK_EQUAL(vw_writer_load(&writer, vw_writer_body(&writer), VW_WRITER_COPY + 1, LIMIT), -EMSGSIZE);
  CHECK_EQUAL(vw_writer_load(&writer, body, 0, LIMIT), -EMSGSIZE);
  CHECK_EQUAL(vw_writer_load(&writer, body, 101, 100), -EMSGSIZE);
  close(fds[0]);
  close(fds[1]);
  vw_writer_free(&writer);
  free(body);
  free(got);
}

static void *receive_all(void *argument) {
  const int *fds = argument;
  vw_reader reader;
  vw_frame frame;
  CHECK_EQUAL(vw_reader_init(&reader, LIMIT), 0);
  const uint32_t expected[] = {LIMIT, 1, 1000000};
  for (int i = 0; i < 3; i++) {
    CHECK_EQUAL(vw_reader_recv(&reader, fds[1], VW_FOREVER, &frame), 1);
    CHECK_EQUAL(frame.size, expected[i]);
    for (uint32_t b = 0; b < frame.size; b += 997) CHECK_EQUAL(frame.body[b], (uint8_t)(b * 5));
  }
  vw_reader_free(&reader);
  return NULL;
}

static void test_large_frames_in_parts(void) {
  uint8_t *body = malloc(LIMIT);
  for (uint32_t i = 0; i < LIMIT; i++) body[i] = (uint8_t)(i * 5);
  for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
    int fds[2];
    vw_writer writer;
    pthread_t thread;
    pair(SOCK_STREAM | (nonblocking ? SOCK_NONBLOCK : 0), fds);
    CHECK_EQUAL(vw_writer_init(&writer), 0);
    CHECK_EQUAL(pthread_create(&thread, NULL, receive_all, fds), 0);
    const uint32_t lengths[] = {LIMIT, 1, 1000000};
    for (int i = 0; i < 3; i++) {
      CHECK_EQUAL(vw_writer_load(&writer, body, lengths[i], LIMIT), 0);
      CHECK_EQUAL(vw_writer_flush(&writer, fds[0], i == 2 ? vw_monotonic_ns() + 20000000000u : VW_FOREVER),
                  0);
    }
    pthread_join(thread, NULL);
    close(fds[0]);
    close(fds[1]);
    vw_writer_free(&writer);
  }
  free(body);
}

static void test_nobody_reads(void) {
  int fds[2];
  vw_writer writer;
  uint8_t *body = calloc(1, LIMIT);
  pair(SOCK_STREAM, fds);
  CHECK_EQUAL(vw_writer_init(&writer), 0);
  CHECK(!vw_writer_torn(&writer));
  CHECK_EQUAL(vw_writer_load(&writer, body, LIMIT, LIMIT), 0);
  CHECK_EQUAL(vw_writer_flush(&writer, fds[0], VW_NOW), -ETIMEDOUT);
  CHECK_EQUAL(vw_writer_flush(&writer, fds[0], vw_monotonic_ns() + 10000000u), -ETIMEDOUT);
  CHECK(vw_writer_torn(&writer));
  close(fds[1]);
  CHECK_EQUAL(vw_writer_flush(&writer, fds[0], VW_FOREVER), -EPIPE); /* and no SIGPIPE */
  close(fds[0]);
  vw_writer_free(&writer);
  free(body);
}

static void start_looking(vw_reader *reader, int pair[2]) {
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
  CHECK_EQUAL(vw_reader_init(reader, 100), 0);
  vw_reader_spin(reader);
  reader->spins = true; /* also where there is one CPU */
}

static void stop_looking(vw_reader *reader, const int pair[2]) {
  vw_reader_free(reader);
  close(pair[0]);
  close(pair[1]);
}

static void test_looking_gives_up_and_comes_back(void) {
  int pair[2];
  vw_reader reader;
  vw_frame frame;
  start_looking(&reader, pair);
  for (uint32_t round = 1; round < 20; round++) { /* in vain each time it looks */
    uint32_t rest = reader.rest;
    CHECK_EQUAL(vw_reader_recv(&reader, pair[0], vw_monotonic_ns() + 100000, &frame), -ETIMEDOUT);
    CHECK(reader.pause <= VW_SPIN_REST);
    CHECK(rest ? reader.rest < rest : reader.rest == reader.pause);
  }
  CHECK(reader.pause > 1);
  CHECK(send(pair[1], "\1\0\0\0x", 5, 0) == 5);
  CHECK_EQUAL(vw_reader_recv(&reader, pair[0], VW_FOREVER, &frame), 1);
  reader.rest = 0;
  CHECK(send(pair[1], "\1\0\0\0y", 5, 0) == 5);
  CHECK_EQUAL(vw_reader_recv(&reader, pair[0], VW_FOREVER, &frame), 1);
  CHECK(frame.size == 1 && *frame.body == 'y');
  CHECK_EQUAL(reader.pause, 0); /* it paid */
  stop_looking(&reader, pair);
}

/* Long waits say nothing against looking: a peer that was slow may be quick from now on. */
static void test_a_slow_peer_is_looked_for_again(void) {
  int pair[2];
  vw_reader reader;
  vw_frame frame;
  start_looking(&reader, pair);
  reader.rest = reader.pause = VW_SPIN_REST; /* as after many answers that came just after it had looked */
  CHECK_EQUAL(vw_reader_recv(&reader, pair[0], vw_monotonic_ns() + 3 * VW_SPIN_NS, &frame), -ETIMEDOUT);
  CHECK(reader.rest <= VW_SPIN_SLOW && reader.pause <= VW_SPIN_SLOW);
  stop_looking(&reader, pair);
}

static void test_who_has_lost_the_cpu_rests(void) {
  int pair[2];
  vw_reader reader;
  vw_frame frame;
  start_looking(&reader, pair);
  vw_spin_lost = vw_monotonic_ns() + UINT64_C(3600000000000);
  CHECK_EQUAL(vw_reader_recv(&reader, pair[0], vw_monotonic_ns() + 2 * VW_SPIN_NS, &frame), -ETIMEDOUT);
  CHECK_EQUAL(reader.pause, 0); /* it did not look: that would have been in vain */
  vw_spin_lost = 0;
  CHECK_EQUAL(vw_reader_recv(&reader, pair[0], vw_monotonic_ns() + 2 * VW_SPIN_NS, &frame), -ETIMEDOUT);
  CHECK(reader.pause > 0 || vw_spin_lost > vw_monotonic_ns()); /* it did, and may have lost it again */
  stop_looking(&reader, pair);
}

/* A peer that may only be where we are can answer only because we let it go first. */
static void test_turns_on_one_cpu_are_counted(void) {
  int pair[2];
  vw_reader reader;
  vw_frame frame;
  cpu_set_t allowed, one;
  CHECK(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; cpu++)
    if (CPU_ISSET(cpu, &allowed)) CPU_SET(cpu, &one);
  start_looking(&reader, pair);
  CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    char bytes[5];
    while (recv(pair[1], bytes, 5, 0) == 5) {
      uint64_t end = vw_monotonic_ns() + 2 * VW_SPIN_TURN_NS;
      while (vw_monotonic_ns() < end) continue;
      if (send(pair[1], bytes, 5, MSG_NOSIGNAL) != 5) break;
    }
    _exit(0);
  }
  uint32_t most = 0;
  for (int round = 0; round < 20000 && most < 8; round++) {
    uint64_t begun = vw_monotonic_ns();
    CHECK(send(pair[0], "\1\0\0\0x", 5, 0) == 5);
    vw_reader_sent(&reader, vw_monotonic_ns() - begun);
    CHECK_EQUAL(vw_reader_recv(&reader, pair[0], VW_FOREVER, &frame), 1);
    if (reader.turns > most) most = reader.turns;
  }
  CHECK_EQUAL(most, 8);
  CHECK(shutdown(pair[0], SHUT_RDWR) == 0);
  CHECK(waitpid(child, NULL, 0) == child);
  CHECK(sched_setaffinity(0, sizeof allowed, &allowed) == 0);
  vw_reader_sent(&reader, VW_SPIN_TURN_NS);
  CHECK_EQUAL(reader.turns, most); /* that was no turn */
  stop_looking(&reader, pair);
}

int main(void) {
  alarm(60);
  PASS(test_cut_everywhere);
  PASS(test_byte_by_byte_and_all_at_once);
  PASS(test_random_sizes_and_pieces);
  PASS(test_bad_lengths);
  PASS(test_memory_follows_what_arrived);
  PASS(test_recv_and_ends);
  PASS(test_buffered_frames_need_no_socket);
  PASS(test_deadlines_and_nonblocking);
  PASS(test_interrupted);
  PASS(test_reset_is_an_end);
  PASS(test_one_send_a_frame);
  PASS(test_large_frames_in_parts);
  PASS(test_nobody_reads);
  PASS(test_looking_gives_up_and_comes_back);
  PASS(test_a_slow_peer_is_looked_for_again);
  PASS(test_who_has_lost_the_cpu_rests);
  PASS(test_turns_on_one_cpu_are_counted);
  return 0;
}
