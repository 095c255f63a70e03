// screen_store: the tensors of a few tokens by name (kernels/probes.c), as one run of a unit gave them: kept,
// hashed, and the next run's held against them.
//
// Independent of: who computes them. Invariant: tensors are numbered in the order in which a forward pass
// computes them, so the first that differs is where a fault came in.
#pragma once
#include "kernels/backend.h"

typedef struct {              // of a tensor that was held against the kept one
  int64_t rows, values, bits; // that differ
} screen_difference;

typedef struct {
  model_shape shape;
  size_t real_bytes;
  int64_t n_tensors; // (n_layers + 2) * PROBE_COUNT, most of the first and last block do not exist
  size_t *start;     // [n_tensors + 1] byte of `kept` where each begins
  size_t bytes;
  char *kept;                // [bytes]
  uint64_t *hash;            // [n_tensors] of the last run, sums over rows; 0: the tensor does not exist
  screen_difference *differ; // [n_tensors] of the last run, where it was compared
  bool compares;
} screen_store;

status screen_store_open(screen_store *s, const model_shape *shape, const path_info *path, int64_t tokens);
void screen_store_close(screen_store *s);
// Before a run. compares: rows are held against the kept ones; else they are kept.
void screen_store_start(screen_store *s, bool compares);
// probe_watch.show, with the store as context.
void screen_store_show(void *store, probe_point point, int64_t layer, int64_t row, const void *numbers,
                       size_t real_bytes);

// "ffn_moe_gate-3" of a tensor's number; "result_output"
void screen_store_name(char *out, size_t size, int64_t tensor);
// Bits in which two arrays of `bytes` differ.
int64_t screen_count_bits(const void *a, const void *b, size_t bytes);
