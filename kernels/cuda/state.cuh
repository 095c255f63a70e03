// state: what one arm keeps on one GPU, and how it is planned, allocated and freed.
//
// Owns: activations, caches, work space and captured graphs, all allocated at open. Independent of: the order
// of the steps (steps.cu), arithmetic, other ranks.
#pragma once
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/decode/token.cuh"
#include "kernels/cuda/exact/exact.cuh"
#include "kernels/cuda/memory_plan.h"
#include "kernels/cuda/peers.cuh"
#include "kernels/cuda/phase_events.cuh"
#include "kernels/cuda/weights.cuh"

static constexpr int MAX_BLOCKS = 64;

static constexpr int MAX_GRAPHS = 24;
static constexpr int CAPTURED_TOKENS = 64; // larger batches keep the device busy without a graph
static constexpr int APART_TOKENS = 256;   // that one launch attends to, each of a sequence of its own
static constexpr int AHEAD = 4;            // batches that the host may be ahead of the device

// The steps of every batch of n tokens that runs in this way, and whose longest sequence has at most
// `max_keys` positions.
struct captured_graph {
  int n, way, max_keys;
  bool distinct;
  cudaGraphExec_t graph;
};

static constexpr int MAX_LINKED = 20;

// An array of the window (peers.cuh).
struct linked_array {
  void **at;
  size_t bytes;
};

// The progress of a layer's experts: what `expert`, `member` and normed rows hold, and then what was computed
// of them.
enum routing_state {
  ROUTING_NONE,
  ROUTING_OF_SOME, // of part of the rows; other ranks route the others
  ROUTING_OF_ALL,  // of every row, as router_logits say
  ROUTING_GIVEN,   // of every row, from other ranks or the host: router_logits do not tell
  EXPERTS_UP,      // gate.x is silu(gate) * up, rounded where down reads it so
  EXPERTS_UP_ONE,  // the same of one token by decode_gate_up_launch, which leaves the rounding to down
};

struct cuda_backend {
  backend base;
  backend_params params;
  model_shape shape;
  const path_info *shared, *experts;
  const path_info *attention; // of q, k, v and o (path_before_router)
  dev_weights *weights;
  cudaStream_t stream;
  void *blocks[MAX_BLOCKS];
  int n_blocks;
  uint64_t bytes;
  int n_local;       // experts of this rank in a layer: the most of any
  bool alone;        // it computes every slot, so slots need no exchange
  memory_plan *plan; // not NULL: memory is not allocated but added up
  cudaEvent_t batch_end[AHEAD];
  int64_t n_batches;

  int *token, *sequence, *position;
  dev_batch batch;
  int max_keys;
  bool distinct; // no two tokens of the batch are of one sequence
  float *x;      // residual stream
  dev_inputs normed, attended, gate, head_in;
  float *q, *k, *v, *rope, *router_logits, *slot_weights, *up, *slots, *logits;
  kv_cache cache;      // these two: where attention is computed in reals
  attention_work work; //
  limb_cache limbs;    // these two: in integers
  exact_work exact;    //
  unsigned *arrived;   // counters of one token's attention
  bool decodes;        // decode_fits, on these paths
  bool has_fused;      // token_plan_make, of this rank alone or of all that are linked
  token_state fused;   // then
  int *expert, *member, *first, *order, *tiles;
  int *first_holder, *holder; // expert_map's first and holder
  int64_t *place;
  double *margin;
  routing_state routing;
  bool down_gates; // swiglu of these slots is part of down
  routing_range fetch;
  int *host_expert; // pinned: [max slots], [max slots], [max_batch], [max slots]
  float *host_weight;
  double *host_margin;
  int64_t *host_place;
  cudaEvent_t fetched; // after the transfer of the routing to them
  float *host_logits;  // [max_logit_rows][vocabulary]
  float *logit_parts;  // PARTS_LOGITS of max_logit_rows; only where ranks divide heads
  probe_watch watch;
  phase_events phases;
  float *shown;                    // [max_batch][hidden], for a probe without an array among those above
  unsigned long long *unused_sums; // [n_sequences]
  uint8_t *host_rows;              // pinned, all rows of any kind; only where rows cross ranks
  linked_array linked[MAX_LINKED]; // the window's arrays in its order, the same on every rank
  int n_linked;
  uint8_t *window;
  uint32_t *trial; // window [MOST_PEERS]
  peer_links peers;
  bool at_peers;                 // the choice places slots for them
  bool gathers_rounded;          // experts read nothing but rounded rows, on every rank
  bool rounded_gathered;         // the last ROWS_NORMED that came were such
  bool routing_gathered;         // with the last ROWS_EXPERTS came what follows from them
  unsigned *meeting_count;       // a counter (peers.cu: meet_as_last)
  void *peer_window[MOST_PEERS]; // of the other ranks, while linked
  captured_graph graphs[MAX_GRAPHS];
  int n_graphs;
  bool is_capturing; // the steps are being captured: the batch is on the device already
  bool fuses; // and are few tokens': the last layer's moe launches all layers, the steps before it nothing
  unsigned long long *sums; // [sums_rows][n_sequences] digests not yet read: of the layers, of the logits, of
                            // the layers of batches that were computed in part, and of parts of logits
  uint64_t **sums_to;       // [sums_rows] where they go
};

static inline size_t sums_rows(const cuda_backend *b) {
  return 2 * (size_t)b->shape.n_layers + 2;
}

static inline cuda_backend *self(backend *b) {
  return (cuda_backend *)b;
}

// The table's functions about the backend as a whole.
status cuda_batch_that_fits(int64_t *out, const backend_params *params);
status cuda_open(backend **out, const backend_params *params);
void cuda_close(backend *base); // takes NULL
const char *cuda_rows(void);
bool cuda_has_path(path_kind kind);
int cuda_devices(void);
const char *cuda_row(const backend *base);
uint64_t cuda_state_bytes(const backend *base);
status cuda_take_shown(cuda_backend *b); // b->shown

// step_peers.cu
size_t peers_window_bytes(const cuda_backend *b);
void peers_lay_out(cuda_backend *b); // the arrays in b->window
void peers_close(cuda_backend *b);   // waits until the others do not store here any more
// After a wait of the host: whether one for a peer has passed its limit.
status peers_check(const cuda_backend *b);

extern "C" const backend_ops cuda_backend_ops; // steps.cu
