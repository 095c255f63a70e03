#define _GNU_SOURCE // madvise, _SC_LEVEL3_CACHE_SIZE
#include "src/commands/memory_bandwidth.h"
#include "base/clock.h"
#include "base/memory.h"
#include <errno.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PASSES = 8, CACHES = 4 }; // a thread reads four times the largest cache that it could have to itself,
// but all ranks of a host together no more than this, nor than a sixteenth of its memory. It is many times
// any host's caches, and what a job's --mem has to spare.
static const size_t host_bytes = (size_t)4 << 30;
enum { HOST_SHARE = 16 };

typedef uint64_t line __attribute__((vector_size(64)));

typedef struct {
  char *memory; // fresh from the system: not in any cache or node before its thread writes it
  size_t each;  // bytes of a thread
  int threads;
} reader;

static int ranks_of_host(const comm *c) {
  int n = 0;
  for (int r = 0; r < comm_size(c); r++) n += !strcmp(comm_host_of(c, r), comm_host(c));
  return n;
}

// threads: of a rank
static size_t bytes_of_thread(int threads, int ranks) {
  long cache = sysconf(_SC_LEVEL3_CACHE_SIZE), pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  size_t each = CACHES * (cache > 0 ? (size_t)cache : (size_t)64 << 20);
  size_t most = (size_t)pages / HOST_SHARE * (size_t)page; // a small machine stays usable
  if (most > host_bytes) most = host_bytes;
  most /= (size_t)threads * (size_t)ranks;
  if (each > most) each = most;
  return each / sizeof(line) / 8 * sizeof(line) * 8;
}

static status reader_open(reader *r, int threads, int ranks) {
  *r = (reader){.each = bytes_of_thread(threads, ranks), .threads = threads};
  size_t bytes = r->each * (size_t)threads;
  r->memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (r->memory == MAP_FAILED) {
    r->memory = NULL;
    return FAIL("cannot allocate %zu bytes to measure the memory's bandwidth: %s", bytes, strerror(errno));
  }
  madvise(r->memory, bytes, MADV_HUGEPAGE); // fewer page faults and TLB misses; where refused, slower
#pragma omp parallel num_threads(threads)
  memset(r->memory + (size_t)omp_get_thread_num() * r->each, 1, r->each);
  return 0;
}

static void reader_close(reader *r) {
  if (r->memory) munmap(r->memory, r->each * (size_t)r->threads);
}

static uint64_t sum_lines(const char *memory, size_t bytes) {
  const line *at = (const line *)(const void *)memory, *end = at + bytes / sizeof(line);
  line s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
  for (; at < end; at += 4) {
    s0 += at[0];
    s1 += at[1];
    s2 += at[2];
    s3 += at[3];
  }
  line s = s0 + s1 + s2 + s3;
  return s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
}

// Seconds of one pass; the sum is compared, so that no compiler leaves the reading out.
static status read_once(const reader *r, double *seconds) {
  uint64_t sum = 0;
  double start = clock_seconds();
#pragma omp parallel num_threads(r->threads) reduction(+ : sum)
  sum += sum_lines(r->memory + (size_t)omp_get_thread_num() * r->each, r->each);
  *seconds = clock_seconds() - start;
  if (sum != r->each / 8 * (uint64_t)r->threads * 0x0101010101010101u)
    return FAIL("the memory does not hold what was written to it");
  return 0;
}

typedef struct {
  double seconds, bytes;
} pass;

static status read_together(double *bytes_per_second, comm *c, const reader *r, pass *all) {
  pass mine = {.bytes = (double)r->each * r->threads}, whole = {0};
  TRY(comm_agree(c, 0, "the measurement of the memory")); // all start at once
  status read = read_once(r, &mine.seconds);
  TRY(comm_agree(c, read, "the measurement of the memory"));
  TRY(comm_allgather(c, all, &mine, sizeof mine, "the measurement of the memory"));
  for (int i = 0; i < comm_size(c); i++) {
    whole.bytes += all[i].bytes;
    if (all[i].seconds > whole.seconds) whole.seconds = all[i].seconds;
  }
  if (whole.bytes / whole.seconds > *bytes_per_second) *bytes_per_second = whole.bytes / whole.seconds;
  return 0;
}

status memory_bandwidth_measure(double *bytes_per_second, comm *c, const topology *place) {
  reader r = {.memory = NULL};
  pass *all = NULL;
  *bytes_per_second = 0;
  status mine = TAKE(&all, (size_t)comm_size(c), "the measurement of the memory");
  if (!mine) mine = reader_open(&r, topology_threads(place), ranks_of_host(c));
  status result = comm_agree(c, mine, "the measurement of the memory");
  for (int i = 0; i < PASSES && !result; i++) result = read_together(bytes_per_second, c, &r, all);
  reader_close(&r);
  free(all);
  return result;
}
