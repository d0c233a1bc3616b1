/* DLPack capsules over arena memory. The structs follow the DLPack specification, version 0.x
 * ("dltensor" capsules): https://dmlc.github.io/dlpack/latest/c_api.html */
#ifndef VW_DLPACK_H
#define VW_DLPACK_H

#include <stddef.h>
#include <stdint.h>

#include "handle.h"

typedef struct vw_dl_device {
  int32_t type; /* 1: CPU */
  int32_t id;
} vw_dl_device;

typedef struct vw_dl_dtype {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
} vw_dl_dtype;

typedef struct vw_dl_tensor {
  void *data;
  vw_dl_device device;
  int32_t ndim;
  vw_dl_dtype dtype;
  int64_t *shape;
  int64_t *strides;
  uint64_t byte_offset;
} vw_dl_tensor;

/* The specification's DLManagedTensor, and behind it what its maker keeps for the deleter. */
typedef struct vw_dl_managed {
  vw_dl_tensor tensor;
  void *context; /* `manager_ctx`; unused */
  void (*deleter)(struct vw_dl_managed *);
  void *arena;
  void *owner;
} vw_dl_managed;

_Static_assert(sizeof(vw_dl_tensor) == 48, "DLTensor");
_Static_assert(offsetof(vw_dl_managed, deleter) == 56, "DLManagedTensor.deleter");

/* A managed tensor over `data`, shape and strides behind it in the same allocation; NULL when there
 * is no memory. `handle` must have passed vw_handle_check. Whoever adopts it calls `deleter` once, from
 * any thread, which gives up `arena` and `owner` and then calls vw_dl_free. Needs no GIL. */
vw_dl_managed *vw_dl_new(const vw_handle *handle, void *data, void (*deleter)(vw_dl_managed *));

/* Frees what vw_dl_new made. Needs no GIL. */
void vw_dl_free(vw_dl_managed *managed);

#endif
