/* The core's hot functions, each called CALLS times in a function of its own, for count.py to count the
 * instructions of. It prints the rows' names, and checks that they do what they should.
 *
 * A new row is one line below: a name, and what is called. Setting up is main's. */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "check.h"
#include "codec.h"
#include "dlpack.h"
#include "encode.h"
#include "frame.h"
#include "handle.h"
#include "lease.h"
#include "slot.h"

enum { CALLS = 1000, BODY = 100 };
#define REGION (UINT64_C(1) << 30)

static vw_writer writer;
static vw_reader reader;
static vw_frame frame;
static uint8_t body[BODY], wire[4 + BODY] = {BODY};
static size_t taken;
static int fds[2];
static vw_handle plain = {.offset = 4096, .nbytes = 4096, .dtype = VW_F32, .ndim = 4, .shape = {1, 4, 16, 16}};
static vw_handle strided = {
    .offset = 4096, .nbytes = 4096, .dtype = VW_F32, .ndim = 4, .strided = true, .shape = {1, 4, 16, 16},
    .strides = {1024, 1, 64, 4},
};
static vw_lease lease;
static uint64_t offset, size;
static vw_slot slot;
static vw_slot_copy copy;

static vw_out out;
static vw_packet packet;
static vw_handle read_back;

/* A no-op job: {job_id 7, op_type "Identity", inputs {"tensor": plain}}. */
static void write_submit(void) {
  out.size = 0;
  size_t submit = vw_out_begin(&out, VW_JOB_SUBMIT);
  vw_out_nonzero(&out, 1, 7);
  vw_out_bytes(&out, 2, "Identity", 8);
  size_t input = vw_out_begin(&out, 3);
  vw_out_bytes(&out, 1, "tensor", 6);
  size_t value = vw_out_begin(&out, 2);
  vw_out_handle(&out, VW_TENSOR, &plain);
  vw_out_end(&out, value);
  vw_out_end(&out, input);
  vw_out_end(&out, submit);
}

static void drop(vw_dl_managed *managed) { free(managed); }
static void drop_versioned(vw_dl_versioned *managed) { free(managed); }

static vw_dl_managed *capsule;
static vw_dl_versioned *exchanged;

#define ROWS(ROW)                                                                                      \
  ROW(frame_encode, CHECK(!vw_writer_load(&writer, body, BODY, CALLS)))                                \
  ROW(frame_decode, CHECK(!vw_reader_feed(&reader, wire, sizeof wire, &taken));                        \
      CHECK(vw_reader_next(&reader, &frame) == 1))                                                     \
  ROW(frame_send_receive, CHECK(!vw_writer_load(&writer, body, BODY, CALLS));                          \
      CHECK(!vw_writer_flush(&writer, fds[0], VW_FOREVER));                                            \
      CHECK(vw_reader_recv(&reader, fds[1], VW_FOREVER, &frame) == 1))                                 \
  ROW(codec_write, write_submit())                                                                     \
  ROW(codec_read, CHECK(vw_packet_read(&packet, out.data, out.size) == 1);                             \
      CHECK(vw_handle_read(&read_back, packet.nodes[0].bytes) == 1))                                   \
  ROW(handle_check, CHECK(vw_handle_check(&plain, 0, REGION).problem == VW_OK))                        \
  ROW(handle_check_strided, CHECK(vw_handle_check(&strided, 0, REGION).problem == VW_OK))              \
  ROW(dlpack_capsule, CHECK(capsule = vw_dl_new(&plain, body, drop)); capsule->deleter(capsule))       \
  ROW(dlpack_exchange, CHECK(exchanged = vw_dl_new_versioned(&plain, body, drop_versioned));           \
      exchanged->deleter(exchanged))                                                                   \
  ROW(lease_allocate_free, CHECK(!vw_lease_allocate(&lease, 4096, &offset));                           \
      CHECK(!vw_lease_free(&lease, offset, &size)))                                                    \
  ROW(slot_job, vw_slot_begin(&slot, 7); vw_slot_end(&slot))                                           \
  ROW(slot_progress, vw_slot_progress(&slot, 1, 20))                                                   \
  ROW(slot_beat, vw_slot_beat(&slot))                                                                  \
  ROW(slot_snapshot, vw_slot_snapshot(&slot, &copy))

#define DEFINE(name, ...)                                      \
  __attribute__((noinline)) static void row_##name(void) {                \
    for (int call = 0; call < CALLS; call++) { __VA_ARGS__; }  \
  }
#define RUN(name, ...) row_##name(), puts(#name);

ROWS(DEFINE)

int main(void) {
  uint64_t kept;
  CHECK(!vw_writer_init(&writer) && !vw_reader_init(&reader, CALLS));
  CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
  CHECK(!vw_lease_init(&lease, 4096, REGION));
  for (int i = 0; i < 100; i++) { /* a lease with holes, as after a while of work */
    CHECK(!vw_lease_allocate(&lease, 8192, &kept));
    if (i % 2) CHECK(!vw_lease_free(&lease, kept, &size));
  }
  vw_slot_register(&slot, 1);
  ROWS(RUN)
  CHECK(slot.activity == 2 * CALLS && copy.job_id == 7 && frame.size == BODY && lease.live == 50);
  CHECK(packet.job_id == 7 && packet.count == 1 && read_back.nbytes == plain.nbytes && !out.failed);
  return 0;
}
