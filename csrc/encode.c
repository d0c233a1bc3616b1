#include "encode.h"

#include <stdlib.h>
#include <string.h>

enum wire_type { VARINT = 0, FIXED64 = 1, BYTES = 2 };

enum { OUT_START = 512 /* bytes: more than a usual message */, VARINT_ROOM = 10 };

void vw_out_free(vw_out *out) {
  free(out->data);
  *out = (vw_out){0};
}

/* Where `size` bytes may be written, or NULL. */
static uint8_t *room(vw_out *out, size_t size) {
  if (out->failed) return NULL;
  if (out->capacity - out->size < size) {
    size_t capacity = out->capacity ? out->capacity : OUT_START;
    while (capacity - out->size < size) {
      if (capacity > SIZE_MAX / 2) {
        capacity = 0; /* no memory is that large */
        break;
      }
      capacity *= 2;
    }
    uint8_t *data = capacity ? realloc(out->data, capacity) : NULL;
    if (!data) {
      out->failed = true;
      return NULL;
    }
    out->data = data;
    out->capacity = capacity;
  }
  return out->data + out->size;
}

static unsigned put_varint(uint8_t *at, uint64_t value) {
  unsigned size = 0;
  for (; value >= 0x80; value >>= 7) at[size++] = (uint8_t)(value | 0x80);
  at[size++] = (uint8_t)value;
  return size;
}

static void tag(vw_out *out, uint32_t field, enum wire_type type, uint64_t value) {
  uint8_t *at = room(out, 2 * (size_t)VARINT_ROOM);
  if (!at) return;
  unsigned size = put_varint(at, (uint64_t)field << 3 | type);
  out->size += size + put_varint(at + size, value);
}

void vw_out_number(vw_out *out, uint32_t field, uint64_t value) { tag(out, field, VARINT, value); }

void vw_out_nonzero(vw_out *out, uint32_t field, uint64_t value) {
  if (value) tag(out, field, VARINT, value);
}

void vw_out_signed(vw_out *out, uint32_t field, int64_t value) {
  tag(out, field, VARINT, (uint64_t)value << 1 ^ (value < 0 ? UINT64_MAX : 0));
}

void vw_out_real(vw_out *out, uint32_t field, double value) {
  uint8_t *at = room(out, VARINT_ROOM + sizeof value);
  if (!at) return;
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  unsigned size = put_varint(at, (uint64_t)field << 3 | FIXED64);
  for (unsigned i = 0; i < 8; i++) at[size + i] = (uint8_t)(bits >> 8 * i);
  out->size += size + 8;
}

void vw_out_bytes(vw_out *out, uint32_t field, const void *bytes, size_t size) {
  tag(out, field, BYTES, size);
  uint8_t *at = room(out, size);
  if (!at) return;
  if (size) memcpy(at, bytes, size);
  out->size += size;
}

size_t vw_out_begin(vw_out *out, uint32_t field) {
  tag(out, field, BYTES, 0); /* room for a length of one byte, which most have */
  return out->size;
}

void vw_out_end(vw_out *out, size_t begun) {
  if (out->failed) return;
  size_t size = out->size - begun;
  if (size >= 0x80) { /* it takes more: what was written moves up */
    uint8_t length[VARINT_ROOM];
    unsigned more = put_varint(length, size) - 1;
    if (!room(out, more)) return;
    memmove(out->data + begun + more, out->data + begun, size);
    out->size += more;
  }
  put_varint(out->data + begun - 1, size);
}

void vw_out_varint(vw_out *out, uint64_t value) {
  uint8_t *at = room(out, VARINT_ROOM);
  if (at) out->size += put_varint(at, value);
}

static void put_dimensions(vw_out *out, uint32_t field, const int64_t *values, uint32_t count) {
  if (!count) return;
  size_t begun = vw_out_begin(out, field);
  for (uint32_t i = 0; i < count; i++) vw_out_varint(out, (uint64_t)values[i]);
  vw_out_end(out, begun);
}

void vw_out_handle(vw_out *out, uint32_t field, const vw_handle *handle) {
  size_t begun = vw_out_begin(out, field);
  vw_out_nonzero(out, 1, handle->offset);
  vw_out_nonzero(out, 2, handle->nbytes);
  vw_out_nonzero(out, 3, handle->dtype);
  put_dimensions(out, 4, handle->shape, handle->ndim);
  if (handle->strided) put_dimensions(out, 5, handle->strides, handle->ndim);
  vw_out_nonzero(out, 6, handle->encoding);
  vw_out_end(out, begun);
}
