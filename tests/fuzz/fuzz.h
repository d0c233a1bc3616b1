/* What the fuzz targets are made with.
 *
 * A target is one file with libFuzzer's entry point, LLVMFuzzerTestOneInput: bytes in, and a trap if our code
 * does with them what it must not. driver.c calls it where there is no libFuzzer. The bytes are a program for the
 * target: they are drawn as numbers, of which most are small or close to where something ends. */
#ifndef VW_FUZZ_H
#define VW_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define FUZZ_CHECK(condition)                                                                     \
  do {                                                                                            \
    if (!(condition)) {                                                                           \
      fprintf(stderr, "%s:%d: %s: FUZZ_CHECK(%s) failed\n", __FILE__, __LINE__, __func__, #condition); \
      abort();                                                                                    \
    }                                                                                             \
  } while (0)

typedef struct {
  const uint8_t *at;
  size_t left;
} fuzz_input;

/* Zeros behind the end. */
static inline uint8_t fuzz_byte(fuzz_input *input) {
  if (!input->left) return 0;
  input->left--;
  return *input->at++;
}

static inline uint64_t fuzz_word(fuzz_input *input) {
  uint64_t value = 0;
  for (int i = 0; i < 8; i++) value |= (uint64_t)fuzz_byte(input) << 8 * i;
  return value;
}

/* A number that is small, a power of two or a sum of two, near one of the `marks`, or any. */
static inline uint64_t fuzz_number(fuzz_input *input, const uint64_t *marks, size_t count) {
  uint8_t kind = fuzz_byte(input);
  if (kind < 96) return kind % 8;
  if (kind < 128) return fuzz_byte(input);
  int8_t slack = (int8_t)fuzz_byte(input);
  if (kind < 160) return (UINT64_C(1) << (kind & 31)) * (slack & 1 ? UINT64_C(1) << 32 : 1) + (uint64_t)(slack / 16);
  if (kind < 240 && count) return marks[kind % count] + (uint64_t)(int64_t)slack * (kind & 8 ? 1 : 64);
  return fuzz_word(input);
}

/* libFuzzer's own names. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
