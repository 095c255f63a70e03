// planted_fault: moe_run with a fault of its own in one phase of one rank, for tests/system/test_faults.py.
//
//   moe_run_faulty KIND PHASE RANK FILE [moe_run's args]
//
// KIND: tell (nothing but the word that the phase is there), kill, stop (the process, by a signal), leave (it
// ends with 0, as if all was done), fail (a status that no rank agrees on), cut, spoil (FILE is cut short, or
// all but its first bytes become 0xff). RANK plants it. Two kinds have no phase: with "sparse" the file
// system knows no fallocate; with "twice" every rank adds the attention of layer RANK twice. With "expert"
// every output of expert PHASE, or of "all" experts, that RANK computes is 1.0001 times the right one. With
// "replica" RANK believes something else than the others of experts with several holders: in PHASE "turn"
// which slots are its own, in "map" who holds them. A rank that ends in order says so.
//
// The linker's --wrap leads the calls of the library here, so the phase is met for certain and needs no
// clock. Invariant: without its fault the program is moe_run.
#include "src/report/job_report.h"
#include "src/run/forward.h"
#include <errno.h>
#include <fcntl.h>
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KEPT_BYTES = 64 << 10 }; // at least the header of a test's model

static struct {
  const char *kind, *phase, *file;
  int rank;
  bool in_exchange; // the next wait for messages is that of an exchange
} plan_of_fault;

int __real_main(int argc, char **argv);
int __wrap_main(int argc, char **argv);

status __real_model_check_weights(const model *m, const expert_map *held, int rank, int threads,
                                  uint64_t *shared_hash, uint64_t *experts_hash, zero_bytes *zeros);
status __wrap_model_check_weights(const model *m, const expert_map *held, int rank, int threads,
                                  uint64_t *shared_hash, uint64_t *experts_hash, zero_bytes *zeros);
status __real_forward_layer(forward_state *f, int64_t layer);
status __wrap_forward_layer(forward_state *f, int64_t layer);
int __real_MPI_Testall(int count, MPI_Request *requests, int *done, MPI_Status *statuses);
int __wrap_MPI_Testall(int count, MPI_Request *requests, int *done, MPI_Status *statuses);
status __real_job_report_finish(job *j, report *r);
status __wrap_job_report_finish(job *j, report *r);
status __real_report_file_retract(const char *dir);
status __wrap_report_file_retract(const char *dir);
int __real_fallocate(int fd, int mode, off_t offset, off_t size);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t size);
void __real_comm_close(comm *c);
void __wrap_comm_close(comm *c);

const int64_t *__real_exchange_place_slots(exchange *x, const int32_t *ranks, int64_t n,
                                           const int64_t *slots_of_rank);
const int64_t *__wrap_exchange_place_slots(exchange *x, const int32_t *ranks, int64_t n,
                                           const int64_t *slots_of_rank);
status __real_exchange_transfer(exchange *x, void *rows, void *stream, size_t row_bytes,
                                const row_range *range, int64_t layer);
status __wrap_exchange_transfer(exchange *x, void *rows, void *stream, size_t row_bytes,
                                const row_range *range, int64_t layer);

status __real_placement_open_held(placement *out, const bool *holds, int64_t n_layers, int64_t n_experts,
                                  int n_ranks, int rank);
status __wrap_placement_open_held(placement *out, const bool *holds, int64_t n_layers, int64_t n_experts,
                                  int n_ranks, int rank);

static int own_rank(void) {
  int rank;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

static void spoil(const char *path, bool cut) {
  int fd = open(path, O_WRONLY);
  struct stat s;
  if (fd < 0 || fstat(fd, &s)) abort();
  char bytes[4096];
  memset(bytes, 0xff, sizeof bytes);
  if (cut && ftruncate(fd, KEPT_BYTES)) abort();
  for (off_t at = KEPT_BYTES; !cut && at < s.st_size; at += (off_t)sizeof bytes)
    if (pwrite(fd, bytes, s.st_size - at < (off_t)sizeof bytes ? (size_t)(s.st_size - at) : sizeof bytes,
               at) < 0)
      abort();
  close(fd);
}

// Where the phase `name` is: the fault, on the rank that plants it, once.
static status at_phase(const char *name) {
  static bool planted;
  if (planted || strcmp(name, plan_of_fault.phase) || own_rank() != plan_of_fault.rank) return 0;
  planted = true;
  fprintf(stderr, "planted: %s in %s on rank %d\n", plan_of_fault.kind, name, plan_of_fault.rank);
  const char *kind = plan_of_fault.kind;
  if (!strcmp(kind, "kill")) raise(SIGKILL);
  if (!strcmp(kind, "stop")) raise(SIGSTOP);
  if (!strcmp(kind, "leave")) _exit(0);
  if (!strcmp(kind, "cut") || !strcmp(kind, "spoil")) spoil(plan_of_fault.file, !strcmp(kind, "cut"));
  return strcmp(kind, "fail") ? 0 : FAIL("a fault was planted in %s", name);
}

// ---- the phases ----

status __wrap_model_check_weights(const model *m, const expert_map *held, int rank, int threads,
                                  uint64_t *shared_hash, uint64_t *experts_hash, zero_bytes *zeros) {
  TRY(at_phase("load"));
  return __real_model_check_weights(m, held, rank, threads, shared_hash, experts_hash, zeros);
}

static const forward_state *forward; // of the layer that runs

status __wrap_forward_layer(forward_state *f, int64_t layer) {
  forward = f;
  if (layer == 1) TRY(at_phase("prefill"));
  if (layer == 1 && f->batch.rows.n == 1) TRY(at_phase("decode"));
  if (!strcmp(plan_of_fault.kind, "twice") && layer == plan_of_fault.rank)
    TRY(f->compute->ops->attention(f->compute, layer, &f->batch.rows));
  plan_of_fault.in_exchange = layer == 1;
  status result = __real_forward_layer(f, layer);
  plan_of_fault.in_exchange = false;
  return result;
}

// All messages are on their way, none has been waited for.
int __wrap_MPI_Testall(int count, MPI_Request *requests, int *done, MPI_Status *statuses) {
  if (plan_of_fault.in_exchange) (void)at_phase("exchange");
  return __real_MPI_Testall(count, requests, done, statuses);
}

status __wrap_job_report_finish(job *j, report *r) {
  if (!job_is_reporting(j)) TRY(at_phase("report"));
  return __real_job_report_finish(j, r);
}

// The new files are whole under other names, the old report is there still.
status __wrap_report_file_retract(const char *dir) {
  TRY(at_phase("report"));
  return __real_report_file_retract(dir);
}

void __wrap_comm_close(comm *c) {
  (void)at_phase("end");
  __real_comm_close(c);
}

// ---- a rank that takes the wrong replica ----

status __wrap_placement_open_held(placement *out, const bool *holds, int64_t n_layers, int64_t n_experts,
                                  int n_ranks, int rank) {
  bool wrong = !strcmp(plan_of_fault.kind, "replica") && rank == plan_of_fault.rank;
  bool map = wrong && !strcmp(plan_of_fault.phase, "map");
  size_t n = (size_t)(n_layers * n_experts * n_ranks);
  bool *other = malloc(n * sizeof *other);
  if (!other) abort();
  memcpy(other, holds, n * sizeof *other);
  for (int r = 0; r < n_ranks && map; r++) other[n - 1 - (size_t)r] = true; // of the last layer's last expert
  status result = __real_placement_open_held(out, other, n_layers, n_experts, n_ranks, rank);
  for (int64_t i = 0; i < n_layers * n_experts && wrong && !map && !result;
       i++) // so it computes none of theirs
    if (out->first[i + 1] - out->first[i] > 1) out->local[i] = -1;
  free(other);
  return result;
}

// ---- outputs of experts that are wrong before they are sent ----

static const int64_t *row_of_slot;
static int64_t n_slots;

const int64_t *__wrap_exchange_place_slots(exchange *x, const int32_t *ranks, int64_t n,
                                           const int64_t *slots_of_rank) {
  row_of_slot = __real_exchange_place_slots(x, ranks, n, slots_of_rank);
  n_slots = n;
  return row_of_slot;
}

// This rank computes the row: it sends it to some other.
static bool is_own(const exchange *x, const row_range *range, int64_t row) {
  int size = exchange_size(x), rank = exchange_rank(x);
  for (int to = 0; to < size; to++) {
    const row_range *r = &range[rank * size + to];
    if (to != rank && row >= r->first && row < r->first + r->count) return true;
  }
  return false;
}

static void scale_rows(const exchange *x, char *rows, size_t row_bytes, const row_range *range) {
  bool all = !strcmp(plan_of_fault.phase, "all");
  for (int64_t i = 0; i < n_slots; i++) {
    if (!all && forward->route.expert[i].id != atoi(plan_of_fault.phase)) continue;
    if (!is_own(x, range, row_of_slot[i])) continue;
    float *row = (float *)(void *)(rows + (size_t)row_of_slot[i] * row_bytes);
    for (size_t k = 0; k < row_bytes / sizeof *row; k++) row[k] *= 1.0001f;
  }
}

status __wrap_exchange_transfer(exchange *x, void *rows, void *stream, size_t row_bytes,
                                const row_range *range, int64_t layer) {
  if (!strcmp(plan_of_fault.kind, "expert") && range == exchange_slots(x) &&
      exchange_rank(x) == plan_of_fault.rank)
    scale_rows(x, (char *)rows, row_bytes, range);
  return __real_exchange_transfer(x, rows, stream, row_bytes, range, layer);
}

int __wrap_fallocate(int fd, int mode, off_t offset, off_t size) {
  if (strcmp(plan_of_fault.kind, "sparse")) return __real_fallocate(fd, mode, offset, size);
  errno = EOPNOTSUPP;
  return -1;
}

static void tell_end(int code, void *none) {
  (void)none;
  fprintf(stderr, "planted: a rank ended with %d\n", code);
}

int __wrap_main(int argc, char **argv) {
  enum { WORDS = 4 };
  if (argc <= WORDS) return 2;
  plan_of_fault.kind = argv[1];
  plan_of_fault.phase = argv[2];
  plan_of_fault.rank = atoi(argv[3]);
  plan_of_fault.file = argv[4];
  argv[WORDS] = argv[0];
  on_exit(tell_end, NULL);
  return __real_main(argc - WORDS, argv + WORDS);
}
