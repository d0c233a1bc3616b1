#include "probe.h"

#include <errno.h>
#include <pthread.h>

#if defined(__x86_64__) && defined(__linux__)

long vw_probe_native(long number, const uint64_t *args) __attribute__((visibility("hidden")));
long vw_probe_int_80(long number, const uint64_t *args) __attribute__((visibility("hidden")));
extern const char vw_probe_native_end[] __attribute__((visibility("hidden")));
extern const char vw_probe_int_80_end[] __attribute__((visibility("hidden")));

__asm__(
    ".text\n"
    ".hidden vw_probe_native, vw_probe_native_end, vw_probe_int_80, vw_probe_int_80_end\n"
    ".globl vw_probe_native, vw_probe_native_end, vw_probe_int_80, vw_probe_int_80_end\n"
    ".type vw_probe_native, @function\n"
    "vw_probe_native:\n"
    "  mov %rdi, %rax\n"
    "  mov %rsi, %rcx\n"
    "  mov 0(%rcx), %rdi\n"
    "  mov 8(%rcx), %rsi\n"
    "  mov 16(%rcx), %rdx\n"
    "  mov 24(%rcx), %r10\n"
    "  mov 32(%rcx), %r8\n"
    "  mov 40(%rcx), %r9\n"
    "  syscall\n"
    "vw_probe_native_end:\n"
    "  ret\n"
    ".type vw_probe_int_80, @function\n"
    "vw_probe_int_80:\n" /* ebx, ecx, edx, esi, edi, ebp */
    "  push %rbx\n"
    "  push %rbp\n"
    "  mov %rdi, %rax\n"
    "  mov %rsi, %r8\n"
    "  mov 0(%r8), %rbx\n"
    "  mov 8(%r8), %rcx\n"
    "  mov 16(%r8), %rdx\n"
    "  mov 24(%r8), %rsi\n"
    "  mov 32(%r8), %rdi\n"
    "  mov 40(%r8), %rbp\n"
    "  int $0x80\n"
    "vw_probe_int_80_end:\n"
    "  pop %rbp\n"
    "  pop %rbx\n"
    "  ret\n");

int vw_probe_supported(void) { return 0; }

void vw_probe_addresses(uint64_t *native, uint64_t *int_80) {
  *native = (uint64_t)(uintptr_t)vw_probe_native_end;
  *int_80 = (uint64_t)(uintptr_t)vw_probe_int_80_end;
}

void vw_probe_run(void *argument) {
  const vw_probe_work *work = argument;
  if (work->caller && work->caller == (unsigned long)pthread_self()) return;
  for (size_t i = 0; i < work->count; i++) {
    vw_probe_call *call = &work->calls[i];
    __atomic_store_n(&call->state, 1u, __ATOMIC_RELEASE);
    call->result = call->way == VW_PROBE_INT_80 ? vw_probe_int_80((long)call->number, call->args)
                                                : vw_probe_native((long)call->number, call->args);
    __atomic_store_n(&call->state, 2u, __ATOMIC_RELEASE);
  }
}

#else

int vw_probe_supported(void) { return -ENOSYS; }
void vw_probe_addresses(uint64_t *native, uint64_t *int_80) { *native = *int_80 = 0; }
void vw_probe_run(void *argument) { (void)argument; }

#endif
