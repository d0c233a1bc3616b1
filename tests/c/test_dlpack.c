/* DLPack structs: what is filled in, and that one free() takes it all back. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "dlpack.h"

static int deleted;

static void delete(vw_dl_managed *managed) {
  deleted++;
  free(managed);
}

static void delete_versioned(vw_dl_versioned *managed) {
  deleted++;
  free(managed);
}

static void test_dtypes(void) {
  static const vw_dl_dtype expected[VW_DTYPE_COUNT] = {
      {0, 0, 0},  {6, 8, 1},  {1, 8, 1},  {1, 16, 1}, {1, 32, 1}, {1, 64, 1},  {0, 8, 1},  {0, 16, 1}, {0, 32, 1},
      {0, 64, 1}, {2, 16, 1}, {4, 16, 1}, {2, 32, 1}, {2, 64, 1}, {10, 8, 1}, {12, 8, 1}, {5, 64, 1}, {5, 128, 1},
  };
  for (uint32_t dtype = 1; dtype < VW_DTYPE_COUNT; dtype++) {
    vw_handle handle = {.dtype = dtype, .ndim = 1, .shape = {1}};
    vw_dl_managed *managed = vw_dl_new(&handle, &handle, delete);
    CHECK(!memcmp(&managed->tensor.dtype, &expected[dtype], sizeof expected[dtype]));
    CHECK_EQUAL(managed->tensor.dtype.bits, 8 * vw_itemsize(dtype));
    managed->deleter(managed);
  }
}

static void test_c_order(void) {
  int data = 0;
  vw_handle handle = {.dtype = VW_F32, .ndim = 4, .shape = {2, 3, 1, 5}};
  vw_dl_managed *managed = vw_dl_new(&handle, &data, delete);
  const vw_dl_tensor *tensor = &managed->tensor;
  CHECK(tensor->data == &data && tensor->byte_offset == 0);
  CHECK(tensor->device.type == 1 && tensor->device.id == 0);
  CHECK_EQUAL(tensor->ndim, 4);
  CHECK(!memcmp(tensor->shape, (int64_t[]){2, 3, 1, 5}, 32));
  CHECK(!memcmp(tensor->strides, (int64_t[]){15, 5, 5, 1}, 32));
  CHECK(!managed->keep.arena && !managed->keep.owner && !managed->context);
  deleted = 0;
  managed->deleter(managed);
  CHECK_EQUAL(deleted, 1);
}

static void test_given_strides(void) {
  vw_handle handle = {.dtype = VW_U8, .ndim = 2, .strided = true, .shape = {2, 3}, .strides = {0, 7}};
  vw_dl_versioned *managed = vw_dl_new_versioned(&handle, &handle, delete_versioned);
  CHECK(managed->version.major == 1 && managed->flags == 0);
  CHECK(!memcmp(managed->tensor.shape, (int64_t[]){2, 3}, 16));
  CHECK(!memcmp(managed->tensor.strides, (int64_t[]){0, 7}, 16));
  CHECK(!managed->keep.arena && !managed->keep.owner && !managed->context);
  managed->deleter(managed);
}

static void test_few_and_many_dimensions(void) {
  vw_handle handle = {.dtype = VW_U8};
  vw_dl_managed *scalar = vw_dl_new(&handle, &handle, delete);
  CHECK_EQUAL(scalar->tensor.ndim, 0);
  scalar->deleter(scalar);
  handle.ndim = VW_MAX_NDIM;
  for (int i = 0; i < VW_MAX_NDIM; i++) handle.shape[i] = i % 8 ? 1 : 2;
  vw_dl_versioned *managed = vw_dl_new_versioned(&handle, &handle, delete_versioned);
  CHECK_EQUAL(managed->tensor.shape[24], 2);
  CHECK_EQUAL(managed->tensor.strides[31], 1);
  CHECK_EQUAL(managed->tensor.strides[24], 1);
  CHECK_EQUAL(managed->tensor.strides[0], 8);
  managed->deleter(managed);
}

static void test_no_elements(void) {
  /* Strides as torch gives them to an empty tensor; the largest shape that the check lets through. */
  vw_handle handle = {.dtype = VW_U8, .ndim = 3, .shape = {0, INT64_MAX, 1}};
  CHECK_EQUAL(vw_handle_check(&handle, 0, 64).problem, VW_OK);
  vw_dl_managed *managed = vw_dl_new(&handle, NULL, delete);
  CHECK(!memcmp(managed->tensor.strides, (int64_t[]){INT64_MAX, 1, 1}, 24));
  managed->deleter(managed);
}

static vw_handle described(int64_t *shape, int64_t *strides, int ndim, int expected) {
  vw_dl_tensor tensor = {.data = shape, .device = {1, 0}, .ndim = ndim, .dtype = {2, 32, 1}, .shape = shape, .strides = strides, .byte_offset = 8};
  vw_handle handle = {0};
  const void *address = NULL;
  CHECK_EQUAL(vw_dl_describe(&tensor, &handle, &address), expected);
  if (expected) CHECK(address == (const char *)shape + 8);
  return handle;
}

static void test_describe(void) {
  vw_handle handle = described((int64_t[]){2, 3, 1, 5}, (int64_t[]){15, 5, 99, 1}, 4, 1); /* of 1 element: any stride */
  CHECK(handle.dtype == VW_F32 && handle.ndim == 4 && !handle.strided && handle.nbytes == 120 && handle.shape[1] == 3);
  handle = described((int64_t[]){2, 3}, (int64_t[]){1, 4}, 2, 1);
  CHECK(handle.strided && handle.nbytes == 40 && handle.strides[1] == 4);
  handle = described((int64_t[]){4}, (int64_t[]){0}, 1, 1); /* expanded */
  CHECK(handle.strided && handle.nbytes == 4);
  handle = described((int64_t[]){3, 4}, NULL, 2, 1);
  CHECK(!handle.strided && handle.nbytes == 48);
  CHECK_EQUAL(described(NULL, NULL, 0, 1).nbytes, 4);
}

static void test_what_no_handle_can_say(void) {
  described((int64_t[]){0, 3}, (int64_t[]){3, 1}, 2, 0);
  described((int64_t[]){-1}, (int64_t[]){1}, 1, 0);
  described((int64_t[]){4}, (int64_t[]){-1}, 1, 0);
  described((int64_t[]){INT64_MAX, 4}, (int64_t[]){4, 1}, 2, 0);
  described((int64_t[]){2, 2}, (int64_t[]){INT64_MAX, INT64_MAX}, 2, 0);
  described((int64_t[]){1}, (int64_t[]){1}, VW_MAX_NDIM + 1, 0);
  int64_t one = 1;
  vw_dl_tensor tensor = {.data = &one, .device = {2, 0}, .ndim = 1, .dtype = {2, 32, 1}, .shape = &one, .strides = &one};
  vw_handle handle;
  const void *address;
  CHECK_EQUAL(vw_dl_describe(&tensor, &handle, &address), 0); /* on a GPU */
  tensor.device.type = 1;
  CHECK_EQUAL(vw_dl_describe(&tensor, &handle, &address), 1);
  tensor.dtype.lanes = 2;
  CHECK_EQUAL(vw_dl_describe(&tensor, &handle, &address), 0);
  tensor.dtype = (vw_dl_dtype){2, 8, 1};
  CHECK_EQUAL(vw_dl_describe(&tensor, &handle, &address), 0);
}

int main(void) {
  PASS(test_dtypes);
  PASS(test_c_order);
  PASS(test_given_strides);
  PASS(test_few_and_many_dimensions);
  PASS(test_no_elements);
  PASS(test_describe);
  PASS(test_what_no_handle_can_say);
}
