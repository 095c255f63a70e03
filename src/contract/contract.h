// contract: named gates with bounds, read from TOML; docs/contracts.md explains every key.
//
// Owns: the keys, and the refusal of a contract that is malformed, gates nothing or contradicts itself.
// Independent of: reports (judge.h) and ranks.
// Invariant: what is not a usable contract is STATUS_REFUSED, with file, line and key.
#pragma once
#include "kernels/backend.h"
#include "src/contract/metric.h"
#include <stddef.h>
#include <stdint.h>

enum { CONTRACT_FALSIFIERS = 10 }; // experiments 001 to 010 of the command falsify

typedef enum { CONTRACT_DRAFT, CONTRACT_ACTIVE, CONTRACT_DIVERGES, CONTRACT_RETIRED } contract_state;

typedef struct {
  char **text; // [n]
  size_t n;
} text_list;

typedef struct {
  int32_t *id; // [n] from 1 to CONTRACT_FALSIFIERS
  size_t n;
} falsifier_list;

typedef struct {
  char *name; // of the table: [gates.NAME]
  int line;   // of its first key
  char *metric_name, *at, *mode;
  text_list pair; // a, and b that it is measured against
  char *arm;      // in place of a pair: of a metric of one arm
  double at_most, at_least;
  falsifier_list falsifiers;
  // from the texts
  const metric_info *metric;
  metric_place place;
  probe_point probe; // METRIC_OF_LAYER, METRIC_OF_PROBE
  int64_t layer;     // -1: every layer
} contract_gate;

typedef struct { // a difference that is known, and why it stays
  char *name;
  int line;
  char *reason, *date;
  text_list pair;
  falsifier_list falsifiers;
} contract_divergence;

typedef struct {   // bits that a path must have, on the scope's model, input and cache
  int64_t version; // 0: none is recorded
  char *digest;    // of the logits
  text_list layers;
} contract_digest;

typedef struct {
  char *file;
  char *name, *state_name, *run, *comment;
  contract_state state;
  int64_t version;
  text_list equations;
  falsifier_list refuted_by;
  struct {
    char *command, *model, *reference, *architecture, *input, *kv;
    text_list arms, modes;
    int64_t least_ranks, most_ranks;
    int64_t n_layers, hidden, n_experts, top_k, vocabulary; // 0: any
  } scope;
  struct {
    bool finite, ids_in_range, no_zero_layer;
    double weights_sum_to_1; // largest error of a token's sum; NaN: not asked for
  } invariants;
  bool files; // structure.files: layers.csv and tokens.csv agree with report.json
  bool same_path;
  contract_digest exact[PATH_COUNT];
  contract_gate *gates;
  size_t n_gates;
  contract_divergence *divergences;
  size_t n_divergences;
} contract;

// After an error nothing stays open.
status contract_read(contract *out, const char *path);
// The same from `length` bytes of text; errors call it `file`.
status contract_read_text(contract *out, const char *file, const char *text, size_t length);
void contract_close(contract *c);

const char *contract_state_name(contract_state state);

// For contract_read.c: the checks that need the whole contract; resolves the gates' texts.
status contract_check(contract *c);
