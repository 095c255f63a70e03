// screen_unit: what `screen` makes one unit compute, a row of this rank's cores or its GPU: one sequence of
// tokens, cut in every way that a backend knows, all experts of the model on this rank.
//
// Independent of: other ranks, which bits are right.
// Invariant: the law makes every cut give the same digests: of each layer for each sequence, and of the
// logits of all positions. So one set of digests is expected of all cuts, units, hosts and builds.
#pragma once
#include "src/lab/screen_store.h"
#include "src/model/model.h"
#include "src/run/placement.h"

typedef enum {
  CUT_PROBES, // the first tokens, with every tensor shown
  CUT_PROMPT, // a batch of the whole sequence
  CUT_WIDE,   // of all sequences: the widest tiles
  CUT_PARTS,  // the whole sequence, by the parts of the steps that ranks with other ranks run
  CUT_RAGGED, // batches of 2, 3, 5, 9, 17, 33, 65 tokens
  CUT_BATCH,  // one position of all sequences at a time
  CUT_DECODE, // one token at a time: memory's speed
} screen_cut;
enum { SCREEN_CUTS = CUT_DECODE + 1, SCREEN_PROBE_TOKENS = 4 };

const char *screen_cut_name(screen_cut cut); // "prompt"

typedef struct { // the same for all units of a rank; kept by reference
  const model *m;
  const placement *experts; // all of them owned by this rank
  const int32_t *tokens;    // [n_tokens]
  int64_t n_tokens, sequences;
  int threads, host_rank;
  double deadline; // seconds that the host waits for a device
} screen_work;

typedef struct {
  const screen_work *work;
  const path_info *path;
  backend *compute;
  int64_t sequences;
  int32_t *token, *sequence, *position; // the batch that is put together [sequences * n_tokens]
  uint64_t *layers;                     // [n_layers][sequences] of the last run
  uint64_t *logits;                     // [sequences]
  token_batch last;                     // the last batch of the last run
} screen_unit;

// Local. row: an ISA row of the cpu backend; not read by others.
status screen_unit_open(screen_unit *out, const screen_work *work, path_kind path, const backend_ops *where,
                        const char *row, int64_t sequences);
void screen_unit_close(screen_unit *u); // of zeros too

int64_t screen_probe_tokens(const screen_work *work);
// Local. Fills `layers` and `logits` by a cut other than CUT_PROBES.
status screen_unit_run(screen_unit *u, screen_cut cut);
// Local. CUT_PROBES into the store, which keeps or compares.
status screen_unit_probe(screen_unit *u, screen_store *store, bool compares);
// Tokens that a run of the cut computes.
int64_t screen_cut_tokens(const screen_unit *u, screen_cut cut);
// Local. The residual stream after the last layer of the last run's last batch, [last.n][hidden].
status screen_unit_stream(screen_unit *u, double *out);
