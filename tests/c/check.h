/* What the C tests share. A failed check says where and what, and ends its process with status 1, so
 * that a child's failure reaches the parent as its exit status. */
#ifndef VW_TESTS_CHECK_H
#define VW_TESTS_CHECK_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                                                     \
  do {                                                                                                       \
    if (!(condition)) {                                                                                      \
      fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__, __LINE__, __func__, #condition);                \
      _exit(1);                                                                                              \
    }                                                                                                        \
  } while (0)

/* Integers only. */
#define CHECK_EQ(found, expected)                                                                            \
  do {                                                                                                       \
    long long found_ = (long long)(found), expected_ = (long long)(expected);                                \
    if (found_ != expected_) {                                                                               \
      fprintf(stderr, "%s:%d: %s: %s is %lld, not %lld\n", __FILE__, __LINE__, __func__, #found, found_,     \
              expected_);                                                                                    \
      _exit(1);                                                                                              \
    }                                                                                                        \
  } while (0)

/* Runs what can't be undone in a process of its own. The wait status of waitpid(2). */
static inline int in_child(void (*body)(void *), void *argument) {
  fflush(NULL);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    body(argument);
    _exit(0);
  }
  int status = -1;
  while (waitpid(child, &status, 0) < 0) CHECK(errno == EINTR);
  return status;
}

#endif
