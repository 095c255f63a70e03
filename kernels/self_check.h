// self_check: a small fixed computation over every step that a path needs for a model's weight types, on
// one backend and its row. By the law its digest is the same on every machine.
//
// Owns: a model of the given one's weight types and heads, but of few layers, rows and tokens, whose weights
// are drawn.
// Independent of: the model's file and its numbers, ranks.
// It runs no captured graph, so not the one launch of all layers of a token; the known answers do.
// Invariant: the digest follows from the path, the part, the shape and the types alone.
#pragma once
#include "kernels/backend.h"

typedef enum {
  CHECK_WHOLE,   // all steps: embedding to logits, several tokens and one, attention over three chunks
  CHECK_EXPERTS, // experts_up and experts_down alone, as an expert rank computes them
} check_part;
enum { CHECK_PARTS = 2 };

typedef struct {
  const backend_ops *backend;
  path_kind path; // of all steps
  check_part part;
  const model_weights *like; // only its shape and the types of its matrices are read
  bool kv_f16;
  int threads, host_rank;
  const char *row; // ISA row of the cpu backend, "auto" or a name
} self_check_params;

// Local. *digest: never 0. The row or device that computed it is printed to row[row_bytes]. An error where
// the backend does not open for such a model, or a step fails.
status self_check_run(uint64_t *digest, char *row, size_t row_bytes, const self_check_params *p);
