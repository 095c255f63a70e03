// state: what the cpu backend keeps of one arm on one rank.
//
// Owns: activations, KV caches and work space, all of it allocated at open. Independent of: arithmetic
// (ISA rows), the order of the steps.
#pragma once
#include "kernels/cpu/row.h"
#include "kernels/cpu/team.h"
#include "kernels/cpu/team_choice.h"

// Batches of so few tokens are bound by memory bandwidth and barriers, not by arithmetic.
enum { FEW_TOKENS = 4 };

typedef struct { // rounded rows as products of many tokens read them
  char *groups;  // NULL: no product does
  size_t group_bytes;
  const packed_ops *ops;
} packed_groups;

typedef struct { // the same rows' blocks of 256 and of 32
  packed_groups of_256, of_32;
  int64_t width;
} packed_rows;

typedef struct { // neighbours in b->slots, all of one expert, that are packed side by side
  int32_t first, n;
} slot_group;

typedef struct { // activations of one kind for up to max_batch (or max slots) rows
  char *reals;   // rows of the path's real, width long and a little further apart
  char *q8k;     // rounded rows (row.h); NULL: no product reads them
  int64_t width;
  void **real_rows; // pointers to the rows
  const block_q8_K **q8k_rows;
  packed_rows packed;
} activations;

typedef struct { // what a product of the shared path fills
  char *reals;   // [max_batch][width]
  void **rows;   // pointers to the rows
} outputs;

typedef struct {                          // where ranks divide a step's outputs (backend_params.parts_tokens)
  output_range kv_heads, outputs, logits; // this rank's
  char *heads, *output, *vocabulary;      // PARTS_HEADS, PARTS_OUTPUT, PARTS_LOGITS of all ranks
  void **q, **k, **v;                     // [parts_tokens] this rank's heads of a row
  void **out;                             // [parts_tokens or max_logit_rows] rows of this rank's part
} output_parts;

typedef struct { // tokens of one sequence, neighbours in the batch, whose attention is one task a head slice
  int64_t first, n;
} token_span;

typedef struct {
  float *factors;    // [layers][3][head_dim] of queries, keys, values
  exact_parts parts; // of up to SPLIT_TOKENS tokens' heads, over all chunks of a context
} exact_state;

typedef struct { // a path, and the ISA row's kernels for its real
  const path_info *path;
  const real_ops *ops;
} path_kernels;

typedef struct {               // of a thread, on lines of its own
  double seconds[PHASE_COUNT]; // in which it waited, as its part of the team's mean
  double arrived;              // at the end of a run
  char unused[64];
} thread_waits;

typedef struct {
  backend base;
  backend_params params;
  model_shape shape;
  const cpu_row *row;
  path_kernels shared, experts;
  path_kernels attention;     // of q, k, v and o (path_before_router)
  bool reads_q8k, reads_q8_0; // some weight's product does
  uint64_t bytes;

  char *x;               // residual stream [max_batch][hidden]
  activations normed;    // what q, k, v, router (shared) read
  activations expert_in; // what owned experts read, in the experts' real
  outputs q, k, v;       // [max_batch][heads * head_dim]
  token_span *spans;     // [max_batch]
  activations attended;  // [max_batch][n_heads * head_dim]
  outputs projected;     // [max_batch][hidden]
  char *rope_tables;     // [context][head_dim] of (cos, sin)
  char *keys, *values;   // caches; of ATTENTION_EXACT `keys` has both
  size_t kv_head_bytes;  // of one (layer, sequence, head) in each
  exact_state exact;     // of ATTENTION_EXACT
  outputs router_logits; // [max_batch][n_experts]
  char *slot_weights;    // [max_batch][top_k]
  expert_global *chosen; // [max_batch][top_k] the routing, in slot order
  double *margin;        // [max_batch]
  routing_range fetch;
  char *slot_rows;   // [max_batch * top_k][hidden]
  char *normed_rows; // [max_batch][hidden] of `normed`, side by side as they cross ranks; only where they do

  int64_t n_owned;      // experts of this rank in a layer: the most of any
  expert_global *owned; // [n_layers or 1][n_owned], by their index here (expert_map)
  int32_t *member;      // [max slots]: index here of a slot's expert; below 0: another rank computes it
  int32_t *first;       // [n_owned + 1] start of each owned expert's slots in `slots`
  int32_t *slots;       // token * top_k + slot, grouped by owned expert, ascending
  int32_t *active;      // owned experts with at least one slot
  int64_t n_active;
  slot_group *groups; // of experts of LEAST_PACKED slots and more
  int32_t *group_of;  // [n_owned] the first group of each owned expert that has some
  int64_t n_groups;
  packed_rows packed_in; // what gate and up read
  activations hidden_in; // [max slots][expert_width]: gate, then silu(gate) * up
  char *up;              // [max slots][expert_width]
  char *narrow;          // [max slots][hidden] of the experts' real; only where it is not the shared real
  void **in_rows;        // [max slots] gathered rows
  const block_q8_K **in_q8k;
  void **gate_out, **up_out, **down_out;
  outputs logits; // [max_logit_rows][vocabulary]
  char *scratch;  // [threads][scratch_bytes]
  size_t scratch_bytes;
  activations head_in; // [max_logit_rows][hidden]
  output_parts parts;
  probe_watch watch;

  team *team;
  team_choice few, many;                       // for batches of few tokens, and for larger ones
  int n_threads;                               // of the step that runs
  team_choice *choice;                         // of the step, where it is timed for one
  bool is_timed;                               // for bench.phases or the choice of a team; for the latter
  phase_times *phases;                         // NULL: nobody watches
  double step_start, phase_start, all_arrived; // clocks
  thread_waits *waits;                         // [threads]
} cpu_backend;

// Memory that the backend counts.
status cpu_take(cpu_backend *b, void *pointer, size_t count, size_t size, const char *what);

// The fields of backend_ops that need no step.
status cpu_open(backend **out, const backend_params *params);
void cpu_close(backend *base); // takes NULL
const char *cpu_rows(void);
bool cpu_has_path(path_kind kind);
const char *cpu_row_name(const backend *base);
uint64_t cpu_state_bytes(const backend *base);

kv_storage cpu_kv_storage(const cpu_backend *b);

static inline void *row_at(const cpu_backend *b, char *base, int64_t row, int64_t width) {
  return base + (size_t)(row * width) * b->shared.ops->bytes;
}
