/* The hot messages of proto/control.proto, read from protobuf's wire format.
 *
 *     ControlPacket { seq, one of JobSubmit, JobProgress, JobResult, Release }
 *
 * vw_packet_read goes once through a frame's body and either takes it, or leaves it to the
 * protobuf runtime: what is malformed, and what is rare (a field that is given in two pieces, groups, an
 * Error, more than VW_NODES values, …). What it takes, the runtime takes too, and reads the same; so a
 * hostile sender gains nothing but the slower way. Bytes are read in one function, which checks bounds.
 *
 * Nothing is allocated or copied: spans point into the body. A message's values form a tree, which lies
 * in an array in the order of the wire; each node knows where its subtree ends:
 *
 *     inputs {a: 1, b: [2, 3]}   →   a INT64 1 │ b LIST, end 4 │ INT64 2 │ INT64 3 │
 *
 * Format: https://protobuf.dev/programming-guides/encoding/. Any thread; needs no GIL. */
#ifndef VW_CODEC_H
#define VW_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "handle.h"

#define VW_NODES 256u      /* values of one message, nested ones included; more are rare */
#define VW_VALUE_DEPTH 32u /* of nested lists and maps; what is deeper, the runtime's caller refuses */

/* Field numbers of ControlPacket's bodies. */
enum vw_body { VW_JOB_SUBMIT = 4, VW_JOB_PROGRESS = 5, VW_JOB_RESULT = 6, VW_RELEASE = 8 };

/* Field numbers of Value's kinds. */
enum vw_kind {
  VW_TENSOR = 1,
  VW_OBJECT = 2,
  VW_NULL = 3,
  VW_BOOLEAN = 4,
  VW_INT64 = 5,
  VW_UINT64 = 6,
  VW_FLOAT64 = 7,
  VW_TEXT = 8,
  VW_DATA = 9,
  VW_LIST = 10,
  VW_MAP = 11,
};

/* Which of a message's fields a node of the outermost level belongs to. */
enum vw_part { VW_FIRST = 0 /* inputs, outputs, offsets */, VW_SECOND = 1 /* params, objects */ };

typedef struct {
  const uint8_t *at;
  uint32_t size;
} vw_span;

typedef union {
  uint64_t natural; /* UINT64; OBJECT's id; NULL and BOOLEAN: 0 or 1 */
  int64_t integer;  /* INT64 */
  double real;      /* FLOAT64 */
} vw_scalar;

typedef struct {
  uint8_t kind;
  uint8_t part;
  uint32_t end; /* index behind it and all that is in it */
  vw_span key;  /* of a map's item, valid UTF-8 */
  vw_scalar is;
  vw_span bytes; /* TEXT and OBJECT's type, valid UTF-8; DATA; TENSOR: for vw_handle_read */
} vw_node;

typedef struct {
  enum vw_body body;
  uint64_t job_id;
  uint64_t deadline;   /* JobSubmit */
  vw_span text;        /* JobSubmit: op type; JobProgress: message; valid UTF-8 */
  vw_span preview;     /* JobProgress: for vw_handle_read; at is NULL: none */
  uint32_t step, total;
  uint64_t timings[4]; /* JobResult: decode, map, execute, save */
  uint32_t count;
  vw_node nodes[VW_NODES];
} vw_packet;

/* 1: *packet holds it. 0: it is for the protobuf runtime. */
int vw_packet_read(vw_packet *packet, const void *body, size_t size);

/* The same for a TensorHandle: what a TENSOR's bytes are was read like this once, and is again. */
int vw_handle_read(vw_handle *handle, vw_span message);

/* Whether bytes are what Unicode calls well-formed: no surrogates, nothing overlong, nothing above 10FFFF. */
bool vw_utf8_valid(const void *bytes, size_t size);

#endif
