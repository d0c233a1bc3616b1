/* The arena's header, which any worker can write and the next one to start reads: any header, then any lease and any
 * range in it. What is accepted is touched at both ends. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "arena.h"
#include "fuzz.h"
#include "slot.h"

#define SIZE (UINT64_C(4) << 20)
#define PAGE ((uint64_t)sysconf(_SC_PAGESIZE))

/* A file of SIZE bytes, once by a descriptor that can write and once by one that can't. */
static void open_file(int *fd, int *readonly_fd) {
  static int kept = -1, kept_readonly;
  if (kept < 0) {
    char path[64];
    kept = memfd_create("fuzz-arena", MFD_CLOEXEC);
    FUZZ_CHECK(kept >= 0 && ftruncate(kept, (off_t)SIZE) == 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", kept);
    kept_readonly = open(path, O_RDONLY | O_CLOEXEC);
    FUZZ_CHECK(kept_readonly >= 0);
  }
  *fd = dup(kept);
  *readonly_fd = dup(kept_readonly);
  FUZZ_CHECK(*fd >= 0 && *readonly_fd >= 0);
}

static void touch(const vw_arena *arena, uint64_t offset, uint64_t nbytes) {
  bool writable;
  char *at = vw_arena_at(arena, offset, nbytes, &writable);
  bool inside = nbytes <= arena->size && offset <= arena->size - nbytes;
  FUZZ_CHECK((at != NULL) == inside);
  if (!at) return;
  if (!nbytes) return; /* and no place of its own: one mapping may begin where another ends */
  FUZZ_CHECK(vw_arena_locate(arena, at, nbytes) == offset);
  *(volatile char *)at;
  *(volatile char *)(at + nbytes - 1);
  if (writable) *(volatile char *)at = 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  fuzz_input input = {data, size};
  const uint64_t marks[] = {VW_SLOTS_END, 20480, VW_DATA_ALIGN, SIZE - VW_DATA_ALIGN, SIZE, UINT64_MAX};
  enum { MARKS = sizeof marks / sizeof *marks };
  int fd, readonly_fd;
  open_file(&fd, &readonly_fd);

  uint8_t how = fuzz_byte(&input);
  uint64_t header[8] = {how & 1 ? fuzz_word(&input) : VW_MAGIC, how & 2 ? fuzz_word(&input) : VW_VERSION};
  for (int i = 2; i < 8; i++) header[i] = fuzz_number(&input, marks, MARKS);
  FUZZ_CHECK(pwrite(fd, header, sizeof header, 0) == sizeof header);
  uint8_t slot[64]; /* and a slot, of which every word may be anything */
  for (int i = 0; i < 64; i++) slot[i] = fuzz_byte(&input);
  FUZZ_CHECK(pwrite(fd, slot, sizeof slot, 64) == sizeof slot);

  vw_arena *arena = vw_arena_new();
  enum vw_refusal refusal;
  FUZZ_CHECK(arena);
  uint64_t file_size = how & 4 ? fuzz_number(&input, marks, MARKS) : 0;
  uint64_t data_offset = how & 16 ? fuzz_number(&input, marks, MARKS) : 0; /* then the header is not read */
  int rc = vw_arena_attach(arena, fd, readonly_fd, file_size, data_offset, &refusal);
  FUZZ_CHECK((rc == 0) == (refusal == VW_ACCEPTED));
  if (rc == 0) {
    FUZZ_CHECK(arena->size <= SIZE && arena->data_offset >= VW_SLOTS_END && arena->data_offset < arena->size);
    FUZZ_CHECK(arena->data_size <= arena->size - arena->data_offset);
    vw_slot_copy copy;
    vw_slot_snapshot(vw_slot_at(arena->head, 0), &copy);
    FUZZ_CHECK(memcmp(&copy.pid, slot, 4) == 0 && memcmp(&copy.fault_time, slot + 56, 8) == 0);
    uint64_t offset = fuzz_number(&input, marks, MARKS), length = fuzz_number(&input, marks, MARKS);
    if (how & 8) {
      offset = offset / PAGE * PAGE;
      length = length / PAGE * PAGE;
    }
    if (vw_arena_lease(arena, offset, length) == 0) {
      FUZZ_CHECK(offset % PAGE == 0 && length % PAGE == 0 && length > 0 && offset >= arena->data_offset);
      FUZZ_CHECK(length <= arena->data_size && offset - arena->data_offset <= arena->data_size - length);
      touch(arena, offset, length);
    }
    touch(arena, fuzz_number(&input, marks, MARKS), fuzz_number(&input, marks, MARKS));
  }
  vw_arena_drop(arena);
  return 0;
}
