/* DLPack: tensors for other frameworks to adopt without a copy. The structs are the specification's,
 * https://dmlc.github.io/dlpack/latest/c_api.html, in both their forms: the first one, which travels
 * in "dltensor" capsules and which everybody reads, and version 1's, which DLPack 1.3's exchange table
 * takes from C to C. */
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

typedef struct vw_dl_version {
  uint32_t major;
  uint32_t minor;
} vw_dl_version;

/* DLTensor */
typedef struct vw_dl_tensor {
  void *data;
  vw_dl_device device;
  int32_t ndim;
  vw_dl_dtype dtype;
  int64_t *shape;
  int64_t *strides; /* in elements */
  uint64_t byte_offset;
} vw_dl_tensor;

/* Not of the specification: what a tensor's maker needs when it ends. */
typedef struct vw_dl_keep {
  void *arena; /* a held vw_arena, or NULL */
  void *owner; /* a counted reference to a Python object, or NULL */
} vw_dl_keep;

/* DLManagedTensor, and what is kept behind it. */
typedef struct vw_dl_managed {
  vw_dl_tensor tensor;
  void *context; /* manager_ctx; unused */
  void (*deleter)(struct vw_dl_managed *);
  vw_dl_keep keep;
} vw_dl_managed;

/* DLManagedTensorVersioned, and what is kept behind it. */
typedef struct vw_dl_versioned {
  vw_dl_version version;
  void *context; /* manager_ctx; unused */
  void (*deleter)(struct vw_dl_versioned *);
  uint64_t flags; /* 0. Read-only memory is not said to be so: torch has no such tensors, and the MMU has */
  vw_dl_tensor tensor;
  vw_dl_keep keep;
} vw_dl_versioned;

/* The beginning of DLPackExchangeAPI. Functions return 0, or -1 with a Python exception set. */
typedef struct vw_dl_exchange {
  vw_dl_version version;
  struct vw_dl_exchange *previous;
  void *allocate;
  int (*from_object)(void *object, vw_dl_versioned **tensor);
  int (*to_object)(vw_dl_versioned *tensor, void **object); /* takes the tensor over. With the GIL */
  int (*look_at)(void *object, vw_dl_tensor *tensor);       /* borrows what the object has. With the GIL */
} vw_dl_exchange;

_Static_assert(sizeof(vw_dl_tensor) == 48, "DLTensor");
_Static_assert(offsetof(vw_dl_managed, deleter) == 56, "DLManagedTensor.deleter");
_Static_assert(offsetof(vw_dl_versioned, deleter) == 16, "DLManagedTensorVersioned.deleter");
_Static_assert(offsetof(vw_dl_versioned, tensor) == 32, "DLManagedTensorVersioned.dl_tensor");
_Static_assert(offsetof(vw_dl_exchange, to_object) == 32, "managed_tensor_to_py_object_no_sync");
_Static_assert(offsetof(vw_dl_exchange, look_at) == 40, "dltensor_from_py_object_no_sync");

/* A managed tensor over `data`, shape and strides behind it in the same allocation; NULL when there
 * is no memory. `handle` must have passed vw_handle_check. Whoever adopts it calls `deleter` once, from
 * any thread, which gives up what is kept and then calls free(). Need no GIL. */
vw_dl_managed *vw_dl_new(const vw_handle *handle, void *data, void (*deleter)(vw_dl_managed *));
vw_dl_versioned *vw_dl_new_versioned(const vw_handle *handle, void *data, void (*deleter)(vw_dl_versioned *));

/* The other way: the handle of a tensor in this process's memory, all but its offset, and in *address where it
 * begins. 0: no handle can say what it is: not on the CPU, without elements, of another dtype, strided
 * backwards, or of more dimensions or bytes than there may be. */
int vw_dl_describe(const vw_dl_tensor *tensor, vw_handle *handle, const void **address);

#endif
