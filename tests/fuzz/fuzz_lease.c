/* The lease allocator: any sequence of allocating and freeing, also of what was never allocated, against a map of
 * its granules. */
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "fuzz.h"
#include "lease.h"

#define OFFSET (UINT64_C(6) << 20)
enum { GRANULE = 64, MOST = 256, OPERATIONS = 100 };

typedef struct {
  vw_lease lease;
  uint32_t granules;
  uint16_t block[MOST]; /* number of the live block that a granule belongs to; 0: free */
  uint64_t offset[MOST + 1], size[MOST + 1]; /* of live blocks by number; size 0: none */
  uint64_t live, used;
} model;

static uint32_t longest_gap(const model *m) {
  uint32_t longest = 0, length = 0;
  for (uint32_t i = 0; i < m->granules; i++) {
    length = m->block[i] ? 0 : length + 1;
    if (length > longest) longest = length;
  }
  return longest;
}

static void allocate(model *m, uint64_t nbytes) {
  uint64_t offset = 1, found, granules = nbytes ? nbytes / GRANULE + (nbytes % GRANULE != 0) : 1;
  int rc = vw_lease_allocate(&m->lease, nbytes, &offset);
  if (granules > longest_gap(m)) {
    FUZZ_CHECK(rc == -ENOSPC && offset == 1);
    return;
  }
  FUZZ_CHECK(rc == 0 && offset >= OFFSET && offset % GRANULE == 0);
  uint64_t first = (offset - OFFSET) / GRANULE;
  FUZZ_CHECK(first < m->granules && granules <= m->granules - first);
  uint16_t number = 1;
  while (m->size[number]) number++;
  for (uint64_t i = first; i < first + granules; i++) {
    FUZZ_CHECK(!m->block[i]);
    m->block[i] = number;
  }
  m->offset[number] = offset;
  m->size[number] = granules * GRANULE;
  m->live++;
  m->used += granules * GRANULE;
  FUZZ_CHECK(vw_lease_size(&m->lease, offset, &found) == 0 && found == granules * GRANULE);
}

/* Releases what begins at `offset`, if anything does. */
static void release(model *m, uint64_t offset) {
  uint64_t size = 1;
  int rc = vw_lease_free(&m->lease, offset, &size);
  uint16_t number = 0;
  if (offset >= OFFSET && (offset - OFFSET) / GRANULE < m->granules) number = m->block[(offset - OFFSET) / GRANULE];
  if (!number || m->offset[number] != offset) {
    FUZZ_CHECK(rc == -ENOENT && size == 1);
    return;
  }
  FUZZ_CHECK(rc == 0 && size == m->size[number]);
  for (uint64_t i = (offset - OFFSET) / GRANULE, end = i + size / GRANULE; i < end; i++) {
    FUZZ_CHECK(m->block[i] == number);
    m->block[i] = 0;
  }
  m->live--;
  m->used -= size;
  m->size[number] = 0;
  FUZZ_CHECK(vw_lease_free(&m->lease, offset, &size) == -ENOENT); /* twice */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  fuzz_input input = {data, size};
  static model m;
  memset(&m, 0, sizeof m);
  m.granules = 1 + fuzz_byte(&input);
  uint64_t end = OFFSET + (uint64_t)m.granules * GRANULE;
  const uint64_t sizes[] = {end - OFFSET, UINT64_MAX, (end - OFFSET) / 2, 1024};
  const uint64_t offsets[] = {OFFSET, end, UINT64_MAX, 0};
  FUZZ_CHECK(vw_lease_init(&m.lease, OFFSET, end - OFFSET) == 0);
  for (int i = 0; input.left && i < OPERATIONS; i++) {
    uint8_t what = fuzz_byte(&input);
    if (what & 1) allocate(&m, fuzz_number(&input, sizes, 4));
    else if (what & 6) release(&m, OFFSET + (uint64_t)fuzz_byte(&input) * GRANULE * (what & 8 ? 2 : 1));
    else release(&m, fuzz_number(&input, offsets, 4));
    FUZZ_CHECK(m.lease.live == m.live && m.lease.used == m.used);
    FUZZ_CHECK(vw_lease_largest_free(&m.lease) == (uint64_t)longest_gap(&m) * GRANULE);
  }
  for (uint16_t number = 1; number <= MOST; number++)
    if (m.size[number]) release(&m, m.offset[number]);
  FUZZ_CHECK(vw_lease_largest_free(&m.lease) == end - OFFSET); /* all joined again */
  vw_lease_destroy(&m.lease);
  return 0;
}
