// planted_screen: moe_run with a machine that is at fault now and then, for test_screen.py.
//
//   moe_run_planted_screen KIND RANK RATE [moe_run's args]
//
// KIND: none; product (one bit of a product's output, of so many tiles of the experts' products); weight (one
// bit of one weight in memory, once, before so many runs: on a GPU in its memory); link (one bit of a row
// that was received, of so many transfers); start (as weight, before the first run, so that no vote of the
// rank is right). RANK plants it, each time with the probability RATE. It says each one that it plants.
//
// The linker's --wrap leads the calls of the library here. Invariant: with "none" the program is moe_run.
#include "kernels/cpu/products.h"
#include "dist/transport.h"
#include "src/lab/screen_unit.h"
#include <omp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { FAULTY_LAYER = 1, BIT = 12 }; // of a float: its mantissa's

static struct {
  const char *kind;
  int rank;
  double rate;
  atomic_ullong said;
} plan = {"none", -1, 0, 0};

int __real_main(int argc, char **argv);
int __wrap_main(int argc, char **argv);
void __real_product_tile(cpu_backend *b, const product *p, int64_t tile, const void *ahead);
void __wrap_product_tile(cpu_backend *b, const product *p, int64_t tile, const void *ahead);
status __real_screen_unit_run(screen_unit *u, screen_cut cut);
status __wrap_screen_unit_run(screen_unit *u, screen_cut cut);
status __real_screen_unit_probe(screen_unit *u, screen_store *store, bool compares);
status __wrap_screen_unit_probe(screen_unit *u, screen_store *store, bool compares);
status __real_transport_transfer(transport *t, void *rows, void *stream, const comm_part *part,
                                 const char *what);
status __wrap_transport_transfer(transport *t, void *rows, void *stream, const comm_part *part,
                                 const char *what);

// The same in the memory of an emulated GPU (planted_screen_cuda.cc); NULL: not there.
__attribute__((weak)) void *planted_device_weight(backend *b, int64_t layer);
void *planted_device_weight(backend *b, int64_t layer) {
  (void)b, (void)layer;
  return NULL;
}

static int own_rank(void) {
  const char *text = getenv("OMPI_COMM_WORLD_RANK");
  return text ? atoi(text) : 0;
}

static bool strikes(const char *kind) {
  static _Thread_local uint64_t state;
  if (strcmp(plan.kind, kind) || own_rank() != plan.rank) return false;
  if (!state) state = 0x9e3779b97f4a7c15u * (uint64_t)(omp_get_thread_num() + 1) + (uint64_t)getpid();
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return (double)(state >> 11) * 0x1p-53 < plan.rate;
}

static void say(const char *what) {
  if (!atomic_fetch_add(&plan.said, 1)) fprintf(stderr, "planted: %s on rank %d\n", what, plan.rank);
}

void __wrap_product_tile(cpu_backend *b, const product *p, int64_t tile, const void *ahead) {
  __real_product_tile(b, p, tile, ahead);
  if (!strikes("product") || p->kernels->path->real_bytes != sizeof(float)) return;
  uint32_t *out = (uint32_t *)p->out[0] + tile * ROW_TILE;
  *out ^= 1u << BIT;
  say("a bit of a product");
}

// The file's pages are shared and read-only: the one of the weight is replaced by a copy of its own.
static void flip_mapped(const void *weight) {
  long size = sysconf(_SC_PAGESIZE);
  char *page = (char *)((uintptr_t)weight / (uintptr_t)size * (uintptr_t)size), *copy = malloc((size_t)size);
  if (!copy) abort();
  memcpy(copy, page, (size_t)size);
  copy[(const char *)weight - page] ^= 1 << 5;
  if (mmap(page, (size_t)size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
      page)
    abort();
  memcpy(page, copy, (size_t)size);
  free(copy);
}

static void flip_weight(screen_unit *u) {
  static bool done;
  if (done || !(strikes("weight") || strikes("start"))) return;
  char *on_device = planted_device_weight(u->compute, FAULTY_LAYER);
  bool is_device = backend_is_on_device(u->compute->ops);
  if (!strcmp(plan.kind, "weight") && u->sequences == 1) return; // the units of the rounds alone
  if (is_device != (on_device != NULL)) abort();
  if (on_device)
    on_device[9] ^= 1 << 5;
  else
    flip_mapped((const char *)u->work->m->weights.layers[FAULTY_LAYER].q.data + 9);
  done = true;
  say("a bit of a weight");
}

status __wrap_screen_unit_run(screen_unit *u, screen_cut cut) {
  flip_weight(u);
  return __real_screen_unit_run(u, cut);
}

status __wrap_screen_unit_probe(screen_unit *u, screen_store *store, bool compares) {
  if (!strcmp(plan.kind, "start")) flip_weight(u);
  return __real_screen_unit_probe(u, store, compares);
}

status __wrap_transport_transfer(transport *t, void *rows, void *stream, const comm_part *part,
                                 const char *what) {
  status result = __real_transport_transfer(t, rows, stream, part, what);
  const char *text = getenv("OMPI_COMM_WORLD_SIZE");
  int size = text ? atoi(text) : 1, rank = own_rank();
  if (result || !strikes("link")) return result;
  for (int from = 0; from < size; from++) {
    const comm_part *in = &part[from * size + rank];
    if (from == rank || !in->bytes) continue;
    ((char *)rows)[in->offset + in->bytes / 2] ^= 1;
    say("a bit of a row");
  }
  return 0;
}

int __wrap_main(int argc, char **argv) {
  enum { WORDS = 3 };
  if (argc <= WORDS) return 2;
  plan.kind = argv[1];
  plan.rank = atoi(argv[2]);
  plan.rate = atof(argv[3]);
  argv[WORDS] = argv[0];
  return __real_main(argc - WORDS, argv + WORDS);
}
