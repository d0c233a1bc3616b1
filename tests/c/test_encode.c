/* Writing messages: byte for byte, lengths that outgrow one byte, and no memory. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "codec.h"
#include "encode.h"

#define IS(out, text) CHECK((out).size == sizeof(text) - 1 && !memcmp((out).data, text, sizeof(text) - 1))

static void test_scalars(void) {
  vw_out out = {0};
  vw_out_number(&out, 1, 0);
  vw_out_nonzero(&out, 2, 0);
  vw_out_nonzero(&out, 2, 300);
  vw_out_signed(&out, 5, -1);
  vw_out_signed(&out, 5, INT64_MIN);
  vw_out_real(&out, 7, 1.0);
  vw_out_number(&out, 100, 1);
  IS(out,
     "\x08\x00\x10\xac\x02\x28\x01\x28\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
     "\x39\x00\x00\x00\x00\x00\x00\xf0\x3f\xa0\x06\x01");
  vw_out_free(&out);
  CHECK(!out.data && !out.size);
}

static void test_messages_of_any_length(void) {
  /* Around each length that takes a byte more. */
  const size_t sizes[] = {0, 1, 127, 128, 129, 511, 16383, 16384, 2097151, 2097152};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    char *text = malloc(sizes[i] + 1);
    CHECK(text);
    memset(text, 'x', sizes[i]);
    vw_out out = {0};
    size_t packet = vw_out_begin(&out, VW_JOB_PROGRESS);
    vw_out_nonzero(&out, 1, 9);
    vw_out_bytes(&out, 4, text, sizes[i]);
    vw_out_end(&out, packet);
    vw_packet read;
    CHECK(!out.failed);
    CHECK_EQUAL(vw_packet_read(&read, out.data, out.size), 1);
    CHECK(read.job_id == 9 && read.text.size == sizes[i] && !memcmp(read.text.at, text, sizes[i]));
    vw_out_free(&out);
    free(text);
  }
}

static void test_handle(void) {
  vw_handle handle = {.offset = 64, .nbytes = 96, .dtype = VW_F64, .ndim = 2, .shape = {2, 2}};
  vw_out out = {0};
  vw_out_handle(&out, 1, &handle);
  IS(out, "\x0a\x0a\x08\x40\x10\x60\x18\x0d\x22\x02\x02\x02");
  handle.strided = true;
  handle.strides[0] = 4, handle.strides[1] = 1;
  out.size = 0;
  vw_out_handle(&out, 1, &handle);
  IS(out, "\x0a\x0e\x08\x40\x10\x60\x18\x0d\x22\x02\x02\x02\x2a\x02\x04\x01");
  vw_out_free(&out);
}

static void test_no_memory(void) {
  vw_out out = {0};
  vw_out_number(&out, 1, 1);
  size_t before = out.size;
  vw_out_bytes(&out, 2, "", SIZE_MAX / 2 + 1); /* never read: there is no room for it */
  CHECK(out.failed);
  size_t begun = vw_out_begin(&out, 3);
  vw_out_number(&out, 1, 1);
  vw_out_end(&out, begun);
  CHECK(out.failed && out.size >= before);
  vw_out_free(&out);
}

int main(void) {
  PASS(test_scalars);
  PASS(test_messages_of_any_length);
  PASS(test_handle);
  PASS(test_no_memory);
  return 0;
}
