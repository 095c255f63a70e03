// phase_work: what each phase of a batch must read from memory and multiply, from the model, the batch and
// its routing. The same for every backend.
//
// Owns: the counting. Independent of: how long it took. Invariant: each byte is counted once a batch, for all
// of its tokens.
#pragma once
#include "src/run/arm.h"
#include "src/run/placement.h"

typedef struct {
  uint64_t bytes[PHASE_COUNT];
  // Multiplications of bytes with their additions, two operations each; what is computed in reals is not
  // counted.
  double int8_operations[PHASE_COUNT];
} phase_work;

typedef struct {
  const model *m;
  const placement *experts; // which of them this rank owns
  bool kv_f16;
  int rank;        // this one
  uint8_t *chosen; // room: [n_experts]
} phase_counter;

uint64_t matrix_bytes(const matrix *m);         // as stored
uint64_t phase_work_bytes(const phase_work *w); // of all phases

// Shared steps of a batch but for the heads: embedding, attention, router.
void phase_work_add_shared(phase_work *w, const phase_counter *c, const arm *a, const token_batch *batch);
// This rank's experts in the routing of the layer that ran last, each once, however many tokens chose it.
// The arm's layers are watched.
void phase_work_add_experts(phase_work *w, const phase_counter *c, const arm *a, int64_t layer,
                            const token_batch *batch);
void phase_work_add_heads(phase_work *w, const phase_counter *c, const arm *a, int64_t n_rows);
