/* Slots: what each call writes, and what a reader may rely on while others write. */
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include "child.h"
#include "clock.h"
#include "slot.h"

static void test_life_of_a_slot(void) {
  vw_slot slot;
  vw_slot_copy copy;
  memset(&slot, 0xa5, sizeof slot); /* left by somebody hostile */
  uint64_t before = vw_monotonic_ns();
  vw_slot_register(&slot, 4711);
  vw_slot_snapshot(&slot, &copy);
  CHECK_EQUAL(copy.pid, 4711);
  CHECK_EQUAL(copy.status, VW_STARTING);
  CHECK(copy.heartbeat >= before && copy.heartbeat <= vw_monotonic_ns());
  CHECK_EQUAL(copy.job_id | copy.activity | copy.step | copy.total, 0);
  CHECK_EQUAL(copy.fault_address | copy.fault_signal | copy.fault_time, 0);

  vw_slot_begin(&slot, UINT64_MAX);
  vw_slot_progress(&slot, 3, 20);
  vw_slot_snapshot(&slot, &copy);
  CHECK_EQUAL(copy.status, VW_BUSY);
  CHECK(copy.job_id == UINT64_MAX);
  CHECK_EQUAL(copy.activity, 2);
  CHECK_EQUAL(copy.step, 3);
  CHECK_EQUAL(copy.total, 20);

  vw_slot_end(&slot);
  vw_slot_snapshot(&slot, &copy);
  CHECK_EQUAL(copy.status, VW_IDLE);
  CHECK(copy.job_id == UINT64_MAX);
  vw_slot_begin(&slot, 1);
  vw_slot_snapshot(&slot, &copy);
  CHECK_EQUAL(copy.step | copy.total, 0);
  CHECK_EQUAL(copy.activity, 3);

  vw_slot_fault(&slot, 0, SIGBUS); /* offset 0 is a place as well */
  vw_slot_snapshot(&slot, &copy);
  CHECK_EQUAL(copy.fault_address, 1);
  CHECK_EQUAL(copy.fault_signal, SIGBUS);
  CHECK(copy.fault_time >= before);

  vw_slot_clear(&slot);
  vw_slot_snapshot(&slot, &copy);
  static const vw_slot_copy nothing;
  CHECK_EQUAL(memcmp(&copy, &nothing, sizeof copy), 0);
}

static void test_slots_do_not_overlap(void) {
  char *arena = calloc(1, VW_SLOTS_END);
  memcpy(arena, "headerheader", 12);
  for (uint32_t i = 0; i < VW_SLOT_COUNT; i++) vw_slot_register(vw_slot_at(arena, i), (int32_t)i + 1);
  for (uint32_t i = 0; i < VW_SLOT_COUNT; i += 2) vw_slot_clear(vw_slot_at(arena, i));
  for (uint32_t i = 0; i < VW_SLOT_COUNT; i++) {
    vw_slot_copy copy;
    vw_slot_snapshot(vw_slot_at(arena, i), &copy);
    CHECK_EQUAL(copy.pid, i % 2 ? i + 1 : 0);
  }
  CHECK_EQUAL(memcmp(arena, "headerheader", 12), 0);
  free(arena);
}

/* Hammering. Job n is begun with id n and reports n mod 1000 of 1000; faults are recorded at 3·k with
 * signal k mod 31 + 1. Whoever reads a status or a fault must find what was written before it. */
enum { JOBS = 1000000 };

static _Atomic int done;

static void *work(void *argument) {
  vw_slot *slot = argument;
  for (uint64_t job = 1; job <= JOBS; job++) {
    vw_slot_begin(slot, job);
    vw_slot_progress(slot, (uint32_t)(job % 1000), 1000);
    vw_slot_end(slot);
  }
  atomic_store(&done, 1);
  return NULL;
}

static void *beat(void *argument) {
  vw_slot *slot = argument;
  while (!atomic_load(&done)) vw_slot_beat(slot);
  return NULL;
}

static void watch_until(vw_slot *slot, uint64_t last_job) {
  vw_slot_copy now, before = {0};
  for (;;) {
    vw_slot_snapshot(slot, &now);
    CHECK(now.job_id >= before.job_id && now.job_id <= JOBS);
    CHECK(now.heartbeat >= before.heartbeat);
    CHECK(now.activity >= before.activity && now.activity <= 2 * JOBS);
    if (now.status == VW_BUSY) CHECK(now.job_id > 0 && now.activity > 0);
    CHECK(now.status == VW_BUSY || now.status == VW_IDLE || now.status == VW_STARTING);
    CHECK(now.step < 1000 && (now.total == 0 || now.total == 1000));
    if (now.job_id == last_job && now.status == VW_IDLE) return;
    before = now;
  }
}

static void *watch(void *argument) {
  watch_until(argument, JOBS);
  return NULL;
}

static void test_threads_hammering(void) {
  vw_slot slot;
  pthread_t threads[4];
  void *(*const bodies[4])(void *) = {work, beat, watch, watch};
  memset(&slot, 0, sizeof slot);
  vw_slot_register(&slot, 1);
  atomic_store(&done, 0);
  for (int i = 0; i < 4; i++) CHECK_EQUAL(pthread_create(&threads[i], NULL, bodies[i], &slot), 0);
  for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
}

static void work_in_child(void *slot) { work(slot); }

static void test_processes_hammering(void) {
  vw_slot *slot = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(slot != MAP_FAILED);
  vw_slot_register(slot, 1);
  pid_t watcher = fork();
  CHECK(watcher >= 0);
  if (watcher == 0) {
    watch_until(slot, JOBS);
    _exit(0);
  }
  CHECK_EQUAL(in_child(work_in_child, slot), 0);
  int status = -1;
  CHECK_EQUAL(waitpid(watcher, &status, 0), watcher);
  CHECK_EQUAL(status, 0);
  munmap(slot, 4096);
}

static void *fault_again_and_again(void *argument) {
  vw_slot *slot = argument;
  for (uint64_t k = 0; k < JOBS; k++) vw_slot_fault(slot, 3 * k, (int)(k % 31 + 1));
  return NULL;
}

static void test_a_fault_address_comes_last(void) {
  vw_slot slot;
  vw_slot_copy copy;
  pthread_t thread;
  memset(&slot, 0, sizeof slot);
  CHECK_EQUAL(pthread_create(&thread, NULL, fault_again_and_again, &slot), 0);
  uint64_t seen_time = 0;
  do {
    vw_slot_snapshot(&slot, &copy);
    if (copy.fault_address == 0) continue;
    CHECK_EQUAL((copy.fault_address - 1) % 3, 0);
    CHECK(copy.fault_signal >= 1 && copy.fault_signal <= 31);
    CHECK(copy.fault_time >= seen_time && copy.fault_time > 0);
    seen_time = copy.fault_time;
  } while (copy.fault_address != 3 * (JOBS - 1) + 1);
  CHECK_EQUAL(copy.fault_signal, (JOBS - 1) % 31 + 1);
  pthread_join(thread, NULL);
}

int main(void) {
  alarm(60);
  PASS(test_life_of_a_slot);
  PASS(test_slots_do_not_overlap);
  PASS(test_processes_hammering); /* before there are threads: the thread sanitizer wants it so */
  PASS(test_threads_hammering);
  PASS(test_a_fault_address_comes_last);
  return 0;
}
