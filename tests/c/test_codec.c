/* Reading the hot messages: what is taken, what is left to the runtime, and no byte beyond the end.
 *
 * Every body is copied into memory of exactly its size, so that the address sanitizer sees each step past it. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "codec.h"

static vw_packet packet;

static int read_body(const void *bytes, size_t size) {
  uint8_t *exact = malloc(size ? size : 1);
  CHECK(exact);
  if (size) memcpy(exact, bytes, size);
  int rc = vw_packet_read(&packet, exact, size);
  free(exact);
  return rc;
}

#define READ(text) read_body(text, sizeof(text) - 1)

/* seq 1, JobSubmit { 7, "Op", inputs {"t": tensor at 64 of 24 bytes, f32 [2, 3]}, params {"n": 5, "l": [1, 2]} } */
static const char submit[] =
    "\x08\x01\x22\x33\x08\x07\x12\x02Op"
    "\x1a\x11\x0a\x01t\x12\x0c\x0a\x0a\x08\x40\x10\x18\x18\x0c\x22\x02\x02\x03"
    "\x22\x07\x0a\x01n\x12\x02\x28\x0a"
    "\x22\x0f\x0a\x01l\x12\x0a\x52\x08\x0a\x02\x28\x02\x0a\x02\x28\x04";

static void test_submit(void) {
  CHECK_EQUAL(vw_packet_read(&packet, submit, sizeof submit - 1), 1);
  CHECK_EQUAL(packet.body, VW_JOB_SUBMIT);
  CHECK_EQUAL(packet.job_id, 7);
  CHECK(packet.text.size == 2 && !memcmp(packet.text.at, "Op", 2));
  CHECK_EQUAL(packet.count, 5);
  CHECK_EQUAL(packet.nodes[0].kind, VW_TENSOR);
  CHECK_EQUAL(packet.nodes[0].part, VW_FIRST);
  vw_handle handle;
  CHECK_EQUAL(vw_handle_read(&handle, packet.nodes[0].bytes), 1);
  CHECK_EQUAL(handle.offset, 64);
  CHECK_EQUAL(handle.nbytes, 24);
  CHECK_EQUAL(handle.dtype, VW_F32);
  CHECK(handle.ndim == 2 && handle.shape[0] == 2 && handle.shape[1] == 3 && !handle.strided);
  CHECK_EQUAL(packet.nodes[1].kind, VW_INT64);
  CHECK_EQUAL(packet.nodes[1].part, VW_SECOND);
  CHECK_EQUAL(packet.nodes[1].is.integer, 5);
  CHECK_EQUAL(packet.nodes[2].kind, VW_LIST);
  CHECK_EQUAL(packet.nodes[2].end, 5);
  CHECK_EQUAL(packet.nodes[4].is.integer, 2);
}

static void test_cut_anywhere(void) {
  for (size_t size = 0; size < sizeof submit - 1; size++) CHECK_EQUAL(read_body(submit, size), 0);
  CHECK_EQUAL(read_body(submit, sizeof submit - 1), 1);
}

static void test_any_byte_changed(void) {
  /* Taken or not, nothing is read past the end; the sanitizers look. */
  char body[sizeof submit - 1];
  for (size_t at = 0; at < sizeof body; at++) {
    for (unsigned value = 0; value < 256; value++) {
      memcpy(body, submit, sizeof body);
      body[at] = (char)value;
      (void)read_body(body, sizeof body);
    }
  }
}

static void test_other_bodies_are_left(void) {
  CHECK_EQUAL(READ(""), 0);
  CHECK_EQUAL(READ("\x08\x01"), 0);                         /* none */
  CHECK_EQUAL(READ("\x4a\x02\x08\x03"), 0);                 /* Ping */
  CHECK_EQUAL(READ("\x42\x00\x4a\x02\x08\x03"), 0);         /* two: the last one counts */
  CHECK_EQUAL(READ("\x42\x00\x42\x00"), 0);                 /* one in two pieces */
  CHECK_EQUAL(READ("\x32\x04\x1a\x02\x0a\x00"), 0);         /* JobResult with an Error */
  CHECK_EQUAL(READ("\x40\x00"), 0);                         /* Release as a number */
  CHECK_EQUAL(READ("\x42\x00"), 1);
  CHECK_EQUAL(packet.count, 0);
}

static void test_unknown_fields_are_skipped(void) {
  CHECK_EQUAL(READ("\xa0\x06\x07" "\x2a\x0d\x08\x05\x10\x01\x18\x02\x79" "01234567" "\x9a\x3f\x00"), 0); /* too short */
  CHECK_EQUAL(READ("\xa0\x06\x07" "\x2a\x12\x08\x05\x10\x01\x18\x02\x79" "01234567" "\x9a\x3f\x00"), 1);
  CHECK(packet.job_id == 5 && packet.step == 1 && packet.total == 2);
  CHECK_EQUAL(READ("\x2a\x04\xa3\x06\xa4\x06"), 0); /* a group */
}

static void test_last_scalar_wins(void) {
  CHECK_EQUAL(READ("\x2a\x06\x08\x05\x08\x06\x10\x01"), 1);
  CHECK_EQUAL(packet.job_id, 6);
}

static void test_varints(void) {
  CHECK_EQUAL(READ("\x2a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), 1);
  CHECK(packet.job_id == UINT64_MAX);
  CHECK_EQUAL(READ("\x2a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"), 0);     /* 65 bits */
  CHECK_EQUAL(READ("\x2a\x0c\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00"), 0); /* 11 bytes */
  CHECK_EQUAL(READ("\x2a\x03\x08\x85\x00"), 1);                                     /* longer than need be */
  CHECK_EQUAL(packet.job_id, 5);
  CHECK_EQUAL(READ("\x2a\x82\x80\x80\x80\x80\x00\x08\x05"), 0); /* a length in six bytes */
  CHECK_EQUAL(READ("\x2a\xff\xff\xff\xff\x0f\x08\x05"), 0);     /* a length past the end, and past 2^31 */
  CHECK_EQUAL(READ("\x2a\x02\x00\x05"), 0);                     /* field number 0 */
}

static void test_packed_or_not(void) {
  CHECK_EQUAL(READ("\x42\x09\x0a\x02\x01\x02\x08\x03\x12\x01\x09"), 1);
  CHECK_EQUAL(packet.count, 4);
  CHECK_EQUAL(packet.nodes[2].is.natural, 3);
  CHECK_EQUAL(packet.nodes[3].part, VW_SECOND);
}

static void test_text_is_utf8(void) {
  CHECK_EQUAL(READ("\x2a\x05\x22\x03\xe9\x8f\xa1"), 1);
  CHECK_EQUAL(READ("\x2a\x05\x22\x03\xed\xa0\x80"), 0); /* a surrogate */
  const char *good[] = {"", "plain ascii text", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
                        "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf", "12345678\xc3\xa9" "12345678"};
  const char *bad[] = {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2\x41", "\xe0\x9f\xbf", "\xe0\xa0", "\xed\xa0\x80",
                       "\xed\xbf\xbf", "\xef\xbf", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff",
                       "\xf0\x90\x80\x41", "1234567\xc3"};
  for (size_t i = 0; i < sizeof good / sizeof *good; i++) CHECK(vw_utf8_valid(good[i], strlen(good[i])));
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK(!vw_utf8_valid(bad[i], strlen(bad[i])));
}

static void test_values_of_no_or_two_kinds(void) {
  CHECK_EQUAL(READ("\x32\x07\x12\x05\x0a\x01x\x12\x00"), 0);
  CHECK_EQUAL(READ("\x32\x0b\x12\x09\x0a\x01x\x12\x04\x18\x01\x20\x01"), 0);
  CHECK_EQUAL(READ("\x32\x09\x12\x07\x0a\x01x\x12\x02\x20\x01"), 1);
  CHECK_EQUAL(READ("\x32\x05\x12\x03\x0a\x01x"), 0);             /* no value */
  CHECK_EQUAL(READ("\x32\x06\x12\x04\x12\x02\x20\x01"), 0);      /* no key */
  CHECK_EQUAL(READ("\x32\x0b\x12\x09\x0a\x01x\x12\x02\x20\x01\x18\x07"), 0); /* and something unknown */
}

/* JobResult { outputs {"": [[[… true …]]] } }, `depth` lists around the value. */
static int nested(unsigned depth) {
  uint8_t body[1024], copy[1024];
  size_t size = 2;
  memcpy(body, "\x20\x01", 2);
  for (unsigned i = 0; i < depth; i++) { /* Value { list: List { items: Value } } */
    CHECK(size < 0x7e);
    memcpy(copy, body, size);
    body[0] = 0x52, body[1] = (uint8_t)(size + 2), body[2] = 0x0a, body[3] = (uint8_t)size;
    memcpy(body + 4, copy, size);
    size += 4;
  }
  if (size + 4 > 0x7d) return -1;
  memmove(body + 8, body, size);
  const uint8_t head[] = {0x32, (uint8_t)(size + 6), 0x12, (uint8_t)(size + 4), 0x0a, 0x00, 0x12, (uint8_t)size};
  memcpy(body, head, sizeof head);
  return read_body(body, size + 8);
}

static void test_depth(void) {
  CHECK_EQUAL(nested(1), 1);
  CHECK_EQUAL(packet.count, 2);
  CHECK_EQUAL(nested(29), 1);
  CHECK_EQUAL(packet.count, 30);
}

/* The same with lengths of two bytes, which any depth takes. */
static int deep(unsigned depth) {
  uint8_t body[4096];
  size_t size = sizeof body;
  body[--size] = 0x01, body[--size] = 0x20;
  for (unsigned i = 0; i <= depth; i++) {
    size_t inner = sizeof body - size;
    uint8_t around = i < depth ? 0x0a : 0x12;
    body[--size] = (uint8_t)(inner >> 7), body[--size] = (uint8_t)(inner | 0x80), body[--size] = around;
    inner += 3;
    if (i == depth) break;
    body[--size] = (uint8_t)(inner >> 7), body[--size] = (uint8_t)(inner | 0x80), body[--size] = 0x52;
  }
  body[--size] = 0x00, body[--size] = 0x0a;
  for (unsigned i = 0; i < 2; i++) {
    size_t inner = sizeof body - size;
    body[--size] = (uint8_t)(inner >> 7), body[--size] = (uint8_t)(inner | 0x80), body[--size] = i ? 0x32 : 0x12;
  }
  return read_body(body + size, sizeof body - size);
}

static void test_too_deep_is_left(void) {
  CHECK_EQUAL(deep(VW_VALUE_DEPTH), 1);
  CHECK_EQUAL(deep(VW_VALUE_DEPTH + 1), 0);
  CHECK_EQUAL(deep(300), 0);
}

static void test_too_many_values_are_left(void) {
  uint8_t body[VW_NODES + 16] = {0x42};
  for (unsigned count = VW_NODES; count <= VW_NODES + 1; count++) {
    size_t inner = count + 3;
    body[1] = (uint8_t)(inner | 0x80), body[2] = (uint8_t)(inner >> 7);
    body[3] = 0x0a, body[4] = (uint8_t)(count | 0x80), body[5] = (uint8_t)(count >> 7);
    memset(body + 6, 1, count);
    CHECK_EQUAL(read_body(body, count + 6), count == VW_NODES);
  }
}

static int read_handle(const char *bytes, size_t size) {
  vw_handle handle;
  uint8_t *exact = malloc(size ? size : 1);
  CHECK(exact);
  memcpy(exact, bytes, size);
  int rc = vw_handle_read(&handle, (vw_span){.at = exact, .size = (uint32_t)size});
  free(exact);
  return rc;
}

#define HANDLE(text) read_handle(text, sizeof(text) - 1)

static void test_handles(void) {
  CHECK_EQUAL(HANDLE(""), 1);
  CHECK_EQUAL(HANDLE("\x22\x02\x02\x03\x2a\x02\x03\x01"), 1);
  CHECK_EQUAL(HANDLE("\x22\x02\x02\x03\x2a\x01\x03"), 0);                             /* strides: not as many */
  CHECK_EQUAL(HANDLE("\x22\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), 0);         /* above 2^63 - 1 */
  CHECK_EQUAL(HANDLE("\x20\x01\x28\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), 1);     /* stride -1: `check` refuses it */
  CHECK_EQUAL(HANDLE("\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), 0);             /* dtype -1 */
  char many[2 + VW_MAX_NDIM + 1] = {0x22, VW_MAX_NDIM};
  CHECK_EQUAL(read_handle(many, 2 + VW_MAX_NDIM), 1);
  many[1] = VW_MAX_NDIM + 1;
  CHECK_EQUAL(read_handle(many, 2 + VW_MAX_NDIM + 1), 0);
}

int main(void) {
  PASS(test_submit);
  PASS(test_cut_anywhere);
  PASS(test_any_byte_changed);
  PASS(test_other_bodies_are_left);
  PASS(test_unknown_fields_are_skipped);
  PASS(test_last_scalar_wins);
  PASS(test_varints);
  PASS(test_packed_or_not);
  PASS(test_text_is_utf8);
  PASS(test_values_of_no_or_two_kinds);
  PASS(test_depth);
  PASS(test_too_deep_is_left);
  PASS(test_too_many_values_are_left);
  PASS(test_handles);
  return 0;
}
