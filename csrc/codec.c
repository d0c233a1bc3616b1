#include "codec.h"

#include <string.h>

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

typedef struct {
  const uint8_t *at;
  const uint8_t *end;
} cursor;

typedef struct {
  uint32_t field;
  uint32_t type;
  uint64_t number; /* VARINT, FIXED64, FIXED32 */
  vw_span bytes;   /* BYTES */
} wire_field;

/* The one place where a byte is read, and where its bounds are checked: the next `size`, or NULL. */
static const uint8_t *take(cursor *from, uint64_t size) {
  if ((uint64_t)(from->end - from->at) < size) return NULL;
  const uint8_t *at = from->at;
  from->at += size;
  return at;
}

static bool varint_of(cursor *from, uint64_t *value, unsigned bits) {
  *value = 0;
  for (unsigned shift = 0; shift < bits; shift += 7) {
    const uint8_t *at = take(from, 1);
    if (!at || (shift == 63 && *at > 1)) return false; /* beyond 64 bits */
    *value |= (uint64_t)(*at & 0x7f) << shift;
    if (*at < 0x80) return true;
  }
  return false;
}

static bool varint(cursor *from, uint64_t *value) { return varint_of(from, value, 64); }

/* A tag or a length: in at most five bytes, however small. */
static bool varint32(cursor *from, uint64_t *value) { return varint_of(from, value, 32) && *value <= UINT32_MAX; }

static uint64_t little_endian(const uint8_t *at, unsigned size) {
  uint64_t value = 0;
  for (unsigned i = 0; i < size; i++) value |= (uint64_t)at[i] << 8 * i;
  return value;
}

/* 1: a field. 0: the end. -1: for the runtime: malformed, or a group. */
static int next(cursor *from, wire_field *found) {
  if (from->at == from->end) return 0;
  uint64_t tag, size;
  if (!varint32(from, &tag) || tag < 8) return -1;
  found->field = (uint32_t)(tag >> 3);
  found->type = (uint32_t)(tag & 7);
  const uint8_t *at;
  switch (found->type) {
    case VARINT:
      return varint(from, &found->number) ? 1 : -1;
    case FIXED64:
      if (!(at = take(from, 8))) return -1;
      found->number = little_endian(at, 8);
      return 1;
    case FIXED32:
      if (!(at = take(from, 4))) return -1;
      found->number = little_endian(at, 4);
      return 1;
    case BYTES:
      if (!varint32(from, &size) || size > INT32_MAX || !(at = take(from, size))) return -1;
      found->bytes = (vw_span){.at = at, .size = (uint32_t)size};
      return 1;
    default:
      return -1;
  }
}

static cursor within(vw_span message) { return (cursor){.at = message.at, .end = message.at + message.size}; }

/* A span for a message that may be absent, so that a second one is told from a first. */
static bool once(vw_span *span, const wire_field *found) {
  if (found->type != BYTES || span->at) return false;
  *span = found->bytes;
  return true;
}

static bool text(vw_span *span, const wire_field *found) {
  if (found->type != BYTES || !vw_utf8_valid(found->bytes.at, found->bytes.size)) return false;
  *span = found->bytes;
  return true;
}

static bool number(uint64_t *value, const wire_field *found) {
  *value = found->number;
  return found->type == VARINT;
}

bool vw_utf8_valid(const void *bytes, size_t size) {
  const uint8_t *at = bytes, *end = at + size;
  while (at < end) {
    uint64_t eight;
    if (end - at >= 8 && (memcpy(&eight, at, 8), !(eight & UINT64_C(0x8080808080808080)))) {
      at += 8;
      continue;
    }
    uint8_t first = *at++;
    if (first < 0x80) continue;
    unsigned more = first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;
    if (first < 0xc2 || first > 0xf4 || (size_t)(end - at) < more) return false;
    /* Only the second byte has narrower bounds, which shut out overlong forms, surrogates and the rest. */
    uint8_t low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    uint8_t high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    if (*at < low || *at > high) return false;
    for (unsigned i = 1; i < more; i++)
      if ((at[i] & 0xc0) != 0x80) return false;
    at += more;
  }
  return true;
}

/* One element, or a packed run of them, into shape or strides. */
static bool elements(int64_t *into, uint32_t *count, const wire_field *found, bool may_be_negative) {
  cursor from = within(found->bytes);
  bool packed = found->type == BYTES;
  if (!packed && found->type != VARINT) return false;
  while (!packed || from.at < from.end) {
    uint64_t value = found->number;
    if ((packed && !varint(&from, &value)) || *count == VW_MAX_NDIM) return false;
    if (value > INT64_MAX && !may_be_negative) return false;
    into[(*count)++] = (int64_t)value;
    if (!packed) break;
  }
  return true;
}

int vw_handle_read(vw_handle *handle, vw_span message) {
  cursor from = within(message);
  wire_field found = {0};
  uint32_t strides = 0;
  uint64_t dtype = 0, encoding = 0;
  handle->offset = handle->nbytes = 0;
  handle->ndim = 0;
  for (int more; (more = next(&from, &found)) != 0;) {
    bool ok = more > 0;
    if (ok && found.field == 1) ok = number(&handle->offset, &found);
    else if (ok && found.field == 2) ok = number(&handle->nbytes, &found);
    else if (ok && found.field == 3) ok = number(&dtype, &found) && dtype <= INT32_MAX;
    else if (ok && found.field == 4) ok = elements(handle->shape, &handle->ndim, &found, false);
    else if (ok && found.field == 5) ok = elements(handle->strides, &strides, &found, true);
    else if (ok && found.field == 6) ok = number(&encoding, &found) && encoding <= INT32_MAX;
    if (!ok) return 0;
  }
  handle->dtype = (uint32_t)dtype;
  handle->encoding = (uint32_t)encoding;
  handle->strided = strides > 0;
  return strides == 0 || strides == handle->ndim;
}

static vw_node *add(vw_packet *packet) {
  if (packet->count == VW_NODES) return NULL;
  vw_node *node = &packet->nodes[packet->count++];
  node->key = node->bytes = (vw_span){0};
  node->part = VW_FIRST;
  node->end = packet->count;
  return node;
}

static bool read_value(vw_packet *packet, vw_node *node, vw_span message, unsigned depth);

/* An entry of a map, key and value each once. */
static bool read_entry(vw_packet *packet, vw_span message, unsigned depth, enum vw_part part) {
  cursor from = within(message);
  wire_field found = {0};
  vw_span key = {0}, value = {0};
  for (int more; (more = next(&from, &found)) != 0;) {
    if (more < 0 || found.field > 2) return false; /* the runtime passes over an entry with anything unknown in it */
    if (found.field == 1 && (key.at || !text(&key, &found))) return false;
    if (found.field == 2 && !once(&value, &found)) return false;
  }
  vw_node *node = key.at && value.at ? add(packet) : NULL;
  if (!node) return false;
  node->key = key;
  node->part = (uint8_t)part;
  return read_value(packet, node, value, depth);
}

/* The items of a List or a Map: field 1 of either. */
static bool read_items(vw_packet *packet, vw_node *node, vw_span message, unsigned depth) {
  cursor from = within(message);
  wire_field found = {0};
  if (depth >= VW_VALUE_DEPTH) return false;
  for (int more; (more = next(&from, &found)) != 0;) {
    if (more < 0 || (found.field == 1 && found.type != BYTES)) return false;
    if (found.field != 1) continue;
    if (node->kind == VW_MAP) {
      if (!read_entry(packet, found.bytes, depth + 1, VW_FIRST)) return false;
    } else {
      vw_node *item = add(packet);
      if (!item || !read_value(packet, item, found.bytes, depth + 1)) return false;
    }
  }
  node->end = packet->count;
  return true;
}

static bool read_object(vw_node *node, vw_span message) {
  cursor from = within(message);
  wire_field found = {0};
  for (int more; (more = next(&from, &found)) != 0;) {
    if (more < 0) return false;
    if (found.field == 1 && !number(&node->is.natural, &found)) return false;
    if (found.field == 2 && !text(&node->bytes, &found)) return false;
  }
  return true;
}

static bool read_kind(vw_packet *packet, vw_node *node, const wire_field *found, unsigned depth) {
  vw_handle checked;
  switch (node->kind) {
    case VW_TENSOR:
      node->bytes = found->bytes;
      return found->type == BYTES && vw_handle_read(&checked, found->bytes);
    case VW_OBJECT:
      return found->type == BYTES && read_object(node, found->bytes);
    case VW_NULL:
    case VW_BOOLEAN:
      node->is.natural = found->number != 0;
      return found->type == VARINT;
    case VW_INT64: /* zigzag: 0, -1, 1, -2, … */
      node->is.natural = found->number >> 1 ^ (0 - (found->number & 1));
      return found->type == VARINT;
    case VW_UINT64:
      return number(&node->is.natural, found);
    case VW_FLOAT64:
      memcpy(&node->is.real, &found->number, sizeof node->is.real);
      return found->type == FIXED64;
    case VW_TEXT:
      return text(&node->bytes, found);
    case VW_DATA:
      node->bytes = found->bytes;
      return found->type == BYTES;
    default:
      return found->type == BYTES && read_items(packet, node, found->bytes, depth);
  }
}

/* A Value of exactly one kind. */
static bool read_value(vw_packet *packet, vw_node *node, vw_span message, unsigned depth) {
  cursor from = within(message);
  wire_field found = {0};
  node->kind = 0;
  node->is.natural = 0;
  for (int more; (more = next(&from, &found)) != 0;) {
    if (more < 0) return false;
    if (found.field > VW_MAP) continue;
    if (node->kind) return false;
    node->kind = (uint8_t)found.field;
    if (!read_kind(packet, node, &found, depth)) return false;
  }
  return node->kind != 0;
}

static bool read_submit(vw_packet *packet, const wire_field *found) {
  if (found->field == 1) return number(&packet->job_id, found);
  if (found->field == 2) return text(&packet->text, found);
  if (found->field == 3) return found->type == BYTES && read_entry(packet, found->bytes, 0, VW_FIRST);
  if (found->field == 4) return found->type == BYTES && read_entry(packet, found->bytes, 0, VW_SECOND);
  if (found->field == 5) return number(&packet->deadline, found);
  if (found->field == 6) return false; /* a Question: rare, and none of our haste */
  return true;
}

static bool read_progress(vw_packet *packet, const wire_field *found) {
  uint64_t value;
  vw_handle checked;
  if (found->field == 1) return number(&packet->job_id, found);
  if (found->field == 4) return text(&packet->text, found);
  if (found->field == 5) return once(&packet->preview, found) && vw_handle_read(&checked, found->bytes);
  if (found->field != 2 && found->field != 3) return true;
  if (!number(&value, found)) return false;
  *(found->field == 2 ? &packet->step : &packet->total) = (uint32_t)value; /* the runtime cuts off, too */
  return true;
}

static bool read_timings(vw_packet *packet, vw_span message) {
  cursor from = within(message);
  wire_field found = {0};
  for (int more; (more = next(&from, &found)) != 0;) {
    if (more < 0) return false;
    if (found.field <= 4 && !number(&packet->timings[found.field - 1], &found)) return false;
  }
  return true;
}

static bool read_result(vw_packet *packet, const wire_field *found, vw_span *timings) {
  if (found->field == 1) return number(&packet->job_id, found);
  if (found->field == 2) return found->type == BYTES && read_entry(packet, found->bytes, 0, VW_FIRST);
  if (found->field == 3) return false; /* an Error: rare, and none of our haste */
  if (found->field == 4) return once(timings, found) && read_timings(packet, found->bytes);
  return true;
}

static bool read_release(vw_packet *packet, const wire_field *found) {
  if (found->field > 2) return true;
  cursor from = within(found->bytes);
  bool packed = found->type == BYTES;
  if (!packed && found->type != VARINT) return false;
  while (!packed || from.at < from.end) {
    vw_node *node = add(packet);
    if (!node) return false;
    node->kind = VW_UINT64;
    node->part = found->field == 1 ? VW_FIRST : VW_SECOND;
    node->is.natural = found->number;
    if (!packed) break;
    if (!varint(&from, &node->is.natural)) return false;
  }
  return true;
}

static bool read_body(vw_packet *packet, vw_span message) {
  cursor from = within(message);
  wire_field found = {0};
  vw_span timings = {0};
  for (int more; (more = next(&from, &found)) != 0;) {
    bool ok = more > 0;
    if (ok && packet->body == VW_JOB_SUBMIT) ok = read_submit(packet, &found);
    else if (ok && packet->body == VW_JOB_PROGRESS) ok = read_progress(packet, &found);
    else if (ok && packet->body == VW_JOB_RESULT) ok = read_result(packet, &found, &timings);
    else if (ok) ok = read_release(packet, &found);
    if (!ok) return false;
  }
  return true;
}

int vw_packet_read(vw_packet *packet, const void *body, size_t size) {
  cursor from = {.at = body, .end = (const uint8_t *)body + size};
  wire_field found = {0};
  vw_span message = {0};
  uint32_t kind = 0;
  for (int more; (more = next(&from, &found)) != 0;) {
    if (more < 0) return 0;
    if (found.field == 1 && found.type != VARINT) return 0;
    if (found.field < 2 || found.field > 12) continue;
    kind = found.field;
    if (!once(&message, &found)) return 0;
  }
  if (kind != VW_JOB_SUBMIT && kind != VW_JOB_PROGRESS && kind != VW_JOB_RESULT && kind != VW_RELEASE) return 0;
  packet->body = (enum vw_body)kind;
  packet->job_id = packet->deadline = 0;
  packet->text = packet->preview = (vw_span){0};
  packet->step = packet->total = packet->count = 0;
  memset(packet->timings, 0, sizeof packet->timings);
  return read_body(packet, message);
}
