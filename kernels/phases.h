// phases: the named parts of the forward pass by which a backend reports where its time goes (bench.phases).
//
// Owns: their names and order. Independent of: how a backend measures, and what a phase reads and computes
// (src/commands/phase_work.h).
// Invariant: every moment of a step is in one phase. What a backend fuses with a neighbour is in the phase
// that reads most; the other then has a count of 0.
#pragma once
#include "base/seconds_log.h"
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  PHASE_EMBED,
  PHASE_ATTN_NORM, // of x, rounded where the path rounds; so are the others' outputs
  PHASE_QKV,       // products q, k, v
  PHASE_HEADS,     // norm and RoPE of heads, keys and values into the cache
  PHASE_ATTEND,    // scores, weights, values, fold of chunks
  PHASE_O,         // product o, x +=
  PHASE_FFN_NORM,
  PHASE_ROUTER, // product
  PHASE_TOP_K,  // the choice, slots grouped by expert
  PHASE_GATE_UP,
  PHASE_SWIGLU,
  PHASE_DOWN,
  PHASE_COMBINE,
  PHASE_EXCHANGE, // rows between ranks, where the backend does it; else the caller measures it
  PHASE_HEAD_NORM,
  PHASE_HEAD,
  PHASE_DIGEST,
} phase_kind;
enum { PHASE_COUNT = PHASE_DIGEST + 1 };

typedef enum { PHASE_ONCE, PHASE_IN_LAYER } phase_scope; // of a batch; of each of its layers

typedef struct {
  const char *name;
  phase_scope scope;
} phase_info;

const phase_info *phase_get(phase_kind phase);

typedef struct {
  double seconds; // elapsed
  // Of these, the mean over threads (thread blocks) in which they had nothing to do: barriers, and threads
  // that the phase does not use. NaN: not known.
  double waiting;
  int64_t count; // how often it ran
} phase_time;

typedef struct {
  phase_time of[PHASE_COUNT];
  seconds_log *exchanges; // also each time of PHASE_EXCHANGE, in order; NULL: nobody asks
} phase_times;

// What the hardware under a backend could do at most; NaN: not known, and then no share of it is given.
typedef struct {
  double bytes_per_second; // read from the memory that holds the weights
  double int8_per_second;  // multiplications of bytes with their additions, two operations each
} backend_peaks;

#ifdef __cplusplus
}
#endif
