// probe_rows: the rows of probes that the steps of a batch have shown, until they are gathered, in any rank
// layout.
//
// Owns: the rows that this rank has seen, as doubles. Independent of: what they mean and who reads them.
// Invariant: each row is gathered from one rank, its source: of a slot, the rank that computes it; of a
// token-sharded batch, the rank that computes the token; else the reporting rank.
#pragma once
#include "dist/comm.h"
#include "kernels/backend.h"

typedef struct {
  int64_t width, room; // numbers in a row; rows that there is room for
  int64_t n_seen;
  int64_t *seen;   // [n_seen] row of each, in the order in which they were shown
  double *numbers; // [room][width], in that order
} probe_store;

typedef struct {
  comm *c;
  int reporting;                  // the reporting rank
  probe_store store[PROBE_COUNT]; // room 0: not opened
  double *taken;                  // the last rows that were taken
  char *buffer;                   // records on their way to the reporting rank
  size_t buffer_bytes;
  comm_part *part;    // [ranks][ranks]
  int64_t *n_of_rank; // [ranks] records
} probe_rows;

// Which rows of a batch this rank is the source of, and where each belongs.
typedef struct {
  int64_t first, count;        // of the batch's rows
  const int32_t *row_of_token; // NULL: row and token are the same
} probe_order;

// Local. points: bits 1 << probe_point. Allocates for all of them; takes an open one too, which it closes
// first.
status probe_rows_open(probe_rows *p, comm *c, int reporting, const model_shape *s, uint32_t points,
                       int64_t max_batch, int64_t max_logit_rows);
void probe_rows_close(probe_rows *p); // takes NULL

void probe_rows_clear(probe_rows *p, uint32_t points); // before a step that shows them
// For probe_watch.show; `context` is the probe_rows.
void probe_rows_show(void *context, probe_point point, int64_t layer, int64_t row, const void *numbers,
                     size_t real_bytes);

// Collective. *out on the reporting rank: the probe of n tokens in order (of a probe per slot, top_k rows
// each); NULL elsewhere. A row that nobody has shown is an error.
status probe_rows_take(probe_rows *p, probe_point point, const probe_order *order, int64_t n_tokens,
                       int64_t top_k, const double **out);
