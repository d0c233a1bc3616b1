/* The frame parser: any bytes, cut anywhere, fed or received, against the plainest parser of the whole.
 *
 *     byte 0  how they come · 1, 2  the limit · 3  where they are cut · then the stream */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "frame.h"
#include "fuzz.h"

typedef struct {
  const uint8_t *stream;
  size_t size, at;
  uint32_t limit;
} plain_parser;

/* 1: a frame, 0: more is needed, -1: a bad length. */
static int plain_next(plain_parser *parser, const uint8_t **body, uint32_t *size) {
  size_t left = parser->size - parser->at;
  const uint8_t *at = parser->stream + parser->at;
  if (left < 4) return 0;
  uint64_t length = 0;
  for (int i = 3; i >= 0; i--) length = length * 256 + at[i];
  if (length == 0 || length > parser->limit) return -1;
  if (length > left - 4) return 0;
  *body = at + 4;
  *size = (uint32_t)length;
  parser->at += 4 + (size_t)length;
  return 1;
}

static void expect_frame(plain_parser *parser, const vw_frame *frame) {
  const uint8_t *body;
  uint32_t size;
  FUZZ_CHECK(plain_next(parser, &body, &size) == 1);
  FUZZ_CHECK(frame->size == size && memcmp(frame->body, body, size) == 0);
}

/* What follows the last whole frame. */
static int plain_end(plain_parser *parser) {
  const uint8_t *body;
  uint32_t size;
  return plain_next(parser, &body, &size);
}

static void fed_in_pieces(plain_parser *parser, uint8_t cuts) {
  vw_reader reader;
  FUZZ_CHECK(vw_reader_init(&reader, parser->limit) == 0);
  size_t fed = 0;
  uint32_t step = cuts;
  for (;;) {
    vw_frame frame;
    int rc = vw_reader_next(&reader, &frame);
    if (rc == 1) {
      expect_frame(parser, &frame);
    } else if (rc < 0) {
      FUZZ_CHECK(rc == -EMSGSIZE && plain_end(parser) == -1);
      FUZZ_CHECK(vw_reader_next(&reader, &frame) == -EMSGSIZE); /* and for ever */
      break;
    } else if (fed == parser->size) {
      FUZZ_CHECK(plain_end(parser) == 0 && reader.end - reader.begin == parser->size - parser->at);
      break;
    } else {
      step = step * 1103515245u + 12345u;
      size_t piece = 1 + (cuts ? (step >> 16) % cuts : 0), taken;
      if (piece > parser->size - fed) piece = parser->size - fed;
      FUZZ_CHECK(vw_reader_feed(&reader, parser->stream + fed, piece, &taken) == 0);
      FUZZ_CHECK(taken > 0 && taken <= piece);
      fed += taken;
    }
    FUZZ_CHECK(reader.capacity <= (size_t)parser->limit + VW_FRAME_HEADER);
  }
  vw_reader_free(&reader);
}

static void received(plain_parser *parser) {
  int fds[2];
  vw_reader reader;
  vw_frame frame;
  FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
  FUZZ_CHECK(vw_reader_init(&reader, parser->limit) == 0);
  FUZZ_CHECK(write(fds[1], parser->stream, parser->size) == (ssize_t)parser->size);
  close(fds[1]);
  int rc;
  while ((rc = vw_reader_recv(&reader, fds[0], VW_FOREVER, &frame)) == 1) expect_frame(parser, &frame);
  int end = plain_end(parser);
  if (rc == -EMSGSIZE) FUZZ_CHECK(end == -1);
  else FUZZ_CHECK(end == 0 && rc == (parser->at == parser->size ? 0 : -ENODATA));
  close(fds[0]);
  vw_reader_free(&reader);
}

static void sent_and_received(plain_parser *parser) {
  int fds[2];
  vw_reader reader;
  vw_writer writer;
  vw_frame frame;
  const uint8_t *body;
  uint32_t size;
  FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
  FUZZ_CHECK(vw_reader_init(&reader, parser->limit) == 0 && vw_writer_init(&writer) == 0);
  while (plain_next(parser, &body, &size) == 1) {
    FUZZ_CHECK(vw_writer_load(&writer, body, size, parser->limit) == 0);
    FUZZ_CHECK(vw_writer_flush(&writer, fds[1], VW_NOW) == 0 && !vw_writer_torn(&writer));
    FUZZ_CHECK(vw_reader_recv(&reader, fds[0], VW_NOW, &frame) == 1);
    FUZZ_CHECK(frame.size == size && memcmp(frame.body, body, size) == 0);
  }
  FUZZ_CHECK(vw_writer_load(&writer, parser->stream, 0, parser->limit) == -EMSGSIZE);
  FUZZ_CHECK(vw_writer_load(&writer, parser->stream, (size_t)parser->limit + 1, parser->limit) == -EMSGSIZE);
  FUZZ_CHECK(vw_reader_recv(&reader, fds[0], VW_NOW, &frame) == -ETIMEDOUT);
  close(fds[0]);
  close(fds[1]);
  vw_writer_free(&writer);
  vw_reader_free(&reader);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  fuzz_input input = {data, size};
  uint8_t how = fuzz_byte(&input);
  uint32_t limit = fuzz_byte(&input);
  limit = 1 + limit + (fuzz_byte(&input) & 1 ? 1u << 16 : 0);
  uint8_t cuts = fuzz_byte(&input);
  plain_parser parser = {input.at, input.left, 0, limit};
  if (how % 32 == 1) received(&parser); /* seldom: a socket takes longer than all the rest */
  else if (how % 32 == 2) sent_and_received(&parser);
  else fed_in_pieces(&parser, cuts);
  return 0;
}
