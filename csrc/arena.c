#include "arena.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ /* Linux 5.14 */
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

#ifndef MFD_NOEXEC_SEAL /* Linux 6.3: nobody can execute the arena as a program */
#define MFD_NOEXEC_SEAL 8u
#endif

vw_arena *vw_arena_new(void) {
  vw_arena *arena = calloc(1, sizeof *arena);
  if (!arena) return NULL;
  atomic_init(&arena->holders, 1);
  arena->fd = arena->readonly_fd = -1;
  return arena;
}

void vw_arena_hold(vw_arena *arena) { atomic_fetch_add_explicit(&arena->holders, 1, memory_order_relaxed); }

void vw_arena_drop(vw_arena *arena) {
  /* Release: this holder's accesses come before. Acquire: the last one sees everybody's. */
  if (atomic_fetch_sub_explicit(&arena->holders, 1, memory_order_acq_rel) > 1) return;
  vw_arena_close(arena);
  free(arena);
}

static uint64_t page_round_up(uint64_t size) {
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  return (size + page - 1) / page * page;
}

static bool inside(uint64_t offset, uint64_t nbytes, uint64_t start, uint64_t size) {
  return offset >= start && nbytes <= size && offset - start <= size - nbytes;
}

static int open_anonymous(void) {
#ifdef MFD_CLOEXEC
  int fd = memfd_create("vortex-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
  if (fd < 0 && errno == EINVAL) fd = memfd_create("vortex-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  return fd;
#else
  errno = ENOSYS;
  return -1;
#endif
}

static int open_memory(const char *name, uint64_t size) {
  int fd = name ? shm_open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : open_anonymous();
  if (fd < 0) return -errno;
  int error = ftruncate(fd, (off_t)size) ? errno : 0;
#ifdef F_ADD_SEALS
  /* A worker that could shrink the file would have the supervisor die of SIGBUS at its next read. */
  if (!error && !name && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) error = errno;
#endif
  if (error) {
    if (name) shm_unlink(name);
    close(fd);
    return -error;
  }
  return fd;
}

int vw_arena_create(vw_arena *arena, uint64_t size, const char *name) {
  if (size % VW_DATA_ALIGN || size <= VW_DATA_ALIGN || size > INT64_MAX) return -EINVAL;
  int fd = open_memory(name, size);
  if (fd < 0) return fd;
  arena->fd = fd;
  arena->size = size;
  arena->writable = true;
  char *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (base == MAP_FAILED) {
    int error = errno;
    if (name) shm_unlink(name);
    vw_arena_close(arena);
    return -error;
  }
  arena->base = arena->head = base;
  arena->data_offset = VW_DATA_ALIGN;
  arena->data_size = size - VW_DATA_ALIGN;
  vw_arena_write_header(arena);
  return 0;
}

void vw_arena_write_header(vw_arena *arena) {
  vw_header *header = (vw_header *)(void *)arena->base;
  atomic_store_explicit(&header->version, VW_VERSION, memory_order_relaxed);
  atomic_store_explicit(&header->slot_count, VW_SLOT_COUNT, memory_order_relaxed);
  atomic_store_explicit(&header->data_offset, arena->data_offset, memory_order_relaxed);
  atomic_store_explicit(&header->data_size, arena->data_size, memory_order_relaxed);
  /* Last, with release: who sees the magic sees the rest. */
  atomic_store_explicit(&header->magic, VW_MAGIC, memory_order_release);
}

/* Where data is, checked against the file's size. */
static enum vw_refusal place_data(vw_arena *arena, uint64_t offset, uint64_t size) {
  /* What shares a page with the slots would be writable to every worker. */
  if (offset < page_round_up(VW_SLOTS_END) || offset >= arena->size) return VW_BAD_DATA;
  if (!size) size = arena->size - offset;
  if (!inside(offset, size, 0, arena->size)) return VW_BAD_DATA;
  arena->data_offset = offset;
  arena->data_size = size;
  return VW_ACCEPTED;
}

static enum vw_refusal read_header(vw_arena *arena) {
  const vw_header *header = (const vw_header *)(void *)arena->base;
  if (atomic_load_explicit(&header->magic, memory_order_acquire) != VW_MAGIC) return VW_BAD_MAGIC;
  if (atomic_load_explicit(&header->version, memory_order_relaxed) != VW_VERSION) return VW_BAD_VERSION;
  uint64_t offset = atomic_load_explicit(&header->data_offset, memory_order_relaxed);
  uint64_t size = atomic_load_explicit(&header->data_size, memory_order_relaxed);
  /* 0: a supervisor that knows only the first fields */
  return place_data(arena, offset ? offset : VW_DATA_ALIGN, size);
}

int vw_arena_attach(vw_arena *arena, int fd, int readonly_fd, uint64_t size, uint64_t data_offset,
                    enum vw_refusal *refusal) {
  arena->fd = fd;
  arena->readonly_fd = readonly_fd;
  struct stat file, readonly_file;
  *refusal = VW_BAD_FILE;
  if (fstat(fd, &file) || !S_ISREG(file.st_mode) || fstat(readonly_fd, &readonly_file)) goto refused;
  *refusal = VW_OTHER_FILE;
  if (file.st_dev != readonly_file.st_dev || file.st_ino != readonly_file.st_ino) goto refused;
  *refusal = VW_NOT_READONLY;
  int mode = fcntl(readonly_fd, F_GETFL);
  if (mode < 0 || (mode & O_ACCMODE) != O_RDONLY) goto refused;
  *refusal = VW_TOO_SMALL;
  if (!size) size = (uint64_t)file.st_size;
  if (size > (uint64_t)file.st_size || size <= VW_SLOTS_END) goto refused;
  arena->size = size;
  *refusal = VW_REFUSED_MAP;
  char *base = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_NORESERVE, readonly_fd, 0);
  if (base == MAP_FAILED) goto refused;
  arena->base = base;
  char *head = mmap(NULL, page_round_up(VW_SLOTS_END), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (head == MAP_FAILED) goto refused;
  arena->head = head;
  *refusal = data_offset ? place_data(arena, data_offset, 0) : read_header(arena);
  if (*refusal == VW_ACCEPTED) return 0;
refused:
  vw_arena_close(arena);
  return -EINVAL;
}

int vw_arena_lease(vw_arena *arena, uint64_t offset, uint64_t size) {
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  if (arena->lease || arena->writable || !size || offset % page || size % page ||
      !inside(offset, size, arena->data_offset, arena->data_size))
    return -EINVAL;
  char *lease = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, arena->fd, (off_t)offset);
  if (lease == MAP_FAILED) return -errno;
  arena->lease = lease;
  arena->lease_offset = offset;
  arena->lease_size = size;
  return 0;
}

void vw_arena_close_descriptors(vw_arena *arena) {
  if (arena->fd >= 0) close(arena->fd);
  if (arena->readonly_fd >= 0 && arena->readonly_fd != arena->fd) close(arena->readonly_fd);
  arena->fd = arena->readonly_fd = -1;
}

void vw_arena_close(vw_arena *arena) {
  if (arena->lease) munmap(arena->lease, arena->lease_size);
  if (arena->head && arena->head != arena->base) munmap(arena->head, page_round_up(VW_SLOTS_END));
  if (arena->base) munmap(arena->base, arena->size);
  arena->base = arena->head = arena->lease = NULL;
  vw_arena_close_descriptors(arena);
}

char *vw_arena_at(const vw_arena *arena, uint64_t offset, uint64_t nbytes, bool *writable) {
  if (arena->lease && inside(offset, nbytes, arena->lease_offset, arena->lease_size)) {
    *writable = true;
    return arena->lease + (offset - arena->lease_offset);
  }
  *writable = arena->writable;
  return arena->base && inside(offset, nbytes, 0, arena->size) ? arena->base + offset : NULL;
}

uint64_t vw_arena_locate(const vw_arena *arena, const void *address, uint64_t nbytes) {
  uint64_t at = (uint64_t)(uintptr_t)address;
  uint64_t lease = (uint64_t)(uintptr_t)arena->lease, base = (uint64_t)(uintptr_t)arena->base;
  if (lease && inside(at, nbytes, lease, arena->lease_size)) return arena->lease_offset + (at - lease);
  if (base && inside(at, nbytes, base, arena->size)) return at - base;
  return UINT64_MAX;
}

int vw_arena_prefault(const vw_arena *arena, uint64_t offset, uint64_t nbytes) {
  bool writable;
  char *start = vw_arena_at(arena, offset, nbytes, &writable);
  if (!start) return -EINVAL;
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  uint64_t slack = (uint64_t)(uintptr_t)start % page;
  start -= slack;
  nbytes += slack;
#ifdef __linux__
  madvise(start, nbytes, MADV_HUGEPAGE); /* a wish: refused where the kernel has none for shared memory */
  if (!madvise(start, nbytes, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ)) return 0;
  if (errno != EINVAL) return -errno;
#endif
  for (uint64_t at = 0; at < nbytes; at += page) {
    _Atomic char *byte = (_Atomic char *)(void *)(start + at);
    if (writable) atomic_fetch_or_explicit(byte, 0, memory_order_relaxed); /* touches, changes nothing */
    else (void)atomic_load_explicit(byte, memory_order_relaxed);
  }
  return 0;
}

int vw_arena_discard(const vw_arena *arena, uint64_t offset, uint64_t nbytes) {
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  if (!arena->writable || offset % page || nbytes % page || !inside(offset, nbytes, arena->data_offset, arena->data_size))
    return -EINVAL;
#ifdef MADV_REMOVE
  return madvise(arena->base + offset, nbytes, MADV_REMOVE) ? -errno : 0;
#else
  memset(arena->base + offset, 0, nbytes);
  return 0;
#endif
}
