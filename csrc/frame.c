#include "frame.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#include "clock.h"
#include "wait.h"

/* The only two places where a length is written or read as bytes. */
static uint32_t load_u32le(const uint8_t *at) {
  return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static void store_u32le(uint8_t *at, uint32_t value) {
  at[0] = (uint8_t)value;
  at[1] = (uint8_t)(value >> 8);
  at[2] = (uint8_t)(value >> 16);
  at[3] = (uint8_t)(value >> 24);
}

/* Waits until fd is ready for events: 0, -ETIMEDOUT or -EINTR. An error or hang-up counts as ready,
 * the following call tells which. */
static int wait_ready(int fd, short events, uint64_t deadline) {
  struct pollfd entry = {.fd = fd, .events = events};
  int timeout_ms = -1;
  if (deadline != VW_FOREVER) {
    uint64_t now = vw_monotonic_ns();
    if (now >= deadline) return -ETIMEDOUT;
    /* Rounded up: waking early would only poll again. A day at a time keeps it an int. */
    uint64_t ms = (deadline - now + 999999u) / 1000000u;
    timeout_ms = ms > 86400000u ? 86400000 : (int)ms;
  }
  int ready = vw_poll(&entry, 1, timeout_ms);
  if (ready < 0) return -errno;
  if (ready > 0 && (entry.revents & POLLNVAL)) return -EBADF;
  return 0; /* after a time-out the caller's next try finds nothing, and comes back to the clock */
}

int vw_reader_init(vw_reader *reader, uint32_t max_frame) {
  *reader = (vw_reader){.max_frame = max_frame};
  if (max_frame == 0 || max_frame > VW_FRAME_LIMIT) return -EINVAL;
  size_t most = (size_t)max_frame + VW_FRAME_HEADER;
  reader->capacity = most < VW_READER_START ? most : VW_READER_START;
  reader->data = malloc(reader->capacity);
  return reader->data ? 0 : -ENOMEM;
}

void vw_reader_free(vw_reader *reader) {
  free(reader->data);
  reader->data = NULL;
  reader->capacity = reader->begin = reader->end = 0;
}

static int resize(vw_reader *reader, size_t capacity) {
  uint8_t *data = realloc(reader->data, capacity);
  if (!data) return -ENOMEM;
  reader->data = data;
  reader->capacity = capacity;
  return 0;
}

/* Makes room behind `end`. A partial frame moves to the front; that happens once a fill at most, as
 * afterwards begin is 0. Only a buffer full of bytes that did arrive grows, and by doubling, so a
 * peer pays for half of what it makes us hold. A buffer that a large frame blew up is given back. */
static int make_room(vw_reader *reader) {
  size_t held = reader->end - reader->begin;
  if (held == 0) {
    reader->begin = reader->end = 0;
    if (reader->capacity > 4 * (size_t)VW_READER_START) (void)resize(reader, VW_READER_START);
  } else if (reader->begin > 0) {
    memmove(reader->data, reader->data + reader->begin, held);
    reader->begin = 0;
    reader->end = held;
  }
  if (reader->end < reader->capacity) return 0;
  size_t most = (size_t)reader->max_frame + VW_FRAME_HEADER;
  if (reader->capacity >= most) return -ENOBUFS; /* a whole frame waits to be taken */
  size_t capacity = reader->capacity > most / 2 ? most : reader->capacity * 2;
  return resize(reader, capacity);
}

int vw_reader_feed(vw_reader *reader, const void *bytes, size_t size, size_t *taken) {
  *taken = 0;
  int rc = make_room(reader);
  if (rc == -ENOBUFS) return 0;
  if (rc) return rc;
  size_t room = reader->capacity - reader->end;
  *taken = size < room ? size : room;
  if (*taken) memcpy(reader->data + reader->end, bytes, *taken);
  reader->end += *taken;
  return 0;
}

int vw_reader_next(vw_reader *reader, vw_frame *frame) {
  size_t held = reader->end - reader->begin;
  if (held < VW_FRAME_HEADER) return 0;
  const uint8_t *at = reader->data + reader->begin;
  uint32_t size = load_u32le(at);
  reader->announced = size;
  if (size == 0 || size > reader->max_frame) return -EMSGSIZE; /* begin stays: it will not get better */
  if (held - VW_FRAME_HEADER < size) return 0;
  frame->body = at + VW_FRAME_HEADER;
  frame->size = size;
  reader->begin += VW_FRAME_HEADER + (size_t)size;
  return 1;
}

long vw_reader_fill(vw_reader *reader, int fd, bool wait) {
  if (reader->eof) return 0;
  int rc = make_room(reader);
  if (rc) return rc;
  ssize_t got = recv(fd, reader->data + reader->end, reader->capacity - reader->end, wait ? 0 : MSG_DONTWAIT);
  if (got < 0) {
    if (errno == EWOULDBLOCK) return -EAGAIN;
    if (errno != ECONNRESET) return -errno;
    got = 0;
  }
  if (got == 0) reader->eof = true;
  reader->end += (size_t)got;
  return (long)got;
}

void vw_reader_sent(vw_reader *reader, uint64_t ns) {
  if (ns > VW_SPIN_TURN_NS) atomic_fetch_add_explicit(&reader->turns, 1, memory_order_relaxed);
}

void vw_reader_spin(vw_reader *reader) { reader->spins = sysconf(_SC_NPROCESSORS_ONLN) > 1; }

_Atomic uint64_t vw_spin_lost;

/* As vw_reader_fill: -EAGAIN when nothing came while we looked, or this was no time to look. */
static long look(vw_reader *reader, int fd) {
  if (reader->rest) {
    reader->rest--;
    return -EAGAIN;
  }
  uint64_t begun = vw_monotonic_ns(), took = 0;
  if (begun < atomic_load_explicit(&vw_spin_lost, memory_order_relaxed)) return -EAGAIN;
  long got = vw_reader_fill(reader, fd, false);
  if (got != -EAGAIN) {
    reader->pause = 0;
    return got;
  }
  bool first = true, turn = false;
  while (got == -EAGAIN && took < VW_SPIN_NS) {
    sched_yield();
    got = vw_reader_fill(reader, fd, false);
    took = vw_monotonic_ns() - begun;
    turn = first && took > VW_SPIN_TURN_NS;
    first = false;
  }
  if (took < VW_SPIN_NS) {
    reader->pause = 0;
    if (turn)
      atomic_fetch_add_explicit(&reader->turns, 1, memory_order_relaxed);
    else
      atomic_store_explicit(&reader->turns, 0, memory_order_relaxed);
  } else if (took < VW_SPIN_LOST_NS) {
    reader->pause = reader->pause ? reader->pause * 2 : 1;
    if (reader->pause > VW_SPIN_REST) reader->pause = VW_SPIN_REST;
    reader->rest = reader->pause;
  } else {
    atomic_store_explicit(&vw_spin_lost, begun + took + VW_SPIN_LOST_REST_NS, memory_order_relaxed);
  }
  return got;
}

/* A wait since `begun` has ended, one way or the other. */
static void weigh(vw_reader *reader, uint64_t begun) {
  if (vw_monotonic_ns() - begun > 2 * VW_SPIN_NS) reader->rest = reader->pause = VW_SPIN_SLOW;
}

int vw_reader_recv(vw_reader *reader, int fd, uint64_t deadline, vw_frame *frame) {
  bool looks = reader->spins && deadline != VW_NOW; /* once a wait */
  for (;;) {
    int rc = vw_reader_next(reader, frame);
    if (rc != 0) return rc;
    if (reader->eof) return reader->begin == reader->end ? 0 : -ENODATA;
    long got = looks ? look(reader, fd) : -EAGAIN;
    looks = false;
    uint64_t begun = reader->rest > VW_SPIN_SLOW ? vw_monotonic_ns() : 0;
    /* Without a deadline a blocking socket waits inside recv: one system call. With one, or on
     * a non-blocking socket, what is there already still costs one. */
    if (got == -EAGAIN) got = vw_reader_fill(reader, fd, deadline == VW_FOREVER);
    rc = 0;
    if (got == -EAGAIN) rc = deadline == VW_NOW ? -ETIMEDOUT : wait_ready(fd, POLLIN, deadline);
    if (begun) weigh(reader, begun);
    if (rc) return rc;
    if (got < 0 && got != -EAGAIN) return (int)got;
  }
}

int vw_writer_init(vw_writer *writer) {
  *writer = (vw_writer){.room = malloc(VW_WRITER_ROOM)};
  return writer->room ? 0 : -ENOMEM;
}

void vw_writer_free(vw_writer *writer) {
  free(writer->room);
  *writer = (vw_writer){0};
}

uint8_t *vw_writer_body(vw_writer *writer) { return writer->room + VW_FRAME_HEADER; }

int vw_writer_load(vw_writer *writer, const void *body, size_t size, uint32_t max_frame) {
  bool in_place = body == vw_writer_body(writer);
  if (size == 0 || size > max_frame || (in_place && size > VW_WRITER_COPY)) return -EMSGSIZE;
  size_t copied = size < VW_WRITER_COPY ? size : VW_WRITER_COPY;
  store_u32le(writer->room, (uint32_t)size);
  if (!in_place) memcpy(vw_writer_body(writer), body, copied);
  writer->body = body;
  writer->size = size;
  writer->copied = VW_FRAME_HEADER + copied;
  writer->sent = 0;
  return 0;
}

int vw_writer_flush(vw_writer *writer, int fd, uint64_t deadline) {
  size_t total = VW_FRAME_HEADER + writer->size;
  while (writer->sent < total) {
    const uint8_t *from;
    size_t size;
    if (writer->sent < writer->copied) {
      from = writer->room + writer->sent;
      size = writer->copied - writer->sent;
    } else {
      from = writer->body + (writer->sent - VW_FRAME_HEADER);
      size = total - writer->sent;
    }
    /* NOSIGNAL: a peer that died must be an error here, not a SIGPIPE for the process. */
    ssize_t put = send(fd, from, size, MSG_NOSIGNAL | (deadline == VW_FOREVER ? 0 : MSG_DONTWAIT));
    if (put >= 0) {
      writer->sent += (size_t)put;
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (deadline == VW_NOW) return -ETIMEDOUT;
      int rc = wait_ready(fd, POLLOUT, deadline);
      if (rc) return rc;
    } else {
      return -errno;
    }
  }
  return 0;
}

bool vw_writer_torn(const vw_writer *writer) {
  return writer->sent > 0 && writer->sent < VW_FRAME_HEADER + writer->size;
}

int vw_writer_lead(vw_writer *writer, int fd, int descriptor) {
  union {
    struct cmsghdr header;
    char room[CMSG_SPACE(sizeof(int))];
  } control = {0};
  struct iovec bytes = {.iov_base = writer->room, .iov_len = VW_FRAME_HEADER};
  struct msghdr message = {
      .msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  control.header.cmsg_level = SOL_SOCKET;
  control.header.cmsg_type = SCM_RIGHTS;
  control.header.cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(&control.header), &descriptor, sizeof descriptor);
  ssize_t put = sendmsg(fd, &message, MSG_NOSIGNAL);
  if (put < 0) return -errno;
  writer->sent += (size_t)put;
  return 0;
}

int vw_peek_descriptor(int fd) {
  union {
    struct cmsghdr header;
    char room[CMSG_SPACE(sizeof(int))];
  } control = {0};
  char byte;
  struct iovec bytes = {.iov_base = &byte, .iov_len = 1};
  /* Not sizeof control: padding would leave room for a second one. */
  struct msghdr message = {
      .msg_iov = &bytes, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = CMSG_LEN(sizeof(int))};
  ssize_t got = recvmsg(fd, &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK) return -errno;
  const struct cmsghdr *header = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
  if (!header || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
      header->cmsg_len != CMSG_LEN(sizeof(int)))
    return -ENOMSG;
  int descriptor;
  memcpy(&descriptor, CMSG_DATA(header), sizeof descriptor);
  return descriptor;
}
