// timeline: what every rank did when, on one clock (output.timeline): spans of the forward pass, exchanges,
// waits.
//
// Owns: the recorder of this process, the merge of all ranks' spans, the ranges of profilers.
// Independent of: files and their format (src/report/timeline_write.h).
// Invariant: spans of a rank nest. A span that has no room is counted, not kept, and so is what lies in it.
// With no timeline a span costs a branch. Only the thread that calls the steps has spans.
#pragma once
#include "dist/clock_skew.h"

typedef enum {
  SPAN_BATCH, // embedding and all layers of a batch; amount: its tokens
  SPAN_LAYER,
  SPAN_EMBED,
  SPAN_ATTENTION,
  SPAN_PROJECT,
  SPAN_ATTEND,
  SPAN_ROUTE,
  SPAN_MOE,
  SPAN_EXPERTS_UP,
  SPAN_EXPERTS_DOWN,
  SPAN_COMBINE,
  SPAN_HEAD,   // amount: rows of logits
  SPAN_DIGEST, // of a layer or of logits
  SPAN_ROWS_READ,
  SPAN_ROWS_WRITE,
  SPAN_ROUTING,     // to and from the host
  SPAN_PEERS,       // an exchange inside the device's kernels
  SPAN_EXCHANGE,    // amount: bytes that this rank sends
  SPAN_WAIT,        // in an exchange: until the last rank has come; found in the merge
  SPAN_WAIT_DEVICE, // until it has done what was enqueued
} span_kind;
enum { SPAN_COUNT = SPAN_WAIT_DEVICE + 1 };

typedef struct {
  const char *name;     // "experts_up"
  const char *category; // "batch", "layer", "step", "exchange", "wait"
  const char *amount;   // what its amount counts: "tokens"; NULL: it has none
} span_info;

const span_info *span_get(span_kind kind);

enum { SPAN_NO_LAYER = -1, SPAN_NO_AMOUNT = -1, SPAN_LABEL = 32 };

typedef struct {
  double start, end; // clock_seconds() of the rank; after the merge of the rank that merges
  int64_t amount;    // or SPAN_NO_AMOUNT
  int32_t layer;     // or SPAN_NO_LAYER
  int16_t kind;      // a span_kind
  int16_t label;     // timeline_label; below 0: none
  int32_t last;      // of an exchange: the rank that came last; else -1
  int32_t depth;     // spans around it
  double wait;       // of an exchange: seconds until that rank came, at most its own
} span;

typedef struct timeline timeline;

// ---- recording: local ----

extern timeline *timeline_running; // of this process; NULL: none

void timeline_push(span_kind kind, int64_t layer);
void timeline_pop(int64_t amount);

static inline void span_start(span_kind kind, int64_t layer) {
  if (timeline_running) timeline_push(kind, layer);
}
static inline void span_end(int64_t amount) { // of the innermost
  if (timeline_running) timeline_pop(amount);
}
void timeline_set_label(const char *name);
// From here on spans are of this name, that of an arm.
static inline void timeline_label(const char *name) {
  if (timeline_running) timeline_set_label(name);
}

// ---- open, merge, close ----

// Collective. From here on this process records, at most `room` spans; `root` merges.
status timeline_open(timeline **out, comm *c, int root, size_t room);
void timeline_close(timeline *t); // takes NULL

typedef struct { // what all ranks know of a rank's clock
  clock_skew start, end;
} rank_clock;

typedef struct {         // at the start, of all ranks
  double largest_skew;   // seconds between a rank's clock and root's
  double largest_bound;  // of its error
  const char *profilers; // that are told the spans: "nvtx", "none"; NULL: no timeline is kept
} timeline_figures;

timeline_figures timeline_describe(const timeline *t); // local; takes NULL
const char *timeline_profilers(void);                  // of this build: "nvtx", "none"

typedef struct { // of one rank, in the merge
  int rank;
  rank_clock clock;
  const span *spans; // by start; times on root's clock since timeline_open
  size_t n_spans;
  uint64_t lost; // spans that had no room
} rank_spans;

// Collective, once: measures the clocks again, finds the waits in exchanges, and calls take(context, rank)
// for each rank in turn, on root alone. An error of it is an error of all ranks, after the last rank.
status timeline_merge(timeline *t, status (*take)(void *context, const rank_spans *rank), void *context);
const char *timeline_label_name(const timeline *t, int label); // the same on every rank; "": none
comm *timeline_comm(const timeline *t);
