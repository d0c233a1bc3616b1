/* Runs a fuzz target without libFuzzer: seeded mutation, led by coverage where the compiler counts it.
 *
 *     fuzz_frame CASES [FILE…]    so many cases, the same ones every time; the files are what they begin with
 *     fuzz_frame FILE…            each file once: to look at a failure again
 *
 * The core is compiled with -fsanitize-coverage=trace-pc, targets and this file without: at each branch the core calls
 * __sanitizer_cov_trace_pc. A case that takes a way that none took before joins the corpus, from which the next ones
 * are made. Without coverage the corpus stays what it began as, and cases are made from scratch more often.
 * VORTEX_FUZZ_CASES overrules the argument, VORTEX_FUZZ_SEED (1) makes other cases. */
#include "fuzz.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

enum {
  MOST = 512,        /* bytes of a case */
  CORPUS = 4096,     /* cases kept */
  MAP = 1 << 16,     /* ways that can be told apart, a byte of counter classes each */
  FOUND_MOST = 8192, /* ways of one case */
};

typedef struct {
  uint8_t bytes[MOST];
  size_t size;
} test_case;

static test_case corpus[CORPUS], current;
static size_t corpus_size;

/* ---- coverage: how often each pair of successive branches was gone along, in classes of powers of two */

static uint8_t counters[MAP], seen[MAP];
static uint16_t found[FOUND_MOST];
static size_t found_size;
static uintptr_t previous;

void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void) {
  /* From here: where the program lies differs from run to run, and the cases must not. */
  uintptr_t here = (uintptr_t)__builtin_return_address(0) - (uintptr_t)&__sanitizer_cov_trace_pc;
  uint16_t way = (uint16_t)((here ^ here >> 15) * 0x9e37u ^ previous);
  previous = (uintptr_t)way >> 1;
  if (counters[way] == 0 && found_size < FOUND_MOST) found[found_size++] = way;
  if (counters[way] < 255) counters[way]++;
}

/* Whether the case that ran last took a new way; forgets it. */
static bool was_new(void) {
  bool new = false;
  for (size_t i = 0; i < found_size; i++) {
    uint8_t bit = (uint8_t)(1u << (31 - __builtin_clz(counters[found[i]])));
    new |= !(seen[found[i]] & bit);
    seen[found[i]] |= bit;
    counters[found[i]] = 0;
  }
  found_size = 0;
  previous = 0;
  return new;
}

/* ---- cases */

static uint64_t random_state;

static uint64_t any(void) { /* xorshift64* (Vigna, 2016) */
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return random_state * UINT64_C(0x2545f4914f6cdd1d);
}

static size_t below(size_t bound) { return (size_t)((any() >> 32) % bound); }

static void random_case(void) {
  current.size = 1 + below(below(8) ? 64 : MOST - 1);
  for (size_t i = 0; i < current.size; i++) current.bytes[i] = (uint8_t)(any() >> 56);
}

static void mutate_once(void) {
  static const uint64_t edges[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff,
                                   INT64_MAX, UINT64_C(1) << 63, UINT64_MAX, UINT64_MAX - 63};
  size_t size = current.size, at = size ? below(size) : 0;
  switch (below(8)) {
    case 0: /* a bit */
      if (size) current.bytes[at] ^= (uint8_t)(1u << below(8));
      break;
    case 1: /* a byte */
      if (size) current.bytes[at] = (uint8_t)any();
      break;
    case 2: /* a little more or less */
      if (size) current.bytes[at] = (uint8_t)(current.bytes[at] + below(9) - 4);
      break;
    case 3: { /* a number at the edge of its type */
      uint64_t edge = edges[below(sizeof edges / sizeof *edges)];
      size_t width = (size_t)1 << below(4);
      if (at + width <= size) memcpy(current.bytes + at, &edge, width);
      break;
    }
    case 4: { /* bytes taken out */
      size_t gone = size ? 1 + below(size - at < 16 ? size - at : 16) : 0;
      memmove(current.bytes + at, current.bytes + at + gone, size - at - gone);
      current.size -= gone;
      break;
    }
    case 5: { /* bytes put in */
      size_t more = 1 + below(16);
      if (size + more > MOST) break;
      memmove(current.bytes + at + more, current.bytes + at, size - at);
      for (size_t i = 0; i < more; i++) current.bytes[at + i] = (uint8_t)(any() >> 56);
      current.size += more;
      break;
    }
    case 6: { /* a part again, elsewhere */
      if (!size) break;
      size_t from = below(size), room = size - (from > at ? from : at);
      if (room) memmove(current.bytes + at, current.bytes + from, 1 + below(room));
      break;
    }
    default: { /* the rest of another */
      const test_case *other = &corpus[below(corpus_size)];
      if (at >= other->size) break;
      memcpy(current.bytes + at, other->bytes + at, other->size - at);
      current.size = other->size;
    }
  }
}

static void next_case(void) {
  if (!corpus_size || !below(16)) {
    random_case();
    return;
  }
  current = corpus[below(4) ? below(corpus_size) : corpus_size - 1 - below(corpus_size < 8 ? corpus_size : 8)];
  for (size_t times = (size_t)1 << below(5); times; times--) mutate_once();
}

/* ---- failures */

static void tell(void) { /* the case, for the command line of this program */
  char name[64];
  snprintf(name, sizeof name, "crash-%d", (int)getpid());
  FILE *file = fopen(name, "wb");
  if (!file) return;
  fwrite(current.bytes, 1, current.size, file);
  fclose(file);
  fprintf(stderr, "the case is in %s, %zu bytes\n", name, current.size);
}

static void on_abort(int number) {
  (void)number;
  tell();
  signal(SIGABRT, SIG_DFL);
}

/* Of the sanitizers' runtime, where there is one. */
__attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)(void));

static void read_case(const char *name) {
  FILE *file = fopen(name, "rb");
  if (!file) {
    fprintf(stderr, "%s: %s\n", name, strerror(errno));
    exit(2);
  }
  current.size = fread(current.bytes, 1, MOST, file);
  fclose(file);
}

static int replay(int count, char **names) {
  for (int i = 0; i < count; i++) {
    read_case(names[i]);
    LLVMFuzzerTestOneInput(current.bytes, current.size);
    printf("ok %s\n", names[i]);
  }
  return 0;
}

static uint64_t setting(const char *name, const char *argument, uint64_t otherwise) {
  const char *text = getenv(name);
  if (!text || !*text) text = argument;
  return text ? strtoull(text, NULL, 10) : otherwise;
}

int main(int argc, char **argv) {
  if (argc > 1 && access(argv[1], F_OK) == 0) return replay(argc - 1, argv + 1);
  uint64_t cases = setting("VORTEX_FUZZ_CASES", argc > 1 ? argv[1] : NULL, 100000);
  uint64_t seed = setting("VORTEX_FUZZ_SEED", NULL, 1);
  random_state = seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
  signal(SIGABRT, on_abort);
  if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(tell);
  for (int i = 2; i < argc && corpus_size < CORPUS; i++) {
    read_case(argv[i]);
    corpus[corpus_size++] = current;
  }
  for (uint64_t i = 0; i < cases; i++) {
    next_case();
    /* In memory of exactly its size, so that reading behind it is seen. */
    uint8_t *bytes = malloc(current.size ? current.size : 1);
    if (!bytes) return 2;
    memcpy(bytes, current.bytes, current.size);
    LLVMFuzzerTestOneInput(bytes, current.size);
    free(bytes);
    if (was_new() || !corpus_size) corpus[corpus_size < CORPUS ? corpus_size++ : below(CORPUS)] = current;
  }
  size_t ways = 0;
  for (size_t i = 0; i < MAP; i++) ways += seen[i] != 0;
  printf("ok %" PRIu64 " cases, seed %" PRIu64 ": %zu ways, %zu kept\n", cases, seed, ways, corpus_size);
  return 0;
}
