// trace_pair: two arms' traces laid beside each other: which row and which slot of one is which of the other.
//
// Owns: the matching of shapes, rows, slots and meanings, and a note of each transformation that it took.
// Independent of: what is measured.
// Invariant: what does not match by a rule is an error that names both files, never a silent guess.
#pragma once
#include "src/measure/probe_steps.h"
#include "src/run/npy_read.h"
#include "src/report/trace_read.h"

enum { SIDES = 2, MOST_NOTES = 32, NOTE_BYTES = 240 };

typedef struct {
  const recorded_trace *trace[SIDES];
  const recorded_trace_arm *arm[SIDES];
  int64_t n_layers;           // of the deeper one
  int64_t n_tokens;           // of both
  const int32_t *token;       // [n_tokens]; NULL: in neither
  const int32_t *sequence;    // [n_tokens]; NULL: one sequence
  int64_t *last, n_last;      // tokens that are the last of their sequence
  int64_t width[PROBE_COUNT]; // numbers of a token; 0: in neither
  head_shape heads;           // n_heads 0: not known, and attention is not recomputed
  int64_t top_k;              // 0: not known
  // Of the layer at hand: the slot of side 1 that has the expert of slot token * top_k + k of side 0; -1:
  // none.
  int32_t *slot_of;                   // [n_tokens][top_k]
  char notes[MOST_NOTES][NOTE_BYTES]; // what was transformed, in the order in which it was met
  int n_notes;
} trace_pair;

// a, b: arms of t and u. Kept by reference.
status trace_pair_open(trace_pair *out, const recorded_trace *t, const recorded_trace_arm *a,
                       const recorded_trace *u, const recorded_trace_arm *b);
void trace_pair_close(trace_pair *p);

bool pair_has(const trace_pair *p, int side, probe_point point, int64_t layer);
static inline bool pair_has_both(const trace_pair *p, probe_point point, int64_t layer) {
  return pair_has(p, 0, point, layer) && pair_has(p, 1, point, layer);
}

typedef struct { // one side's file of a probe
  npy_file file;
  int64_t rows, width; // tokens, and numbers of one
  double scale;        // from the file's meaning to that of this program
  bool only_last;      // its rows are those of trace_pair.last
} recorded_rows;

status recorded_rows_open(recorded_rows *out, trace_pair *p, int side, probe_point point, int64_t layer);
void recorded_rows_close(recorded_rows *r);
// The row of a token, -1: it has none.
int64_t recorded_rows_find(const recorded_rows *r, const trace_pair *p, int64_t token);
status recorded_rows_read(const recorded_rows *r, int64_t row, double *out); // [width]

// Sets slot_of, from the experts that both sides chose, or from the slots' order where they do not say.
status trace_pair_match_slots(trace_pair *p, int64_t layer);
