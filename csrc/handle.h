/* Tensor handles: where a tensor lies in the arena, and the one check of whether that is so.
 *
 * Pure functions of their arguments. Run anywhere: supervisor on what a hostile worker sent,
 * worker on what a supervisor sent. */
#ifndef VW_HANDLE_H
#define VW_HANDLE_H

#include <stdbool.h>
#include <stdint.h>

#define VW_MAX_NDIM 32

/* As `DType` in proto/control.proto. */
enum vw_dtype {
  VW_DTYPE_NONE = 0,
  VW_BOOL = 1,
  VW_U8 = 2,
  VW_U16 = 3,
  VW_U32 = 4,
  VW_U64 = 5,
  VW_I8 = 6,
  VW_I16 = 7,
  VW_I32 = 8,
  VW_I64 = 9,
  VW_F16 = 10,
  VW_BF16 = 11,
  VW_F32 = 12,
  VW_F64 = 13,
  VW_F8_E4M3FN = 14,
  VW_F8_E5M2 = 15,
  VW_C64 = 16,
  VW_C128 = 17,
  VW_DTYPE_COUNT = 18,
};

enum vw_encoding { VW_RAW = 0, VW_ARROW_IPC = 1, VW_ENCODING_COUNT = 2 };

typedef struct vw_handle {
  uint64_t offset; /* from the arena's first byte */
  uint64_t nbytes;
  uint32_t dtype;
  uint32_t encoding;
  uint32_t ndim;
  bool strided; /* false: C order, strides unused */
  int64_t shape[VW_MAX_NDIM];
  int64_t strides[VW_MAX_NDIM]; /* in elements */
} vw_handle;

/* What is wrong with a handle, in the order in which it is looked for. */
enum vw_problem {
  VW_OK = 0,
  VW_BAD_ENCODING,
  VW_BAD_ALIGNMENT,
  VW_OUT_OF_REGION, /* found: its end, saturated; accepted: the region's */
  VW_ARROW_HAS_SHAPE,
  VW_BAD_DTYPE,
  VW_BAD_NDIM,
  VW_BAD_SHAPE,  /* a negative dimension; found: its index */
  VW_BAD_STRIDE, /* a negative stride, or not one a dimension; found: its index */
  VW_TOO_LARGE,  /* the product of the shape overflows */
  VW_SIZE_MISMATCH, /* C order: found shape x itemsize, accepted nbytes */
  VW_EXTENT,        /* strided: found bytes reached, accepted nbytes */
};

typedef struct vw_verdict {
  enum vw_problem problem;
  uint64_t found;
  uint64_t accepted;
} vw_verdict;

/* Bytes of one element; 0 for an unknown dtype. */
uint32_t vw_itemsize(uint32_t dtype);

/* Whether `handle` is well-formed and lies in [region_offset, region_offset + region_size). */
vw_verdict vw_handle_check(const vw_handle *handle, uint64_t region_offset, uint64_t region_size);

#endif
