/* The core's codec: any bytes. What it takes is a tree whose spans lie in the bytes; what they mean, the Python tests
 * compare with the protobuf runtime. */
#include <string.h>

#include "codec.h"
#include "fuzz.h"

static const uint8_t *body;
static size_t body_size;

static void check_span(vw_span span) {
  if (!span.size) return;
  FUZZ_CHECK(span.at >= body && span.at <= body + body_size && span.size <= (size_t)(body + body_size - span.at));
}

static void check_text(vw_span span) {
  check_span(span);
  FUZZ_CHECK(vw_utf8_valid(span.at, span.size));
}

static void check_node(const vw_packet *packet, uint32_t at, uint32_t end) {
  const vw_node *node = &packet->nodes[at];
  FUZZ_CHECK(node->end > at && node->end <= end);
  FUZZ_CHECK(node->part <= VW_SECOND);
  check_text(node->key);
  if (node->kind == VW_TEXT || node->kind == VW_OBJECT) check_text(node->bytes);
  if (node->kind == VW_DATA || node->kind == VW_TENSOR) check_span(node->bytes);
  if (node->kind != VW_LIST && node->kind != VW_MAP) FUZZ_CHECK(node->end == at + 1);
  if (node->kind == VW_TENSOR) {
    vw_handle handle;
    FUZZ_CHECK(vw_handle_read(&handle, node->bytes) == 1); /* as it was the first time */
    FUZZ_CHECK(handle.ndim <= VW_MAX_NDIM);
    vw_handle_check(&handle, 0, UINT64_MAX);
  }
}

/* Every node of [at, end), which are one subtree's. Bounded by VW_VALUE_DEPTH. */
static void check_nodes(const vw_packet *packet, uint32_t at, uint32_t end, unsigned depth) {
  FUZZ_CHECK(depth <= VW_VALUE_DEPTH + 1);
  for (; at < end; at = packet->nodes[at].end) {
    check_node(packet, at, end);
    check_nodes(packet, at + 1, packet->nodes[at].end, depth + 1);
  }
  FUZZ_CHECK(at == end);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static vw_packet packet;
  memset(&packet, 0xA5, sizeof packet);
  body = data;
  body_size = size;
  vw_handle handle;
  vw_handle_read(&handle, (vw_span){data, (uint32_t)size});
  if (vw_packet_read(&packet, data, size) != 1) return 0;
  FUZZ_CHECK(packet.count <= VW_NODES);
  if (packet.body == VW_JOB_SUBMIT || packet.body == VW_JOB_PROGRESS) check_text(packet.text);
  if (packet.body == VW_JOB_PROGRESS && packet.preview.at) check_span(packet.preview);
  check_nodes(&packet, 0, packet.count, 0);
  return 0;
}
