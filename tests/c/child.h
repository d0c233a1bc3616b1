/* For tests of what can't be undone: a function run in a process of its own. */
#ifndef VW_TEST_CHILD_H
#define VW_TEST_CHILD_H

#include <errno.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

/* The wait status; 0 when `body` returned, and every CHECK in it held. */
static inline int in_child(void (*body)(void *), void *argument) {
  fflush(NULL);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    alarm(60);
    body(argument);
    _exit(0);
  }
  int status = -1;
  while (waitpid(child, &status, 0) < 0) CHECK_EQUAL(errno, EINTR);
  return status;
}

/* PASS for a function that needs a process of its own. */
#define IN_CHILD(test)                                                                                       \
  do {                                                                                                       \
    CHECK_EQUAL(in_child(test, NULL), 0);                                                                    \
    printf("ok %s\n", #test);                                                                                \
    fflush(stdout);                                                                                          \
  } while (0)

#endif
