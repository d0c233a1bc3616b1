#include "fault.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

/* Enough for the widest register state (AMX: 11 KiB) and a previous handler that prints. */
#define STACK_SIZE ((size_t)64 << 10)

/* Those of which a process dies by its own doing, and for which Python's faulthandler prints. */
static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
#define COUNT (sizeof SIGNALS / sizeof *SIGNALS)

static struct {
  vw_slot *slot;
  vw_fault_region regions[VW_FAULT_REGIONS];
  size_t count;
  bool installed;
  struct sigaction before[COUNT]; /* who was there before */
} target;

static void record(int signal, uintptr_t address) {
  for (size_t i = 0; i < target.count; i++) {
    const vw_fault_region *region = &target.regions[i];
    if (address - region->address < region->size) { /* unsigned: also false below the region */
      vw_slot_fault(target.slot, region->offset + (address - region->address), signal);
      return;
    }
  }
}

/* Any thread, on the alternate stack if it has one, at any instruction. SA_RESETHAND has put the
 * default action back by now, so that returning repeats the fault and dies of it; so does what the
 * handler before us raises. */
static void handle(int signal, siginfo_t *info, void *context) {
  bool from_kernel = info->si_code > 0; /* else someone's kill(): no address, and nothing to repeat */
  if (from_kernel && (signal == SIGSEGV || signal == SIGBUS)) record(signal, (uintptr_t)info->si_addr);
  const struct sigaction *before = target.before;
  for (size_t i = 0; i < COUNT; i++)
    if (SIGNALS[i] == signal) before = &target.before[i];
  if (before->sa_handler != SIG_DFL) {
    if (before->sa_flags & SA_SIGINFO) before->sa_sigaction(signal, info, context);
    else before->sa_handler(signal);
  }
  volatile uintptr_t nowhere = 64; /* page 0 is never mapped; raise() may need more than a filter allows */
  if (!from_kernel && signal != SIGABRT) *(volatile int *)nowhere = 0;
}

static int need_stack(void) {
  stack_t stack;
  if (sigaltstack(NULL, &stack) < 0) return -errno;
  if (!(stack.ss_flags & SS_DISABLE) && stack.ss_size >= STACK_SIZE) return 0;
  /* Never unmapped: the handler stays until the process ends. */
  void *memory =
      mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (memory == MAP_FAILED) return -errno;
  stack = (stack_t){.ss_sp = memory, .ss_size = STACK_SIZE};
  return sigaltstack(&stack, NULL) < 0 ? -errno : 0;
}

int vw_fault_install(vw_slot *slot, const vw_fault_region *regions, size_t count) {
  if (count > VW_FAULT_REGIONS) return -EINVAL;
  target.count = 0; /* a fault between these lines finds nothing, rather than half of each */
  target.slot = slot;
  memcpy(target.regions, regions, count * sizeof *regions);
  target.count = count;
  if (target.installed) return 0;

  int rc = need_stack();
  if (rc) return rc;
  struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK | (int)SA_RESETHAND};
  action.sa_sigaction = handle;
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < COUNT; i++) {
    if (sigaction(SIGNALS[i], &action, &target.before[i]) < 0) return -errno;
    bool of_memory = SIGNALS[i] == SIGSEGV || SIGNALS[i] == SIGBUS;
    bool idle = target.before[i].sa_handler == SIG_DFL && !of_memory; /* nothing to record, nobody to call */
    if (idle || target.before[i].sa_handler == SIG_IGN) sigaction(SIGNALS[i], &target.before[i], NULL);
  }
  target.installed = true;
  return 0;
}
