/* Messages written in protobuf's wire format, as the protobuf runtime writes them.
 *
 * A vw_out grows as it is written to, front to back. A message within another is begun and ended, and
 * its length filled in at the end. Fields are to be written in the order of their numbers, as the
 * runtime does; maps come in the order in which they are given, which it leaves open.
 *
 * Any thread; needs no GIL. What goes wrong (no memory) is told at the end, by `failed`. */
#ifndef VW_ENCODE_H
#define VW_ENCODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "handle.h"

typedef struct {
  uint8_t *data; /* malloc'ed */
  size_t size;
  size_t capacity;
  bool failed; /* no memory: all that is written from there on is dropped */
} vw_out;

void vw_out_free(vw_out *out);

/* A scalar that is written whatever its value, as in a oneof; and one that is left out where it is 0. */
void vw_out_number(vw_out *out, uint32_t field, uint64_t value);
void vw_out_nonzero(vw_out *out, uint32_t field, uint64_t value);
void vw_out_signed(vw_out *out, uint32_t field, int64_t value); /* sint64 */
void vw_out_real(vw_out *out, uint32_t field, double value);
void vw_out_bytes(vw_out *out, uint32_t field, const void *bytes, size_t size);
void vw_out_handle(vw_out *out, uint32_t field, const vw_handle *handle);

/* A message as `field`: what is written between the two. `begin` gives what `end` is to be called with. */
size_t vw_out_begin(vw_out *out, uint32_t field);
void vw_out_varint(vw_out *out, uint64_t value); /* an element of a packed field, begun like a message */
void vw_out_end(vw_out *out, size_t begun);

#endif
