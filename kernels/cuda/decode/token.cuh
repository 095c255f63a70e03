// token: all layers of one token on the path q8k in one launch whose thread blocks stay (token.cu), for GPUs
// that hold the weights of a layer's next phases in shared memory. The bits of the launches of decode.cuh.
//
// Where to find what: token_plan.cu decides whether and how a model's layers are cut over thread blocks;
// token.cu is the kernel, phase by phase; token_rows.cuh its products; token_exchange.cuh how thread blocks
// pass numbers on, token_peers.cuh GPUs; token_weights.cuh which weights are asked for and when;
// token_choice.cuh the experts, guessed and chosen.
#pragma once
#include "kernels/cuda/exact/limbs.cuh"
#include "kernels/cuda/instructions.cuh"
#include "kernels/cuda/peers.cuh"
#include "kernels/cuda/weights.cuh"

enum token_matrix { TOKEN_Q, TOKEN_K, TOKEN_V, TOKEN_O, TOKEN_GATE, TOKEN_UP, TOKEN_DOWN, TOKEN_MATRICES };

struct token_layer { // of a layer, in device memory
  const uint8_t *data[TOKEN_MATRICES];
  const float *router, *attn_norm, *ffn_norm, *q_norm, *k_norm, *q_balance, *k_balance;
  uint8_t type[8]; // weight_type of each matrix
};

static constexpr int TOKEN_WARPS = 16, TOKEN_THREADS = TOKEN_WARPS * WARP;
static constexpr int TOKEN_EXPERTS = 128, TOKEN_TOP_K = 8,
                     TOKEN_ROWS = 32; // at most; rows: of a thread block

// How a layer is cut over thread blocks, and where everything lies. Tiles: token_rows.cuh's, a warp's at a
// time.
struct token_plan {
  int blocks;                                       // thread blocks
  int hidden_blocks, attended_blocks, width_blocks; // blocks of 256 of these rows
  int hidden, width, n_heads, n_kv_heads, head_dim, n_experts, top_k, n_layers;
  int qkv_tiles[3]; // of a thread block: a warp each, of q first
  int qkv_rows[3];
  int rows;        // of o and of down of a thread block: `rows` of the residual stream are its own
  int o_rows;      // of a warp
  int experts;     // whose router row is a thread block's
  int slot_blocks; // thread blocks of a slot's gate and up
  int block_pairs, warp_pairs; // rows of each of the two, of a thread block and of a warp
  int down_tiles, warp_tiles;  // of a slot's rows in a thread block; of a warp
  int few_types;               // of the weights: qwen3_30b_shape's
  int slices, per_slice; // of eight heads of a key/value head; thread blocks that share a slice's chunks
  // shared memory: a warp's two places for weights, then what the block shares
  int place_a, place_b; // bytes
  int at_router, at_x, at_input, at_rounded, at_attended, at_small, shared_bytes;
  // numbers that thread blocks pass on, of a layer, in words: token_exchange.cuh
  int at_stream, at_qkv, at_att, at_middle, at_logits, at_hidden, at_guess, at_guessed, layer_words;
};

struct token_state { // of an arm; device memory is the arm's
  token_plan plan;
  token_layer *layers;
  float *sets[2]; // [n_layers][plan.layer_words] each
  unsigned *epoch;
  uint32_t pace;       // token_weights.cuh
  tagged_pair *parts;  // [token_parts]: results of chunks of attention
  tagged_pair *groups; // window, with peers: [n_layers][token_groups]
  int most_groups;
  uint32_t *inbox[2]; // window, with peers: [n_layers][top_k][hidden] each (token_peers.cuh)
};

struct token_work { // of a token
  float *x;         // [hidden], in and out
  const float *rope;
  limb_cache cache;
  const int *local_of_expert; // [n_experts] of layer 0, of each further layer local_stride on
  int local_stride;
  dev_batch batch;
  unsigned long long *sums; // [n_layers][n_sequences] digests, added to
  int n_sequences;
  uint64_t tag;
  float epsilon;
};

// Whether the kernel holds these shapes and types on this device and in this build; fills *out.
bool token_plan_make(token_plan *out, const model_shape *s, const dev_weights *w, int64_t context);
// Only what token_set_floats and token_parts read; false: the kernel holds no such shape.
bool token_plan_size(token_plan *out, const model_shape *s, int64_t context);
// Of one set.
size_t token_set_floats(const token_plan *p);
size_t token_parts(const token_plan *p, int64_t context);
size_t token_groups(const model_shape *s, int64_t context);
// Fills the state's memory, which is allocated.
status token_state_fill(token_state *t, const dev_weights *w, int64_t context);
// peers.n not 0: this rank has only some of the experts; each rank launches the same tokens.
status token_launch(const token_state *t, const token_work *work, const peer_links &peers,
                    cudaStream_t stream);
