// report: what a run found, and the one place that prints it: console, report.json, CSV, .npy.
//
// Owns: the schema (docs/report.schema.json), file names, and that nothing half-written looks whole: files
// get their names when they are whole and synced; an old report.json goes first, the new one comes last.
// Independent of: how the numbers were computed. Local: only the reporting rank calls it.
// Invariant: every number that it prints is in `report`, and every digest is hexadecimal, 16 digits.
#pragma once
#include "base/message_list.h"
#include "dist/timeline.h"
#include "src/config/command_kind.h"
#include "src/config/parity_mode.h"
#include "src/measure/account.h"
#include "src/measure/arm_checks.h"
#include "src/measure/pair_statistics.h"
#include "src/run/audit_coverage.h"
#include <stdint.h>
#include <stdio.h>

enum { REPORT_SCHEMA = 4 }; // of report.json
enum { ATTENTION_TEXT = 512 };

typedef struct {
  int64_t tokens;  // positions in the sequence that the digest covers
  uint64_t digest; // of its logits; the arm's digest is the sum over sequences modulo 2^64
} report_sequence;

typedef struct { // how an arm continued a sequence
  int64_t sequence;
  int32_t *tokens;
  size_t n_tokens;
  char *text;       // UTF-8, invalid bytes replaced; NULL without a tokenizer
  uint64_t digest;  // of the logits of prompt and generated tokens: that of the same tokens as one prompt
  char *stopped_by; // "run.generate", "end token 4093 <|im_end|>", "run.stop 17", "run.stop \"text\""
} report_text;

typedef struct {
  const char *name; // "q8k@cpu"
  const char *path; // of all but the experts
  bool is_truth;    // f64, and not as a part of a mixed arm
  int path_version;
  const char *cache;       // what it keeps of keys and values: "f64", "f16", "f32" (run.kv) or "limbs"
  uint64_t expert_paths;   // hash of every expert's path and version, in the order of experts
  uint64_t digest;         // logits, all sequences
  uint64_t *layer_digests; // [n_layers], residual stream after each layer, all sequences
  report_sequence *sequences;
  int64_t tokens; // positions computed, all sequences
  double prefill_tokens_per_s;
  double decode_tokens_per_s;     // NaN: nothing was decoded
  const char *transport;          // of its exchange
  char attention[ATTENTION_TEXT]; // which batches had attention and head divided among the ranks, and why
  double exchange_seconds;        // time in the exchange on the reporting rank, waiting included
  audit_coverage audit;           // share 0: there was none
  double perplexity;              // of the input: each token given those before; NaN: fewer than two tokens
  int64_t scored;                 // tokens that the perplexity is over
  report_text *texts;
  size_t n_texts;
  const char **rank_arms; // [ranks] arm of each rank's experts
  arm_checks checks;      // layer_rms NULL: the command does not watch the arm's layers
} report_arm;

typedef struct { // one row of tokens.csv
  int64_t sequence, position;
  int32_t token;
  size_t pair;
  double rel_l2, one_minus_cos, max_abs, max_rel, kl;
  bool top1_agrees;
  double margin;
  int64_t router_flips; // over all layers
} report_token;

typedef struct { // a run of all arms in a mode other than MODE_FREE, whose numbers stand in the report itself
  parity_mode mode;
  uint64_t *digests;       // [n_arms] of the logits
  uint64_t *layer_digests; // [n_arms][n_layers]
  pair_statistics *pairs;  // [n_pairs]
} report_mode;

typedef struct {
  int rank;
  const char *host;
  const char *cores; // "0-3", of its threads
  int threads;
  const char *arm;        // arm of its experts in a mixed job, else ""
  const char *role;       // "shared", or "experts": in the arm "ranks" it computes nothing else
  uint64_t experts_bytes; // of the experts that it owns
  uint64_t shared_bytes;  // all other tensors; 0: it computes only experts
  uint64_t state_bytes;   // KV caches and work space, largest arm
  int64_t experts;        // experts that it owns in each layer
  int gpu;                // index on its host; -1: none
  int gpu_node;           // its NUMA node; -1: unknown
  const char *gpu_pci, *gpu_name;
} report_rank;

typedef struct {
  command_kind command;
  struct {
    const char *name, *path, *architecture;
    uint64_t fingerprint;
    int64_t n_layers, hidden, n_heads, n_kv_heads, head_dim, n_experts, top_k, expert_width, vocabulary;
    uint64_t bytes;
    const char *types; // "Q4_K 210, Q6_K 33, F32 97"
  } model;
  struct {
    const char *cpu, *os;
    int hosts, cores;
  } machine;
  struct {
    const char *version, *compiler, *flags, *mpi, *row; // row: ISA row of the cpu backend
  } build;
  const char *config_text; // canonical
  const char *transport;
  char transport_reason[256]; // "": none is needed
  char peers[256];            // arm_peers of the last arm that has an answer
  timeline_figures timeline;  // profilers NULL: none is kept
  const char *placement;
  const char *placement_reason; // of "auto"; "" or NULL: it was not asked for
  uint64_t expert_map;          // hash of the map of experts to ranks
  int64_t replicas;             // experts that ranks hold beyond one holder of each, over all layers
  double counted_load;    // the busiest rank's over the mean's in the counted text; 0: nothing was counted
  double contiguous_load; // the same of the contiguous placement
  const char *kv;
  int64_t chunk, context;
  int64_t skip;   // of perplexity: positions at a window's head that are not scored; -1: half of each window
  uint64_t input; // hash of the tokens of all sequences
  const char *reference; // path of parity.reference; NULL: every arm has the same model
  uint64_t reference_fingerprint;
  const message_list *warnings; // what may make the run's figures meaningless; NULL: none
  report_rank *ranks;
  size_t n_ranks;
  report_arm *arms;
  size_t n_arms;
  bool has_logits; // beside report.json stands logits.<arm>.npy of each arm
  bool has_routes; // and the files of src/commands/route_files.h
  bool imposes_routes;
  uint64_t imposed_routes; // hash of the experts that every arm took, where imposes_routes
  pair_statistics *pairs;
  size_t n_pairs;
  report_mode modes[MODE_COUNT];
  size_t n_modes;
  account *accounts; // [n_pairs]; NULL: not all three modes ran
  report_token *tokens;
  size_t n_tokens;
  size_t n_layers;
  size_t n_sequences;
} report;

// The chance that an audit missed one expert of a layer, of those that were used, or one rank, whose outputs
// are always wrong: each is found as soon as one of its slots is recomputed.
double report_bad_expert_missed(const audit_coverage *c);
double report_bad_rank_missed(const audit_coverage *c);

// Prints one line of at most `room` bytes, without control characters; of a longer text the head, or with
// `tail` the end, as of a path.
void report_print_line(FILE *out, const char *text, size_t room, bool tail);
void report_print(const report *r, FILE *out); // the tables, then the generated texts
// Writes report.json, layers.csv, tokens.csv and, where there are some, modes.csv and experts.csv; removes
// what else an earlier run left (report_file.h).
status report_write(const report *r, const char *dir);
