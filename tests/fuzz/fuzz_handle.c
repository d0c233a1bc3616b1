/* Handles: any numbers, against a check in numbers that can't overflow; what is accepted becomes a DLPack tensor
 * whose furthest byte is touched. */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "dlpack.h"
#include "fuzz.h"
#include "handle.h"

typedef unsigned __int128 wide;
#define ENDLESS ((wide)1 << 64) /* where sums and products stop; times 2^63, it still fits */

static wide bounded(wide value) { return value < ENDLESS ? value : ENDLESS; }

/* Whether all of it is true. */
static bool holds(const vw_handle *handle, uint64_t region, uint64_t region_size) {
  if (handle->encoding > VW_ARROW_IPC || handle->offset % 64) return false;
  if (handle->offset < region || (wide)handle->offset + handle->nbytes > (wide)region + region_size) return false;
  if (handle->encoding == VW_ARROW_IPC) return handle->dtype == 0 && handle->ndim == 0 && !handle->strided;
  uint64_t itemsize = vw_itemsize(handle->dtype);
  if (!itemsize || handle->ndim > VW_MAX_NDIM) return false;
  wide count = 1, last = 0;
  bool empty = false;
  for (uint32_t i = 0; i < handle->ndim; i++) {
    if (handle->shape[i] < 0 || (handle->strided && handle->strides[i] < 0)) return false;
    if (handle->shape[i] == 0) empty = true;
    else count = bounded(count * (uint64_t)handle->shape[i]);
  }
  if (count > INT64_MAX) return false;
  if (empty) count = 0;
  if (count * itemsize > INT64_MAX) return false;
  if (!handle->strided) return count * itemsize == handle->nbytes;
  if (!count) return true;
  for (uint32_t i = 0; i < handle->ndim; i++)
    last = bounded(last + bounded((wide)(handle->shape[i] - 1) * (uint64_t)handle->strides[i]));
  return (last + 1) * itemsize <= handle->nbytes;
}

static void ended(vw_dl_managed *managed) { free(managed); }

/* As a consumer of the tensor would: by shape and strides alone. */
static void use(const vw_handle *handle) {
  uint8_t *memory = malloc(handle->nbytes ? handle->nbytes : 1); /* no byte more than it may touch */
  FUZZ_CHECK(memory);
  memset(memory, 7, handle->nbytes);
  vw_dl_managed *managed = vw_dl_new(handle, memory, ended);
  FUZZ_CHECK(managed);
  const vw_dl_tensor *tensor = &managed->tensor;
  FUZZ_CHECK(tensor->ndim == (int32_t)handle->ndim);
  uint64_t last = 0, count = 1, itemsize = tensor->dtype.bits / 8u;
  FUZZ_CHECK(itemsize == vw_itemsize(handle->dtype));
  for (int32_t i = 0; i < tensor->ndim; i++) {
    FUZZ_CHECK(tensor->shape[i] == handle->shape[i]);
    if (tensor->shape[i]) last += (uint64_t)(tensor->shape[i] - 1) * (uint64_t)tensor->strides[i];
    else count = 0;
  }
  if (count)
    for (uint64_t i = 0; i < itemsize; i++) FUZZ_CHECK(memory[last * itemsize + i] == 7);
  managed->deleter(managed);
  free(memory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  fuzz_input input = {data, size};
  /* An ordinary lease, one that ends where numbers do, none at all. */
  static const uint64_t regions[][2] = {
      {2u << 20, 1u << 20}, {UINT64_MAX - 127, 64}, {0, 0}, {1u << 21, UINT64_MAX}, {64, 4096}};
  uint8_t first = fuzz_byte(&input);
  const uint64_t *region = regions[first % 8 < 5 ? first % 8 : 0];
  const uint64_t marks[] = {region[0], region[0] + region[1], UINT64_MAX - 63, 0, INT64_MAX, UINT64_C(1) << 63};
  enum { MARKS = sizeof marks / sizeof *marks };
  vw_handle handle = {.encoding = (uint32_t)(first < 224 ? first >= 200 : fuzz_word(&input))};
  handle.offset = fuzz_number(&input, marks, MARKS);
  if (first & 8) handle.offset = region[0] + handle.offset % 32 * 64;
  uint8_t dtype = fuzz_byte(&input);
  handle.dtype = dtype < 250 ? dtype % 20 : (uint32_t)fuzz_word(&input);
  uint8_t ndim = fuzz_byte(&input);
  handle.ndim = ndim < 250 ? ndim % 6 : ndim < 253 ? ndim - 250u + 31u : (uint32_t)fuzz_word(&input);
  handle.strided = fuzz_byte(&input) & 1;
  uint64_t count = 1;
  for (uint32_t i = 0; i < handle.ndim && i < VW_MAX_NDIM; i++) {
    handle.shape[i] = (int64_t)fuzz_number(&input, marks, MARKS);
    count *= (uint64_t)handle.shape[i];
    if (handle.strided) handle.strides[i] = (int64_t)fuzz_number(&input, marks, MARKS);
  }
  /* Half of them honest: else the size would hide what else is wrong. */
  handle.nbytes = fuzz_byte(&input) & 1 ? count * vw_itemsize(handle.dtype) : fuzz_number(&input, marks, MARKS);

  vw_verdict verdict = vw_handle_check(&handle, region[0], region[1]);
  FUZZ_CHECK((verdict.problem == VW_OK) == holds(&handle, region[0], region[1]));
  if (verdict.problem == VW_OK && handle.encoding == VW_RAW && handle.nbytes <= 1u << 16) use(&handle);
  return 0;
}
