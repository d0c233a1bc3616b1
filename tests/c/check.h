/* The C tests' whole framework: CHECK ends the program at the first condition that doesn't hold.
 *
 * A test program is a list of static void functions and a main that calls PASS(name) for each: one
 * line is printed for each that passed, so that the last line before a crash names its predecessor. */
#ifndef VW_TEST_CHECK_H
#define VW_TEST_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) {                                                              \
      fprintf(stderr, "%s:%d: %s: CHECK(%s) failed\n", __FILE__, __LINE__, __func__, #condition); \
      exit(1);                                                                       \
    }                                                                                \
  } while (0)

/* The same for two integers, with their values. */
#define CHECK_EQUAL(actual, expected)                                                               \
  do {                                                                                              \
    long long actual_ = (long long)(actual), expected_ = (long long)(expected);                     \
    if (actual_ != expected_) {                                                                     \
      fprintf(stderr, "%s:%d: %s: %s is %lld, not %lld\n", __FILE__, __LINE__, __func__, #actual, \
              actual_, expected_);                                                                  \
      exit(1);                                                                                      \
    }                                                                                               \
  } while (0)

/* Runs a test function, then says so. */
#define PASS(test)              \
  do {                          \
    test();                     \
    printf("ok %s\n", #test);   \
    fflush(stdout);             \
  } while (0)

#endif
