/* The arena: who may write where, what is refused, and that nothing stays open or mapped. */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include "arena.h"
#include "child.h"

#define SIZE (UINT64_C(8) << 20)
#define DATA VW_DATA_ALIGN
#define LEASE (UINT64_C(4) << 20)
#define LEASE_SIZE (UINT64_C(2) << 20)

static int open_files(void) {
  int count = 0;
  DIR *directory = opendir("/proc/self/fd");
  CHECK(directory);
  while (readdir(directory)) count++;
  closedir(directory);
  return count;
}

/* A new descriptor of the same file. */
static int reopen(int fd, int flags) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  int again = open(path, flags | O_CLOEXEC);
  CHECK(again >= 0);
  return again;
}

static vw_arena *made(void) {
  vw_arena *arena = vw_arena_new();
  CHECK(arena);
  CHECK_EQUAL(vw_arena_create(arena, SIZE, NULL), 0);
  return arena;
}

static enum vw_refusal try_attach(vw_arena *arena, int fd, int readonly_fd, uint64_t size) {
  enum vw_refusal refusal = VW_BAD_FILE;
  int rc = vw_arena_attach(arena, fd, readonly_fd, size, 0, &refusal);
  CHECK_EQUAL(rc, refusal ? -EINVAL : 0);
  return refusal;
}

/* A worker's arena over the supervisor's. */
static vw_arena *joined(const vw_arena *supervisor) {
  vw_arena *arena = vw_arena_new();
  CHECK(arena);
  CHECK_EQUAL(try_attach(arena, reopen(supervisor->fd, O_RDWR), reopen(supervisor->fd, O_RDONLY), 0), VW_ACCEPTED);
  return arena;
}

static void test_create(void) {
  vw_arena *arena = made();
  const vw_header *header = (const vw_header *)(void *)arena->base;
  CHECK(!memcmp(arena->base, "VORTEXW1", 8));
  CHECK_EQUAL(header->version, 1);
  CHECK_EQUAL(header->data_offset, DATA);
  CHECK_EQUAL(header->data_size, SIZE - DATA);
  CHECK_EQUAL(header->slot_count, 256);
  CHECK(arena->writable && arena->head == arena->base);
  vw_arena_drop(arena);
}

static void test_sizes_that_can_not_be(void) {
  const uint64_t never[] = {0, 1, DATA, DATA + 1, SIZE + 4096, UINT64_MAX, UINT64_C(1) << 63};
  for (size_t i = 0; i < sizeof never / sizeof never[0]; i++) {
    vw_arena *arena = vw_arena_new();
    CHECK_EQUAL(vw_arena_create(arena, never[i], NULL), -EINVAL);
    vw_arena_drop(arena);
  }
}

static void test_seals(void) {
  vw_arena *arena = made();
  int seals = fcntl(arena->fd, F_GET_SEALS), wanted = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  CHECK_EQUAL(seals & wanted, wanted);
  CHECK(ftruncate(arena->fd, (off_t)SIZE / 2) == -1 && errno == EPERM);
  CHECK(ftruncate(arena->fd, (off_t)SIZE * 2) == -1 && errno == EPERM);
  CHECK(fcntl(arena->fd, F_ADD_SEALS, F_SEAL_WRITE) == -1 && errno == EPERM);
  CHECK(fcntl(arena->fd, F_GETFD) & FD_CLOEXEC);
  vw_arena_drop(arena);
}

static void test_named(void) {
  char name[64];
  snprintf(name, sizeof name, "/vw-test-arena-%d", (int)getpid());
  vw_arena *arena = vw_arena_new(), *second = vw_arena_new();
  CHECK_EQUAL(vw_arena_create(arena, SIZE, name), 0);
  CHECK_EQUAL(vw_arena_create(second, SIZE, name), -EEXIST);
  int fd = shm_open(name, O_RDWR, 0), readonly = shm_open(name, O_RDONLY, 0);
  CHECK_EQUAL(try_attach(second, fd, readonly, SIZE), VW_ACCEPTED);
  arena->base[DATA] = 5;
  CHECK_EQUAL(second->base[DATA], 5);
  CHECK_EQUAL(shm_unlink(name), 0);
  vw_arena_drop(second);
  vw_arena_drop(arena);
}

static void test_who_writes_where(void) {
  vw_arena *supervisor = made(), *worker = joined(supervisor);
  bool writable;
  CHECK_EQUAL(vw_arena_lease(worker, LEASE, LEASE_SIZE), 0);
  /* Its lease, read-write: what it writes, the supervisor and its own read-only mapping see. */
  char *mine = vw_arena_at(worker, LEASE + 64, 64, &writable);
  CHECK(writable && mine == worker->lease + 64);
  *mine = 9;
  CHECK(supervisor->base[LEASE + 64] == 9 && worker->base[LEASE + 64] == 9);
  /* Next to it, and across its border: the read-only mapping. */
  CHECK(vw_arena_at(worker, LEASE - 64, 64, &writable) == worker->base + LEASE - 64 && !writable);
  CHECK(vw_arena_at(worker, LEASE - 64, 128, &writable) == worker->base + LEASE - 64 && !writable);
  CHECK(vw_arena_at(worker, LEASE + LEASE_SIZE - 64, 128, &writable) && !writable);
  CHECK(vw_arena_at(worker, LEASE + LEASE_SIZE, 0, &writable));
  CHECK(vw_arena_at(supervisor, LEASE, 64, &writable) && writable);
  /* Outside */
  CHECK(!vw_arena_at(worker, SIZE, 1, &writable) && !vw_arena_at(worker, 0, SIZE + 1, &writable));
  CHECK(!vw_arena_at(worker, UINT64_MAX, 2, &writable) && !vw_arena_at(worker, 64, UINT64_MAX, &writable));
  /* Slots are read-write for all. */
  vw_slot_at(worker->head, 255)->job_id = 77;
  CHECK_EQUAL(vw_slot_at(supervisor->head, 255)->job_id, 77);
  vw_arena_drop(worker);
  vw_arena_drop(supervisor);
}

static void write_one(void *address) {
  signal(SIGSEGV, SIG_DFL); /* a sanitizer has its own */
  *(volatile char *)address = 1;
}

static void upgrade(void *address) {
  CHECK(mprotect(address, 4096, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
}

static void test_inputs_are_read_only_by_the_mmu(void) {
  vw_arena *supervisor = made(), *worker = joined(supervisor);
  CHECK_EQUAL(vw_arena_lease(worker, LEASE, LEASE_SIZE), 0);
  vw_arena_close_descriptors(worker);
  CHECK(worker->fd == -1 && worker->readonly_fd == -1);
  char *const forbidden[] = {worker->base, worker->base + DATA, worker->base + LEASE, worker->base + SIZE - 1};
  for (size_t i = 0; i < sizeof forbidden / sizeof forbidden[0]; i++) {
    int status = in_child(write_one, forbidden[i]);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
  }
  CHECK_EQUAL(in_child(write_one, worker->lease), 0);
  CHECK_EQUAL(in_child(upgrade, worker->base + DATA), 0);
  CHECK_EQUAL(in_child(upgrade, worker->base), 0);
  vw_arena_drop(worker);
  vw_arena_drop(supervisor);
}

static void test_leases_that_can_not_be(void) {
  vw_arena *supervisor = made(), *worker = joined(supervisor);
  const uint64_t never[][2] = {
      {LEASE, 0},         {LEASE + 1, 4096}, {LEASE, 4095},         {DATA - 4096, 8192}, {0, 4096},
      {SIZE - 4096, 8192}, {SIZE, 4096},      {UINT64_MAX - 4095, 4096}, {LEASE, UINT64_MAX - 4095},
  };
  for (size_t i = 0; i < sizeof never / sizeof never[0]; i++)
    CHECK_EQUAL(vw_arena_lease(worker, never[i][0], never[i][1]), -EINVAL);
  CHECK_EQUAL(vw_arena_lease(supervisor, LEASE, LEASE_SIZE), -EINVAL); /* it has everything already */
  CHECK_EQUAL(vw_arena_lease(worker, LEASE, LEASE_SIZE), 0);
  CHECK_EQUAL(vw_arena_lease(worker, LEASE, LEASE_SIZE), -EINVAL); /* only one */
  vw_arena_drop(worker);
  worker = joined(supervisor);
  vw_arena_close_descriptors(worker);
  CHECK_EQUAL(vw_arena_lease(worker, LEASE, LEASE_SIZE), -EBADF);
  vw_arena_drop(worker);
  vw_arena_drop(supervisor);
}

static void test_files_that_are_no_arena(void) {
  vw_arena *supervisor = made(), *worker = vw_arena_new();
  vw_header *header = (vw_header *)(void *)supervisor->base;
#define ATTACH(size) try_attach(worker, reopen(supervisor->fd, O_RDWR), reopen(supervisor->fd, O_RDONLY), size)
  int ends[2];
  CHECK(!pipe(ends));
  CHECK_EQUAL(try_attach(worker, ends[0], ends[1], 0), VW_BAD_FILE);
  CHECK_EQUAL(try_attach(worker, -1, -1, 0), VW_BAD_FILE);
  CHECK_EQUAL(try_attach(worker, reopen(supervisor->fd, O_RDWR), -1, 0), VW_BAD_FILE);
  int other = memfd_create("other", MFD_CLOEXEC);
  CHECK_EQUAL(try_attach(worker, reopen(supervisor->fd, O_RDWR), reopen(other, O_RDONLY), 0), VW_OTHER_FILE);
  CHECK_EQUAL(try_attach(worker, reopen(other, O_RDWR), reopen(other, O_RDONLY), 0), VW_TOO_SMALL);
  close(other);
  CHECK_EQUAL(try_attach(worker, reopen(supervisor->fd, O_RDWR), reopen(supervisor->fd, O_RDWR), 0), VW_NOT_READONLY);
  int same = reopen(supervisor->fd, O_RDWR);
  CHECK_EQUAL(try_attach(worker, same, same, 0), VW_NOT_READONLY);
  CHECK_EQUAL(try_attach(worker, reopen(supervisor->fd, O_RDONLY), reopen(supervisor->fd, O_RDONLY), 0), VW_REFUSED_MAP);
  CHECK_EQUAL(ATTACH(SIZE + 1), VW_TOO_SMALL);
  CHECK_EQUAL(ATTACH(VW_SLOTS_END), VW_TOO_SMALL);
  CHECK_EQUAL(ATTACH(UINT64_MAX), VW_TOO_SMALL);
  header->magic ^= 1;
  CHECK_EQUAL(ATTACH(0), VW_BAD_MAGIC);
  header->magic ^= 1;
  header->version = 2;
  CHECK_EQUAL(ATTACH(0), VW_BAD_VERSION);
  header->version = 1;
  const uint64_t never[][2] = {{64, 4096},        {VW_SLOTS_END, 4096}, {DATA, SIZE},        {SIZE, 1},
                               {UINT64_MAX, 2},   {DATA, UINT64_MAX},   {UINT64_MAX - 63, 64}};
  for (size_t i = 0; i < sizeof never / sizeof never[0]; i++) {
    header->data_offset = never[i][0];
    header->data_size = never[i][1];
    CHECK_EQUAL(ATTACH(0), VW_BAD_DATA);
  }
  /* A supervisor that knows the first fields only */
  header->data_offset = header->data_size = header->slot_count = 0;
  CHECK_EQUAL(ATTACH(0), VW_ACCEPTED);
  CHECK_EQUAL(worker->data_offset, DATA);
  CHECK_EQUAL(worker->data_size, SIZE - DATA);
  vw_arena_drop(worker);
  vw_arena_drop(supervisor);
#undef ATTACH
}

static void test_locate(void) {
  vw_arena *supervisor = made(), *worker = joined(supervisor);
  CHECK_EQUAL(vw_arena_lease(worker, LEASE, LEASE_SIZE), 0);
  int elsewhere;
  CHECK_EQUAL(vw_arena_locate(worker, worker->lease + 64, 64), LEASE + 64);
  CHECK_EQUAL(vw_arena_locate(worker, worker->base + LEASE, 64), LEASE);
  CHECK_EQUAL(vw_arena_locate(supervisor, supervisor->base + DATA, SIZE - DATA), DATA);
  CHECK(vw_arena_locate(worker, worker->lease + LEASE_SIZE - 1, 2) == UINT64_MAX);
  CHECK(vw_arena_locate(worker, worker->base + SIZE - 1, 2) == UINT64_MAX);
  CHECK(vw_arena_locate(worker, worker->base, UINT64_MAX) == UINT64_MAX);
  CHECK(vw_arena_locate(worker, &elsewhere, sizeof elsewhere) == UINT64_MAX);
  CHECK(vw_arena_locate(worker, NULL, 0) == UINT64_MAX);
  vw_arena_close(worker);
  CHECK(vw_arena_locate(worker, NULL, 0) == UINT64_MAX);
  vw_arena_drop(worker);
  vw_arena_drop(supervisor);
}

static void test_prefault_and_discard(void) {
  vw_arena *supervisor = made(), *worker = joined(supervisor);
  CHECK_EQUAL(vw_arena_lease(worker, LEASE, LEASE_SIZE), 0);
  supervisor->base[LEASE + 5] = 3;
  CHECK_EQUAL(vw_arena_prefault(worker, LEASE, LEASE_SIZE), 0);
  CHECK_EQUAL(vw_arena_prefault(worker, DATA + 64, 100), 0); /* read-only, off a page's start */
  CHECK_EQUAL(vw_arena_prefault(supervisor, DATA, SIZE - DATA), 0);
  CHECK_EQUAL(vw_arena_prefault(worker, SIZE, 1), -EINVAL);
  CHECK_EQUAL(worker->lease[5], 3); /* touched, not changed */
  CHECK_EQUAL(vw_arena_discard(supervisor, LEASE, LEASE_SIZE), 0);
  CHECK_EQUAL(worker->lease[5], 0);
  CHECK_EQUAL(vw_arena_discard(supervisor, LEASE + 1, 4096), -EINVAL);
  CHECK_EQUAL(vw_arena_discard(supervisor, 0, 4096), -EINVAL); /* header and slots */
  CHECK_EQUAL(vw_arena_discard(worker, LEASE, LEASE_SIZE), -EINVAL);
  vw_arena_drop(worker);
  vw_arena_drop(supervisor);
}

static void *drop_some(void *arena) {
  for (int i = 0; i < 5000; i++) vw_arena_drop(arena);
  return NULL;
}

static void test_holders_in_several_threads(void) {
  vw_arena *arena = made();
  char *base = arena->base;
  pthread_t threads[4];
  for (int i = 0; i < 4 * 5000; i++) vw_arena_hold(arena);
  for (int i = 0; i < 4; i++) CHECK(!pthread_create(&threads[i], NULL, drop_some, arena));
  for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
  CHECK_EQUAL(arena->holders, 1);
  base[DATA] = 1; /* still mapped */
  vw_arena_drop(arena);
  CHECK(msync(base, 4096, MS_ASYNC) == -1 && errno == ENOMEM); /* and now no longer */
}

static void test_close_twice(void) {
  vw_arena *arena = made();
  bool writable;
  vw_arena_close(arena);
  vw_arena_close(arena);
  CHECK(!vw_arena_at(arena, DATA, 64, &writable));
  vw_arena_drop(arena);
}

int main(void) {
  int before = open_files();
  PASS(test_create);
  PASS(test_sizes_that_can_not_be);
  PASS(test_seals);
  PASS(test_named);
  PASS(test_who_writes_where);
  PASS(test_inputs_are_read_only_by_the_mmu);
  PASS(test_leases_that_can_not_be);
  PASS(test_files_that_are_no_arena);
  PASS(test_locate);
  PASS(test_prefault_and_discard);
  PASS(test_holders_in_several_threads);
  PASS(test_close_twice);
  CHECK_EQUAL(open_files(), before);
}
