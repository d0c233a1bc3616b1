#include "dlpack.h"

#include <stdlib.h>

/* DLDataTypeCode */
enum { DL_INT = 0, DL_UINT = 1, DL_FLOAT = 2, DL_BFLOAT = 4, DL_COMPLEX = 5, DL_BOOL = 6, DL_F8_E4M3FN = 10, DL_F8_E5M2 = 12 };

static const vw_dl_dtype dtypes[VW_DTYPE_COUNT] = {
    [VW_BOOL] = {DL_BOOL, 8, 1},       [VW_U8] = {DL_UINT, 8, 1},        [VW_U16] = {DL_UINT, 16, 1},
    [VW_U32] = {DL_UINT, 32, 1},       [VW_U64] = {DL_UINT, 64, 1},      [VW_I8] = {DL_INT, 8, 1},
    [VW_I16] = {DL_INT, 16, 1},        [VW_I32] = {DL_INT, 32, 1},       [VW_I64] = {DL_INT, 64, 1},
    [VW_F16] = {DL_FLOAT, 16, 1},      [VW_BF16] = {DL_BFLOAT, 16, 1},   [VW_F32] = {DL_FLOAT, 32, 1},
    [VW_F64] = {DL_FLOAT, 64, 1},      [VW_F8_E4M3FN] = {DL_F8_E4M3FN, 8, 1}, [VW_F8_E5M2] = {DL_F8_E5M2, 8, 1},
    [VW_C64] = {DL_COMPLEX, 64, 1},    [VW_C128] = {DL_COMPLEX, 128, 1},
};

/* `shape` has room for shape and strides. */
static void fill(vw_dl_tensor *tensor, const vw_handle *handle, void *data, int64_t *shape) {
  uint32_t ndim = handle->ndim;
  int64_t *strides = shape + ndim; /* always given: version 1.2 no longer takes NULL for C order */
  int64_t step = 1;
  for (uint32_t i = ndim; i-- > 0;) {
    shape[i] = handle->shape[i];
    strides[i] = handle->strided ? handle->strides[i] : step;
    if (!handle->strided && shape[i] > 1) step *= shape[i];
  }
  *tensor = (vw_dl_tensor){
      .data = data,
      .device = {.type = 1, .id = 0},
      .ndim = (int32_t)ndim,
      .dtype = dtypes[handle->dtype],
      .shape = shape,
      .strides = strides,
  };
}

vw_dl_managed *vw_dl_new(const vw_handle *handle, void *data, void (*deleter)(vw_dl_managed *)) {
  vw_dl_managed *managed = malloc(sizeof *managed + 2 * sizeof(int64_t) * handle->ndim);
  if (!managed) return NULL;
  *managed = (vw_dl_managed){.deleter = deleter};
  fill(&managed->tensor, handle, data, (int64_t *)(managed + 1));
  return managed;
}

vw_dl_versioned *vw_dl_new_versioned(const vw_handle *handle, void *data, void (*deleter)(vw_dl_versioned *)) {
  vw_dl_versioned *managed = malloc(sizeof *managed + 2 * sizeof(int64_t) * handle->ndim);
  if (!managed) return NULL;
  *managed = (vw_dl_versioned){.version = {.major = 1, .minor = 0}, .deleter = deleter};
  fill(&managed->tensor, handle, data, (int64_t *)(managed + 1));
  return managed;
}

static uint32_t dtype_of(vw_dl_dtype dtype) {
  for (uint32_t i = 1; i < VW_DTYPE_COUNT; i++)
    if (dtypes[i].code == dtype.code && dtypes[i].bits == dtype.bits && dtype.lanes == 1) return i;
  return VW_DTYPE_NONE;
}

int vw_dl_describe(const vw_dl_tensor *tensor, vw_handle *handle, const void **address) {
  uint32_t dtype = dtype_of(tensor->dtype);
  if (tensor->device.type != 1 || !dtype || tensor->ndim < 0 || tensor->ndim > VW_MAX_NDIM) return 0;
  uint32_t ndim = (uint32_t)tensor->ndim;
  uint64_t last = 0; /* index of the furthest element */
  int64_t step = 1;
  handle->strided = false;
  for (uint32_t i = ndim; i-- > 0;) {
    int64_t size = tensor->shape[i], stride = tensor->strides ? tensor->strides[i] : step, reach;
    if (size <= 0 || stride < 0 || __builtin_mul_overflow(size - 1, stride, &reach) ||
        __builtin_add_overflow(last, (uint64_t)reach, &last) || __builtin_mul_overflow(step, size, &step))
      return 0;
    if (size > 1 && stride != step / size) handle->strided = true;
    handle->shape[i] = size;
    handle->strides[i] = stride;
  }
  if (last >= UINT64_MAX / 16) return 0;
  handle->offset = 0;
  handle->nbytes = (last + 1) * vw_itemsize(dtype);
  handle->dtype = dtype;
  handle->encoding = VW_RAW;
  handle->ndim = ndim;
  *address = (const char *)tensor->data + tensor->byte_offset;
  return 1;
}
