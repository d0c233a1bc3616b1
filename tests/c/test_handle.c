/* The one bounds check: what it lets through, and everything that it must not. */
#include <string.h>

#include "check.h"
#include "handle.h"

#define REGION_OFFSET (UINT64_C(2) << 20)
#define REGION_SIZE (UINT64_C(1) << 20)
#define BIG (INT64_C(1) << 62)

static vw_handle plain(uint64_t offset, uint64_t nbytes) {
  return (vw_handle){.offset = offset, .nbytes = nbytes, .dtype = VW_F32, .ndim = 1, .shape = {(int64_t)(nbytes / 4)}};
}

static vw_verdict check(vw_handle handle) { return vw_handle_check(&handle, REGION_OFFSET, REGION_SIZE); }

static void refused(vw_handle handle, enum vw_problem problem) {
  CHECK_EQUAL(check(handle).problem, problem);
}

static void accepted(vw_handle handle) { refused(handle, VW_OK); }

static void test_whole_region(void) {
  accepted(plain(REGION_OFFSET, REGION_SIZE));
  accepted(plain(REGION_OFFSET, 0));
  accepted(plain(REGION_OFFSET + REGION_SIZE, 0)); /* nothing, at the very end */
  accepted(plain(REGION_OFFSET + REGION_SIZE - 64, 64));
}

static void test_outside_the_region(void) {
  refused(plain(REGION_OFFSET - 64, 64), VW_OUT_OF_REGION);
  refused(plain(0, 64), VW_OUT_OF_REGION);
  refused(plain(REGION_OFFSET, REGION_SIZE + 4), VW_OUT_OF_REGION);
  refused(plain(REGION_OFFSET + REGION_SIZE - 64, 68), VW_OUT_OF_REGION);
  refused(plain(REGION_OFFSET + REGION_SIZE + 64, 0), VW_OUT_OF_REGION);
  refused(plain(UINT64_MAX - 63, 0), VW_OUT_OF_REGION);
}

static void test_sums_past_2_to_the_64(void) {
  vw_handle handle = plain(REGION_OFFSET, 64);
  handle.nbytes = UINT64_MAX; /* the sum is REGION_OFFSET - 1 */
  vw_verdict verdict = check(handle);
  CHECK_EQUAL(verdict.problem, VW_OUT_OF_REGION);
  CHECK(verdict.found == UINT64_MAX);
  CHECK(verdict.accepted == REGION_OFFSET + REGION_SIZE);
  handle.offset = UINT64_MAX - 63;
  handle.nbytes = REGION_OFFSET + 64; /* the sum is REGION_OFFSET */
  refused(handle, VW_OUT_OF_REGION);
  /* A region that itself reaches 2^64 */
  handle = plain(UINT64_MAX - 127, 64);
  CHECK_EQUAL(vw_handle_check(&handle, UINT64_MAX - 127, UINT64_MAX).problem, VW_OK);
  CHECK_EQUAL(vw_handle_check(&handle, UINT64_MAX - 63, UINT64_MAX).problem, VW_OUT_OF_REGION);
  handle = plain(0, 64);
  CHECK_EQUAL(vw_handle_check(&handle, 0, 0).problem, VW_OUT_OF_REGION);
}

static void test_alignment(void) {
  for (uint64_t i = 1; i < 64; i++) {
    vw_verdict verdict = check(plain(REGION_OFFSET + i, 64));
    CHECK_EQUAL(verdict.problem, VW_BAD_ALIGNMENT);
    CHECK_EQUAL(verdict.found, REGION_OFFSET + i);
    CHECK_EQUAL(verdict.accepted, 64);
  }
}

static void test_every_dtype(void) {
  static const uint8_t sizes[VW_DTYPE_COUNT] = {0, 1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8, 1, 1, 8, 16};
  for (uint32_t dtype = 0; dtype < VW_DTYPE_COUNT; dtype++) {
    vw_handle handle = {.offset = REGION_OFFSET, .nbytes = 6 * sizes[dtype], .dtype = dtype, .ndim = 2, .shape = {2, 3}};
    CHECK_EQUAL(vw_itemsize(dtype), sizes[dtype]);
    refused(handle, dtype ? VW_OK : VW_BAD_DTYPE);
    if (!dtype) continue;
    handle.nbytes++;
    refused(handle, VW_SIZE_MISMATCH);
    handle.nbytes -= 2;
    refused(handle, VW_SIZE_MISMATCH);
  }
  vw_handle handle = plain(REGION_OFFSET, 64);
  handle.dtype = VW_DTYPE_COUNT;
  refused(handle, VW_BAD_DTYPE);
  handle.dtype = UINT32_MAX;
  CHECK_EQUAL(check(handle).found, UINT32_MAX);
  CHECK_EQUAL(vw_itemsize(UINT32_MAX), 0);
}

static void test_encoding(void) {
  vw_handle handle = plain(REGION_OFFSET, 64);
  handle.encoding = VW_ENCODING_COUNT;
  refused(handle, VW_BAD_ENCODING);
  handle.encoding = VW_ARROW_IPC; /* with a dtype and a shape */
  refused(handle, VW_ARROW_HAS_SHAPE);
  handle.dtype = VW_DTYPE_NONE;
  refused(handle, VW_ARROW_HAS_SHAPE);
  handle.ndim = 0;
  accepted(handle);
  handle.strided = true;
  refused(handle, VW_ARROW_HAS_SHAPE);
  handle.strided = false;
  handle.nbytes = REGION_SIZE + 1;
  refused(handle, VW_OUT_OF_REGION);
}

static void test_shapes(void) {
  vw_handle scalar = {.offset = REGION_OFFSET, .nbytes = 4, .dtype = VW_F32};
  accepted(scalar);
  scalar.strided = true;
  accepted(scalar);
  vw_handle handle = plain(REGION_OFFSET, 64);
  handle.shape[0] = -16;
  refused(handle, VW_BAD_SHAPE);
  handle.shape[0] = INT64_MIN;
  refused(handle, VW_BAD_SHAPE);
  handle = plain(REGION_OFFSET, 4);
  handle.ndim = VW_MAX_NDIM;
  for (int i = 0; i < VW_MAX_NDIM; i++) handle.shape[i] = 1;
  accepted(handle);
  handle.ndim = VW_MAX_NDIM + 1;
  refused(handle, VW_BAD_NDIM);
  handle.ndim = UINT32_MAX;
  refused(handle, VW_BAD_NDIM);
}

static void test_huge_products(void) {
  /* 2^62 x 4 x 16 = 2^68: 0 modulo 2^64 */
  vw_handle handle = {.offset = REGION_OFFSET, .dtype = VW_U8, .ndim = 3, .shape = {BIG, 4, 16}};
  refused(handle, VW_TOO_LARGE);
  handle.shape[2] = 0; /* no elements, but whoever multiplies the others would overflow */
  refused(handle, VW_TOO_LARGE);
  /* 2^62 elements fit, their 2^65 bytes don't */
  handle = (vw_handle){.offset = REGION_OFFSET, .dtype = VW_F64, .ndim = 1, .shape = {BIG}};
  refused(handle, VW_TOO_LARGE);
  handle = (vw_handle){.offset = REGION_OFFSET, .dtype = VW_U8, .ndim = 2, .shape = {INT64_MAX, 2}};
  refused(handle, VW_TOO_LARGE);
  /* the same few bytes, seen as more of them than a copy could be asked for */
  handle = (vw_handle){.offset = REGION_OFFSET, .nbytes = 64, .dtype = VW_F64, .ndim = 1, .strided = true, .shape = {BIG}};
  refused(handle, VW_TOO_LARGE);
  handle.dtype = VW_U8;
  accepted(handle);
}

static void test_empty(void) {
  vw_handle handle = {.offset = REGION_OFFSET, .dtype = VW_F32, .ndim = 3, .shape = {7, 0, 5}};
  accepted(handle);
  handle.nbytes = 4;
  refused(handle, VW_SIZE_MISMATCH);
  handle.nbytes = 0;
  handle.strided = true;
  handle.strides[0] = handle.strides[1] = handle.strides[2] = INT64_MAX; /* of nothing: they lead nowhere */
  accepted(handle);
  handle.strides[1] = -1;
  refused(handle, VW_BAD_STRIDE);
}

static void test_strides(void) {
  /* Two rows of three, each row 100 elements from the other: 103 elements reached. */
  vw_handle handle = {.offset = REGION_OFFSET, .nbytes = 412, .dtype = VW_F32, .ndim = 2, .strided = true,
                      .shape = {2, 3}, .strides = {100, 1}};
  accepted(handle);
  handle.nbytes = 1 << 20; /* more memory than reached: fine */
  accepted(handle);
  handle.nbytes = 411;
  vw_verdict verdict = check(handle);
  CHECK_EQUAL(verdict.problem, VW_EXTENT);
  CHECK_EQUAL(verdict.found, 412);
  CHECK_EQUAL(verdict.accepted, 411);
  handle.strides[0] = 0; /* one row seen twice */
  accepted(handle);
  handle.strides[0] = -100;
  refused(handle, VW_BAD_STRIDE);
  handle.strides[0] = INT64_MIN;
  refused(handle, VW_BAD_STRIDE);
}

static void test_huge_strides(void) {
  vw_handle handle = {.offset = REGION_OFFSET, .nbytes = 64, .dtype = VW_F32, .ndim = 2, .strided = true,
                      .shape = {3, 3}, .strides = {INT64_MAX, 1}};
  refused(handle, VW_TOO_LARGE); /* the furthest is element 2 * (2^63 - 1) + 2 = 2^64: none, if that wraps */
  handle.strides[0] = handle.strides[1] = BIG; /* 2^64 elements */
  refused(handle, VW_TOO_LARGE);
  handle.shape[0] = handle.shape[1] = 1; /* strides that are never gone along */
  accepted(handle);
  handle = (vw_handle){.offset = REGION_OFFSET, .nbytes = 64, .dtype = VW_C128, .ndim = 1, .strided = true,
                       .shape = {2}, .strides = {INT64_C(1) << 60}}; /* (2^60 + 1) * 16 wraps to 16 */
  refused(handle, VW_TOO_LARGE);
}

int main(void) {
  PASS(test_whole_region);
  PASS(test_outside_the_region);
  PASS(test_sums_past_2_to_the_64);
  PASS(test_alignment);
  PASS(test_every_dtype);
  PASS(test_encoding);
  PASS(test_shapes);
  PASS(test_huge_products);
  PASS(test_empty);
  PASS(test_strides);
  PASS(test_huge_strides);
}
