// screen_parts: what the files of `screen` share. For them alone.
#pragma once
#include "src/lab/screen.h"
#include "src/lab/screen_vote.h"

typedef struct { // what is expected of a path: entries are tensors, then layers, then the logits
  path_kind path;
  int64_t n_tensors, n_layers, n; // entries
  uint64_t *expected;             // [n]
  bool *decided;                  // [n]
  screen_store store;             // the tensors of the first tokens
  double *stream;                 // [n_tokens][hidden] after the last layer
  bool has_values;                // store and stream are what is expected; else no bits can be counted
  int voters;                     // of all ranks
} screen_reference;

typedef struct {
  char *buffer; // [ranks][bytes]: of each sender one part
  comm_part *part;
  size_t bytes; // of a part
  transport *t; // NULL: one rank
} screen_links;

typedef struct {
  job *j;
  screen_result *out;
  screen_work work;
  placement experts;
  int32_t *tokens;
  screen_rank mine;
  screen_finding *found; // [SCREEN_FINDINGS] of this rank
  screen_reference reference[PATH_COUNT];
  bool uses[PATH_COUNT]; // some arm has the path
  screen_unit unit[SCREEN_UNITS];
  double *stream; // [sequences * n_tokens][hidden] of a run
  double start;   // of the rounds; 0: before
  screen_links links;
} screen;

// ---- screen_found.c: local ----

// A fault of a unit; what was seen before is counted.
void screen_add(screen *s, const screen_finding *f);
// Two runs of a unit gave different answers, first in this entry of the reference.
void screen_add_unsettled(screen *s, const screen_unit *u, int64_t entry, const screen_reference *r);
// Compares the last probes of a unit; adds what differs.
void screen_check_probes(screen *s, const screen_unit *u, const char *work);
// Compares the digests of the last run of a unit by a cut other than CUT_PROBES; adds what differs.
status screen_check_run(screen *s, screen_unit *u, screen_cut cut);

// ---- screen_start.c: collective ----

// The votes of all units of all ranks on a path, and what follows from them.
status screen_reference_open(screen *s, screen_reference *r, path_kind path);
void screen_reference_close(screen_reference *r);

// ---- screen_links.c: collective ----

status screen_links_open(screen *s);
void screen_links_close(screen_links *l);
status screen_links_run(screen *s, int64_t round);
