#include "handle.h"

#include "layout.h"

static const uint8_t itemsizes[VW_DTYPE_COUNT] = {
    [VW_BOOL] = 1, [VW_U8] = 1,  [VW_U16] = 2,  [VW_U32] = 4,      [VW_U64] = 8,     [VW_I8] = 1,
    [VW_I16] = 2,  [VW_I32] = 4, [VW_I64] = 8,  [VW_F16] = 2,      [VW_BF16] = 2,    [VW_F32] = 4,
    [VW_F64] = 8,  [VW_C64] = 8, [VW_C128] = 16, [VW_F8_E4M3FN] = 1, [VW_F8_E5M2] = 1,
};

uint32_t vw_itemsize(uint32_t dtype) { return dtype < VW_DTYPE_COUNT ? itemsizes[dtype] : 0; }

static vw_verdict verdict(enum vw_problem problem, uint64_t found, uint64_t accepted) {
  return (vw_verdict){.problem = problem, .found = found, .accepted = accepted};
}

static uint64_t saturated_sum(uint64_t a, uint64_t b) {
  uint64_t sum;
  return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

/* Elements of the shape, or a verdict. */
static vw_verdict count_elements(const vw_handle *handle, uint64_t *count) {
  *count = 1;
  bool empty = false;
  for (uint32_t i = 0; i < handle->ndim; i++) {
    if (handle->shape[i] < 0) return verdict(VW_BAD_SHAPE, i, 0);
    /* A zero anywhere empties the tensor, but must not hide an overflow from who multiplies the rest. */
    if (handle->shape[i] == 0) empty = true;
    else if (__builtin_mul_overflow(*count, (uint64_t)handle->shape[i], count))
      return verdict(VW_TOO_LARGE, 0, 0);
  }
  if (*count > INT64_MAX) return verdict(VW_TOO_LARGE, 0, 0);
  if (empty) *count = 0;
  return verdict(VW_OK, 0, 0);
}

/* Bytes from the first element to behind the furthest, or a verdict. */
static vw_verdict strided_extent(const vw_handle *handle, uint64_t count, uint64_t itemsize, uint64_t *extent) {
  uint64_t last = 0; /* index of the furthest element */
  for (uint32_t i = 0; i < handle->ndim; i++) {
    if (handle->strides[i] < 0) return verdict(VW_BAD_STRIDE, i, 0);
    if (count == 0) continue;
    uint64_t reach;
    if (__builtin_mul_overflow((uint64_t)(handle->shape[i] - 1), (uint64_t)handle->strides[i], &reach) ||
        __builtin_add_overflow(last, reach, &last))
      return verdict(VW_TOO_LARGE, 0, 0);
  }
  if (count == 0) {
    *extent = 0;
  } else if (__builtin_add_overflow(last, 1u, &last) || __builtin_mul_overflow(last, itemsize, extent)) {
    return verdict(VW_TOO_LARGE, 0, 0);
  }
  return verdict(VW_OK, 0, 0);
}

vw_verdict vw_handle_check(const vw_handle *handle, uint64_t region_offset, uint64_t region_size) {
  if (handle->encoding >= VW_ENCODING_COUNT) return verdict(VW_BAD_ENCODING, handle->encoding, 0);
  if (handle->offset % VW_HANDLE_ALIGN) return verdict(VW_BAD_ALIGNMENT, handle->offset, VW_HANDLE_ALIGN);
  if (handle->offset < region_offset || handle->nbytes > region_size ||
      handle->offset - region_offset > region_size - handle->nbytes)
    return verdict(VW_OUT_OF_REGION, saturated_sum(handle->offset, handle->nbytes),
                   saturated_sum(region_offset, region_size));

  if (handle->encoding == VW_ARROW_IPC) { /* dtype and shape are inside the stream */
    if (handle->dtype != VW_DTYPE_NONE || handle->ndim || handle->strided)
      return verdict(VW_ARROW_HAS_SHAPE, handle->dtype, 0);
    return verdict(VW_OK, 0, 0);
  }

  uint64_t itemsize = vw_itemsize(handle->dtype);
  if (!itemsize) return verdict(VW_BAD_DTYPE, handle->dtype, 0);
  if (handle->ndim > VW_MAX_NDIM) return verdict(VW_BAD_NDIM, handle->ndim, VW_MAX_NDIM);
  uint64_t count, size;
  vw_verdict result = count_elements(handle, &count);
  if (result.problem) return result;
  /* Whoever copies the tensor asks for this much, however little memory its strides reach. */
  if (__builtin_mul_overflow(count, itemsize, &size) || size > INT64_MAX) return verdict(VW_TOO_LARGE, 0, 0);
  if (handle->strided) {
    result = strided_extent(handle, count, itemsize, &size);
    if (result.problem) return result;
    return size > handle->nbytes ? verdict(VW_EXTENT, size, handle->nbytes) : result;
  }
  return size != handle->nbytes ? verdict(VW_SIZE_MISMATCH, size, handle->nbytes) : result;
}
