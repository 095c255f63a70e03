// products: matrices times activations as tasks, a tile of rows each.
//
// Owns: how a product is cut into tasks and which of an ISA row's kernels takes a task.
// Invariant: each task writes rows of the output that no other does, so any order of tasks gives the same
// bits.
#pragma once
#include "kernels/cpu/state.h"
#include <stdalign.h>

// The tasks of one phase, which its threads take as they become free. With few tokens memory bandwidth bounds
// a product: threads then take each task one ahead, so that its weights are prefetched while the one before
// is computed. With more, arithmetic does, and a task held back costs time.
typedef struct {
  int64_t count, fixed; // of these `fixed` are divided among the threads beforehand
  bool ahead;           // taken one ahead
  alignas(64) int64_t next;
  char unused[64 - sizeof(int64_t)];
} task_queue;

// ahead: the tasks are products of few tokens.
task_queue task_queue_of(int64_t count, bool ahead);

// Runs task `task`; `after` is what the thread runs next, or -1 when that is not known.
typedef void task_function(cpu_backend *b, const void *what, int64_t task, int64_t after);

// By all threads of a run; one that finds no task left returns.
void tasks_run(cpu_backend *b, task_queue *q, task_function *run, const void *what);

typedef struct { // some rows of a matrix times the activations of n tokens, out[t] the row of token t
  const path_kernels *kernels;
  const matrix *m;
  void *const *out;
  void *const *reals;
  const block_q8_K *const *q8k; // rounded rows (row.h)
  int64_t n;
  int64_t tile;         // rows of a task, at most ROW_TILE
  int64_t chunk;        // tokens of a task, a multiple of PACKED_TOKENS, or 0: all
  packed_groups packed; // the same rows' groups, or none: it reads the rows themselves
} product;

// All tiles of up to three products, one after the other in the order of the list.
typedef struct {
  product part[3];
  int64_t count, end[3]; // tasks up to the end of each part
  task_queue tasks;
} product_list;

char *cpu_thread_scratch(cpu_backend *b); // of the calling thread
matrix matrix_rows(const matrix *m, int64_t first, int64_t count);
int64_t matrix_tiles(const matrix *m, int64_t tile);
const void *matrix_tile_data(const matrix *m, int64_t tile, int64_t index);

// The height of `m`'s tiles in a step on b->n_threads threads: ROW_TILE, or less where `tokens` are few and
// the `copies` matrices like it would give a thread less than some tiles.
int64_t tile_rows_of(const cpu_backend *b, const path_kernels *kernels, const matrix *m, int64_t copies,
                     int64_t tokens);

typedef struct {
  int64_t first, count;
} tile_range;
tile_range tile_at(const matrix *m, int64_t tile, int64_t index);

// A matrix, of which there are copies of other data, in tasks of neighbouring tiles.
typedef struct {
  int64_t tile;  // rows of a tile
  int64_t tiles; // of the matrix
  int64_t strip; // tiles of a task: more than one where `tokens` are few, so that a thread reads long streams
  int64_t tasks; // of the matrix
} strip_cut;
strip_cut strip_cut_of(const cpu_backend *b, const path_kernels *kernels, const matrix *m, int64_t copies,
                       int64_t tokens);
tile_range strip_tiles(const strip_cut *cut, int64_t task);
tile_range strip_rows(const strip_cut *cut, const matrix *m, int64_t task);
const void *strip_data(const strip_cut *cut, const matrix *m, int64_t task);

// The groups of `rows`, from group `first` on, that a product of n tokens with `m` reads; or none.
packed_groups packed_for(const path_kernels *kernels, const packed_rows *rows, int64_t first, const matrix *m,
                         int64_t n);
bool has_packed(const packed_rows *rows); // whether any product may read them
// By all threads of a run, no barrier: n rows into groups; the rows of b->groups, of which row i is slot i.
void pack_rows(cpu_backend *b, const packed_rows *to, const block_q8_K *const *rows, int64_t n);
void pack_slots(cpu_backend *b, const packed_rows *to, const block_q8_K *const *rows);

// A product's tasks: all tiles of its first tokens, then those of the next.
int64_t product_tasks(const product *p);
typedef struct {
  tile_range rows, tokens;
} product_part;
product_part product_part_of(const product *p, int64_t task);

// Tokens of a task of `m` in a step on b->n_threads threads, as product.chunk.
int64_t token_chunk_of(const cpu_backend *b, const path_kernels *kernels, const matrix *m, int64_t tile,
                       int64_t tokens, bool packed);

// Task `task`. ahead: what the thread reads next, or NULL.
void product_tile(cpu_backend *b, const product *p, int64_t task, const void *ahead);

void product_list_add(product_list *l, product p);
void product_list_run(cpu_backend *b, product_list *l); // as tasks_run
// The product of which task `task` is task *index.
const product *product_list_find(const product_list *l, int64_t task, int64_t *index);
