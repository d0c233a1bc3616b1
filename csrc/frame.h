/* Framing: a 4-byte little-endian length, then that many bytes of body.
 *
 *     0        4                    4 + length
 *     ├────────┼────────────────────┤ next frame …
 *     │ length │ body               │
 *
 * Length 0 and a length above the limit are errors, and stay errors: no later byte can be trusted.
 *
 * Parsing and I/O are apart. vw_reader_feed/vw_reader_next and vw_writer_load know no socket;
 * vw_reader_fill/vw_reader_recv and vw_writer_flush add recv(2), send(2) and poll(2), and nothing
 * else, so that a worker can use them behind its filter. Both ends of the wire run this code, the
 * supervisor's against hostile workers. vw_writer_lead and vw_peek_descriptor pass one descriptor
 * along, once, while the worker is still trusted. Needs no GIL. */
#ifndef VW_FRAME_H
#define VW_FRAME_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VW_FRAME_HEADER 4u
#define VW_FRAME_LIMIT 0x40000000u  /* 1 GiB: the largest limit that may be configured */
#define VW_READER_START (64u << 10) /* 64 KiB: one recv takes every frame of a usual burst */
#define VW_WRITER_COPY (64u << 10)  /* bodies up to 64 KiB leave in one send, header and all */
#define VW_WRITER_ROOM (VW_FRAME_HEADER + VW_WRITER_COPY)

/* Deadlines are CLOCK_MONOTONIC ns. VW_NOW never waits; VW_FOREVER lets the kernel do the waiting. */
#define VW_NOW ((uint64_t)0)
#define VW_FOREVER UINT64_MAX

typedef struct {
  const uint8_t *body; /* inside the reader; valid until the next feed, fill or recv */
  uint32_t size;
} vw_frame;

typedef struct {
  uint8_t *data;      /* malloc'ed; grows as bytes arrive, never on an announcement alone */
  size_t capacity;    /* at most max_frame + 4 */
  size_t begin;       /* first byte not yet given out */
  size_t end;         /* behind the last byte received */
  uint32_t max_frame; /* bytes of body */
  uint32_t announced; /* length field of the frame last looked at, for messages */
  bool eof;           /* the peer has closed; what is buffered can still be taken */
  bool spins;         /* vw_reader_recv looks some times before it waits; see vw_reader_spin */
  uint32_t rest;      /* waits until it looks again */
  uint32_t pause;     /* how long the last rest was, in waits */
  _Atomic uint32_t turns; /* of somebody else on this CPU, while we looked or sent, since a look found a frame without */
} vw_reader;

typedef struct {
  uint8_t *room;       /* malloc'ed: header, then up to 64 KiB of body */
  const uint8_t *body; /* the caller's, who keeps it until vw_writer_flush gave 0 */
  size_t size;         /* bytes of body */
  size_t copied;       /* bytes of header and body that are in room */
  size_t sent;         /* bytes of header and body that have left */
} vw_writer;

/* 0, -EINVAL (max_frame is 0 or above VW_FRAME_LIMIT) or -ENOMEM. */
int vw_reader_init(vw_reader *reader, uint32_t max_frame);
void vw_reader_free(vw_reader *reader);

/* Copies in as much as has room, and says in *taken how much that was: at least one byte once
 * vw_reader_next has given 0. Returns 0, or -ENOMEM (nothing taken). */
int vw_reader_feed(vw_reader *reader, const void *bytes, size_t size, size_t *taken);

/* 1: *frame is the next one. 0: more bytes are needed. -EMSGSIZE: its length is 0 or too large. */
int vw_reader_next(vw_reader *reader, vw_frame *frame);

/* One recv of as much as there is room for. Returns bytes received; 0 at the end of the stream
 * (reader->eof); -EAGAIN, -EINTR, -ENOMEM or what recv gave. A reset counts as the end: the peer
 * closed without reading all that was sent to it. */
long vw_reader_fill(vw_reader *reader, int fd, bool wait);

/* The next frame, by as few system calls as will do. 1: *frame. 0: clean end of the stream.
 * -ENODATA: it ended inside a frame. -EMSGSIZE: bad length. -ETIMEDOUT, -EINTR (call again), … */
int vw_reader_recv(vw_reader *reader, int fd, uint64_t deadline, vw_frame *frame);

/* Lets vw_reader_recv look for VW_SPIN_NS before it waits: about what a job costs more when both sides are woken
 * for it, on CPUs that went to sleep, so that a peer that answers soon is heard without that. A peer on the same CPU
 * can't answer while we look, so we let it go first (sched_yield(2)): what we have just sent has woken it. After
 * looking in vain it rests for 1, 2, 4, … VW_SPIN_REST waits, and starts anew when it was right once. A wait of twice
 * as long shows that the peer was only slow, which it need not stay: then at most VW_SPIN_SLOW waits of rest are left.
 * Where it has lost the CPU for VW_SPIN_LOST_NS, others want that, and would get it again each time that we yield,
 * while who sleeps goes first when it is woken: no reader of this process looks for VW_SPIN_LOST_REST_NS. On a
 * machine with one CPU it never looks. */
#define VW_SPIN_NS UINT64_C(100000)
#define VW_SPIN_REST 32u
#define VW_SPIN_SLOW 8u
#define VW_SPIN_LOST_NS UINT64_C(1000000)
#define VW_SPIN_LOST_REST_NS UINT64_C(50000000)
#define VW_SPIN_TURN_NS UINT64_C(4000) /* more than a yield or a send takes of which nobody makes use */
extern _Atomic uint64_t vw_spin_lost; /* until when, CLOCK_MONOTONIC */
void vw_reader_spin(vw_reader *reader);

/* A send on this reader's socket took so long: with more than VW_SPIN_TURN_NS somebody else had a turn meanwhile. By the
 * thread that sends, which may be another than the one that receives. */
void vw_reader_sent(vw_reader *reader, uint64_t ns);

int vw_writer_init(vw_writer *writer);
void vw_writer_free(vw_writer *writer);

/* Where a codec may write a body of up to VW_WRITER_COPY bytes itself, to save the copy:
 * loading that pointer copies nothing. */
uint8_t *vw_writer_body(vw_writer *writer);

/* Takes up a frame of 1 to max_frame bytes: 0, or -EMSGSIZE. */
int vw_writer_load(vw_writer *writer, const void *body, size_t size, uint32_t max_frame);

/* Sends what is left of the loaded frame. 0: all has left. -ETIMEDOUT, -EINTR: call again to go on.
 * -EPIPE, -ECONNRESET: nobody reads. Giving up with vw_writer_torn() leaves half a frame behind. */
int vw_writer_flush(vw_writer *writer, int fd, uint64_t deadline);
bool vw_writer_torn(const vw_writer *writer);

/* Sends the first bytes of the loaded frame with a descriptor beside them (unix(7), SCM_RIGHTS);
 * vw_writer_flush sends the rest. 0, -EINTR (call again), or what sendmsg gave. */
int vw_writer_lead(vw_writer *writer, int fd, int descriptor);

/* The descriptor beside the next byte to be received, which stays there: a new one of ours,
 * close-on-exec. -ENOMSG: there is none, or no byte yet. Never waits, and never takes a second. */
int vw_peek_descriptor(int fd);

#endif
