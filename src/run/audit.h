// audit: a rank recomputes outputs of other ranks' experts from the model file, and finds the rank that lies.
//
// All ranks take the same outputs, right or wrong, so a wrong one leaves equal digests on every rank; only
// its recomputation shows it. By the law the cpu backend gives the bits of any backend.
//
// Owns: backends of its own for the experts of other ranks, whose weights it reads from the mapped file, and
// what was recomputed so far. Independent of: how rows reached this rank.
// Invariant: which slots are recomputed follows from the share, the batches and the routing, not from a
// clock; a slot is given to one rank, which did not compute it, so a share of 1 covers every slot of another
// rank once.
#pragma once
#include "dist/comm.h"
#include "dist/topology.h"
#include "src/model/model.h"
#include "src/run/audit_coverage.h"

typedef struct {
  const model *m; // this and the next two are kept by reference
  comm *c;
  const bool *computes_shared; // [ranks]; NULL: all. Only these hold slots, and so recompute
  path_kind shared;
  const path_kind *experts_path; // [ranks] of each rank's experts; copied
  int threads;
  const char *row; // ISA row of the cpu backend
  double share;    // of the slots of other ranks, above 0 and at most 1
} audit_params;

typedef struct audit audit;

status audit_open(audit **out, const audit_params *p); // local
void audit_close(audit *a);                            // takes NULL

typedef struct {               // of a batch, on a rank that has received its slots
  backend *compute;            // of which rows of ROWS_NORMED and ROWS_SLOTS are read
  int64_t first, count;        // the rows of tokens whose slots are here
  bool is_sharded;             // other ranks hold the slots of other rows; else every shared rank holds these
  const expert_global *expert; // [..][top_k] by row
  const int32_t *rank_of_slot; // that computed it, by slot
  const int64_t *row_of_slot;  // by slot: row * top_k + k
} audited_rows;

// Local. Recomputes this rank's choice of the slots of one layer. A difference is an error that names rank,
// host, layer and expert.
status audit_layer(audit *a, int64_t layer, const audited_rows *rows);

// Collective.
status audit_cover(const audit *a, audit_coverage *out);
