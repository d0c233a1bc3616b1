/* The fault handler: it records where, and dies as it would have without it. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include "child.h"
#include "clock.h"
#include "fault.h"

#define SIZE ((size_t)1 << 20)

static vw_slot *slot; /* shared with the children */
static char *whole;   /* read-only: the arena from 0 */
static char *lease;   /* read-write: from 3 MiB of it */

static void install(void) {
  const vw_fault_region regions[] = {{(uintptr_t)whole, SIZE, 0}, {(uintptr_t)lease, SIZE, 3 * SIZE}};
  vw_slot_clear(slot);
  CHECK_EQUAL(vw_fault_install(slot, regions, 2), 0);
}

static int died_of(void (*body)(void *), void *argument) {
  int status = in_child(body, argument);
  return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}

static vw_slot_copy record(void) {
  vw_slot_copy copy;
  vw_slot_snapshot(slot, &copy);
  return copy;
}

static void write_at(void *where) {
  install();
  *(volatile char *)where = 1;
}

static void *write_in_thread(void *where) {
  *(volatile char *)where = 1;
  return NULL;
}

static void another_thread_writes(void *where) {
  pthread_t thread;
  install();
  CHECK_EQUAL(pthread_create(&thread, NULL, write_in_thread, where), 0);
  pthread_join(thread, NULL);
}

static void read_past_the_end_of_a_file(void *where) {
  install();
  (void)*(volatile char *)where;
}

#ifdef __SANITIZE_ADDRESS__
/* The handlers here are ours. Read by the sanitizer before main. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "handle_segv=0:handle_sigbus=0:use_sigaltstack=0"; }
#else
/* Not under the sanitizer, whose frames are too large. */
static volatile uintptr_t deepest = UINTPTR_MAX;

/* Each call's page is the next one's argument, so that the compiler can't make a loop of it. */
static uintptr_t go_deeper(volatile char *above, uintptr_t depth) {
  volatile char page[4096];
  page[0] = *above;
  uintptr_t below = depth < deepest ? go_deeper(page, depth + 1) : 0;
  return below + (uintptr_t)page[0];
}

static void overflow_the_stack(void *argument) {
  (void)argument;
  install();
  volatile char top = 1;
  go_deeper(&top, 0);
}
#endif

static void sent_from_outside(void *signal) {
  install();
  kill(getpid(), *(int *)signal);
  for (;;) pause();
}

static int told[2]; /* pipe: what the handler that was there before saw */

static void tell(int signal) {
  char byte = (char)signal;
  CHECK_EQUAL(write(told[1], &byte, 1), 1);
  /* Returns: the fault repeats, and meets the default action. */
}

static void with_a_handler_before(void *where) {
  struct sigaction before = {.sa_handler = tell, .sa_flags = (int)SA_RESETHAND};
  CHECK_EQUAL(sigaction(SIGSEGV, &before, NULL), 0);
  write_at(where);
}

static void install_twice(void *where) {
  const vw_fault_region nowhere = {(uintptr_t)lease, SIZE, 0};
  struct sigaction now;
  CHECK_EQUAL(vw_fault_install(slot, &nowhere, 1), 0);
  install();
  CHECK_EQUAL(sigaction(SIGSEGV, NULL, &now), 0);
  CHECK(now.sa_flags & SA_ONSTACK);
  *(volatile char *)where = 1;
}

static void test_recorded_where(void) {
  uint64_t start = vw_monotonic_ns();
  const size_t offsets[] = {0, 1, 4711, SIZE - 1};
  for (int i = 0; i < 4; i++) {
    CHECK_EQUAL(died_of(write_at, whole + offsets[i]), SIGSEGV);
    CHECK_EQUAL(record().fault_address, offsets[i] + 1);
    CHECK_EQUAL(record().fault_signal, SIGSEGV);
    CHECK(record().fault_time >= start && record().fault_time <= vw_monotonic_ns());
  }
  CHECK_EQUAL(died_of(another_thread_writes, whole + 99), SIGSEGV);
  CHECK_EQUAL(record().fault_address, 100);
  CHECK_EQUAL(died_of(read_past_the_end_of_a_file, lease + 8192), SIGBUS);
  CHECK_EQUAL(record().fault_address, 3 * SIZE + 8192 + 1);
  CHECK_EQUAL(record().fault_signal, SIGBUS);
  CHECK_EQUAL(died_of(install_twice, whole + 5), SIGSEGV);
  CHECK_EQUAL(record().fault_address, 6);
}

static void test_other_deaths_are_not_recorded(void) {
  char *elsewhere = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(elsewhere != MAP_FAILED);
  CHECK_EQUAL(died_of(write_at, elsewhere), SIGSEGV);
  CHECK_EQUAL(record().fault_address, 0);
#ifndef __SANITIZE_ADDRESS__
  CHECK_EQUAL(died_of(overflow_the_stack, NULL), SIGSEGV);
  CHECK_EQUAL(record().fault_address, 0);
#endif
  int segv = SIGSEGV, bus = SIGBUS;
  CHECK_EQUAL(died_of(sent_from_outside, &segv), SIGSEGV);
  CHECK_EQUAL(record().fault_address, 0);
  CHECK_EQUAL(died_of(sent_from_outside, &bus), SIGSEGV); /* there is no fault to repeat: it makes one */
  CHECK_EQUAL(record().fault_address, 0);
}

static void test_the_handler_before_comes_next(void) {
  char byte;
  CHECK_EQUAL(pipe2(told, O_CLOEXEC), 0);
  CHECK_EQUAL(died_of(with_a_handler_before, whole + 7), SIGSEGV);
  CHECK_EQUAL(record().fault_address, 8);
  CHECK_EQUAL(read(told[0], &byte, 1), 1);
  CHECK_EQUAL(byte, SIGSEGV);
}

static void test_too_many_regions(void) {
  vw_fault_region many[VW_FAULT_REGIONS + 1];
  memset(many, 0, sizeof many);
  CHECK_EQUAL(vw_fault_install(slot, many, VW_FAULT_REGIONS + 1), -EINVAL);
}

int main(void) {
  alarm(60);
  slot = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  whole = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  int file = memfd_create("short", MFD_CLOEXEC);
  CHECK(file >= 0 && ftruncate(file, 4096) == 0);
  lease = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0); /* SIGBUS after the first page */
  CHECK(slot != MAP_FAILED && whole != MAP_FAILED && lease != MAP_FAILED);
  PASS(test_recorded_where);
  PASS(test_other_deaths_are_not_recorded);
  PASS(test_the_handler_before_comes_next);
  PASS(test_too_many_regions);
  return 0;
}
