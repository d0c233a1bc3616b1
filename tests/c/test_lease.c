/* The lease allocator against the plainest model of one: a sorted list of live blocks. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "layout.h"
#include "lease.h"

#define OFFSET (UINT64_C(6) << 20)
#define MOST 600

typedef struct block {
  uint64_t offset, size; /* bytes */
} block;

typedef struct model {
  vw_lease lease;
  block blocks[MOST];
  size_t count;
  uint64_t used;
} model;

static uint64_t random_state;

static uint64_t any(uint64_t below) { /* xorshift64 */
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state % below;
}

static uint64_t largest_gap(const model *m) {
  uint64_t end = m->lease.offset, largest = 0;
  for (size_t i = 0; i <= m->count; i++) {
    uint64_t start = i < m->count ? m->blocks[i].offset : m->lease.offset + m->lease.size;
    CHECK(start >= end); /* blocks don't overlap */
    if (start - end > largest) largest = start - end;
    if (i < m->count) end = start + m->blocks[i].size;
  }
  CHECK(end <= m->lease.offset + m->lease.size);
  return largest;
}

static void agree(const model *m) {
  CHECK_EQUAL(m->lease.live, m->count);
  CHECK_EQUAL(m->lease.used, m->used);
  CHECK_EQUAL(vw_lease_largest_free(&m->lease), largest_gap(m));
}

/* Whether there was room; says the same as the model. */
static int allocate(model *m, uint64_t nbytes) {
  uint64_t size = (nbytes ? nbytes + 63 : 64) / 64 * 64, offset = 1, found;
  int rc = vw_lease_allocate(&m->lease, nbytes, &offset);
  if (size > largest_gap(m)) {
    CHECK_EQUAL(rc, -ENOSPC);
    CHECK_EQUAL(offset, 1);
    return 0;
  }
  CHECK_EQUAL(rc, 0);
  CHECK(offset % 64 == 0 && offset >= m->lease.offset);
  size_t at = m->count++;
  CHECK(at < MOST);
  for (; at && m->blocks[at - 1].offset > offset; at--) m->blocks[at] = m->blocks[at - 1];
  m->blocks[at] = (block){offset, size};
  m->used += size;
  CHECK_EQUAL(vw_lease_size(&m->lease, offset, &found), 0);
  CHECK_EQUAL(found, size);
  return 1;
}

static void release(model *m, size_t at) {
  uint64_t size = 0;
  CHECK_EQUAL(vw_lease_free(&m->lease, m->blocks[at].offset, &size), 0);
  CHECK_EQUAL(size, m->blocks[at].size);
  CHECK_EQUAL(vw_lease_free(&m->lease, m->blocks[at].offset, &size), -ENOENT); /* twice */
  m->used -= size;
  memmove(&m->blocks[at], &m->blocks[at + 1], (--m->count - at) * sizeof m->blocks[0]);
}

static void begin(model *m, uint64_t size) {
  m->count = 0;
  m->used = 0;
  CHECK_EQUAL(vw_lease_init(&m->lease, OFFSET, size), 0);
  agree(m);
}

static void end(model *m) {
  while (m->count) release(m, any(m->count));
  agree(m);
  CHECK_EQUAL(vw_lease_largest_free(&m->lease), m->lease.size); /* all joined again */
  vw_lease_destroy(&m->lease);
}

static model shared_model;

static void test_random_traffic(void) {
  model *m = &shared_model;
  for (uint64_t seed = 1; seed <= 45; seed++) {
    random_state = seed * UINT64_C(0x9e3779b97f4a7c15);
    begin(m, 64 * (1 + any(1 << (6 + seed % 15))));
    for (int step = 0; step < 3000; step++) {
      /* Grow for a while, shrink for a while; sizes from a few bytes to the whole lease. */
      int grow = any(10) < (step / 300 % 2 ? 4u : 7u);
      if (grow && m->count < MOST) allocate(m, any(UINT64_C(1) << any(20)));
      else if (m->count) release(m, any(m->count));
      agree(m);
    }
    end(m);
  }
}

static void test_filled_to_the_last_granule(void) {
  model *m = &shared_model;
  random_state = 42;
  begin(m, 512 * 64);
  while (allocate(m, 1 + any(64))) agree(m);
  CHECK_EQUAL(m->count, 512);
  CHECK_EQUAL(vw_lease_largest_free(&m->lease), 0);
  /* Every second one freed: half is free, and nothing larger than one granule fits. */
  for (size_t i = 511; i < 512; i -= 2) release(m, i);
  agree(m);
  CHECK(!allocate(m, 65));
  CHECK(allocate(m, 64));
  end(m);
}

static void test_a_fit_in_its_own_class_is_found(void) {
  /* Gaps of 33 to 63 granules share few size classes with what is asked for; the one that fits may
   * be anywhere in its list. */
  model *m = &shared_model;
  begin(m, 600 * 64 * 64);
  for (int i = 0; i < 40; i++) {
    CHECK(allocate(m, (uint64_t)(i % 2 ? 36 : 37) * 64)); /* to be freed */
    CHECK(allocate(m, 64));                               /* keeps them apart */
  }
  CHECK(allocate(m, vw_lease_largest_free(&m->lease)));
  for (size_t i = 78; i < 80; i -= 2) release(m, i);
  agree(m);
  for (int i = 0; i < 20; i++) CHECK(allocate(m, 37 * 64));
  CHECK(!allocate(m, 37 * 64));
  for (int i = 0; i < 20; i++) CHECK(allocate(m, 36 * 64));
  CHECK(!allocate(m, 36 * 64));
  end(m);
}

static void test_what_is_not_live_is_not_freed(void) {
  model *m = &shared_model;
  uint64_t size = 7;
  begin(m, 1 << 20);
  CHECK_EQUAL(vw_lease_free(&m->lease, OFFSET, &size), -ENOENT); /* nothing was ever live */
  CHECK(allocate(m, 1000));
  const uint64_t never[] = {0, OFFSET - 64, OFFSET + 1, OFFSET + 63, OFFSET + 64, OFFSET + 1024, OFFSET + (1 << 20), UINT64_MAX,
                            UINT64_MAX - 63};
  for (size_t i = 0; i < sizeof never / sizeof never[0]; i++) {
    CHECK_EQUAL(vw_lease_free(&m->lease, never[i], &size), -ENOENT);
    CHECK_EQUAL(vw_lease_size(&m->lease, never[i], &size), -ENOENT);
  }
  CHECK_EQUAL(size, 7);
  agree(m);
  end(m);
}

static void test_sizes_that_can_not_be(void) {
  model *m = &shared_model;
  begin(m, 1 << 20);
  uint64_t offset;
  CHECK_EQUAL(vw_lease_allocate(&m->lease, UINT64_MAX, &offset), -ENOSPC);
  CHECK_EQUAL(vw_lease_allocate(&m->lease, UINT64_MAX - 62, &offset), -ENOSPC);
  CHECK_EQUAL(vw_lease_allocate(&m->lease, (1 << 20) + 1, &offset), -ENOSPC);
  CHECK(allocate(m, 1 << 20));
  CHECK(!allocate(m, 0));
  end(m);
}

static void test_regions_that_can_not_be(void) {
  vw_lease lease;
  CHECK_EQUAL(vw_lease_init(&lease, 0, 0), -EINVAL);
  CHECK_EQUAL(vw_lease_init(&lease, 1, 64), -EINVAL);
  CHECK_EQUAL(vw_lease_init(&lease, 0, 65), -EINVAL);
  CHECK_EQUAL(vw_lease_init(&lease, 0, VW_LEASE_MAX + 64), -EINVAL);
  CHECK_EQUAL(vw_lease_init(&lease, UINT64_MAX - 63, 128), -EINVAL);
  vw_lease_destroy(&lease);
}

static void test_the_largest_region(void) {
  vw_lease lease;
  uint64_t offset, size;
  CHECK_EQUAL(vw_lease_init(&lease, 0, VW_LEASE_MAX), 0);
  CHECK_EQUAL(vw_lease_largest_free(&lease), VW_LEASE_MAX);
  CHECK_EQUAL(vw_lease_allocate(&lease, VW_LEASE_MAX, &offset), 0);
  CHECK_EQUAL(vw_lease_free(&lease, offset, &size), 0);
  CHECK_EQUAL(vw_lease_allocate(&lease, VW_LEASE_MAX - 64, &offset), 0);
  CHECK_EQUAL(vw_lease_largest_free(&lease), 64);
  vw_lease_destroy(&lease);
}

static void test_smallest_region(void) {
  model *m = &shared_model;
  begin(m, 64);
  CHECK(allocate(m, 0));
  CHECK(!allocate(m, 0));
  end(m);
}

int main(void) {
  PASS(test_random_traffic);
  PASS(test_filled_to_the_last_granule);
  PASS(test_a_fit_in_its_own_class_is_found);
  PASS(test_what_is_not_live_is_not_freed);
  PASS(test_sizes_that_can_not_be);
  PASS(test_regions_that_can_not_be);
  PASS(test_the_largest_region);
  PASS(test_smallest_region);
}
