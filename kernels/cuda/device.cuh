// device: what every CUDA source of the backend uses: checked calls, warp sums, views of weights and
// inputs.
//
// Invariant: nothing here decides arithmetic; docs/paths.md and kernels/formats/numerics.h do.
#pragma once
#include "base/cuda_try.h"
#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/cuda/instructions.cuh"
#include "kernels/cuda/memory_plan.h"
#include "kernels/formats/half.h"
#include "kernels/formats/numerics.h"
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// ---- the device: device.cu ----

// The one that the rank with this place on its host takes; false: this host has none.
bool device_take(device_id *out, int host_rank);
// Wait for all that was enqueued on the stream, or before the event, and ask p->watch meanwhile.
status device_wait(cudaStream_t stream, const backend_params *p);
status device_wait_event(cudaEvent_t event, const backend_params *p);
// A watch ended a wait: the device may never answer again, so nothing that waits for it may be called.
bool device_is_stuck();

// Takes device memory and notes it in the owner's `blocks` and `bytes`; with `plan` only adds it up there, as
// the part `what`.
template <typename Owner>
static status device_take_bytes(Owner *owner, void **out, size_t bytes, const char *what) {
  if (owner->plan) {
    memory_plan_add(owner->plan, what, bytes);
    return 0;
  }
  size_t free_bytes = 0, total = 0;
  CUDA_TRY(cudaMemGetInfo(&free_bytes, &total));
  if (owner->n_blocks == (int)(sizeof owner->blocks / sizeof *owner->blocks))
    return FAIL("GPU memory: %s: more than the %d allocations that there is room to note", what,
                owner->n_blocks);
  if (bytes > free_bytes)
    return FAIL("GPU memory: %s need %zu MiB, but %zu of %zu MiB are free", what, bytes >> 20,
                free_bytes >> 20, total >> 20);
  CUDA_TRY(cudaMalloc(out, bytes ? bytes : 16));
  owner->blocks[owner->n_blocks++] = *out;
  owner->bytes += bytes;
  return 0;
}

// ---- launches ----
//
// Each kernel may be set up while the one before it still runs (programmatic dependent launch, Hopper and
// later): it starts with wait_for_inputs, before which it may touch nothing that an earlier kernel writes or
// reads but weights. A kernel's completion includes that of all before it, so the chain is as strict as
// without.

__device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion(); // the next kernel may be set up now; it waits here for our end
  cudaGridDependencySynchronize();
#endif
}

bool overlaps_launches(); // this device can; steps.cu

template <typename... Parameters, typename... Arguments>
static status launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared,
                     cudaStream_t stream, Arguments... arguments) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t how = {};
  how.gridDim = grid;
  how.blockDim = dim3((unsigned)threads);
  how.dynamicSmemBytes = shared;
  how.stream = stream;
  how.attrs = &overlap;
  how.numAttrs = overlaps_launches() ? 1 : 0;
  CUDA_TRY(cudaLaunchKernelEx(&how, kernel, Parameters(arguments)...));
  return 0;
}

static constexpr int WARP = 32;
static constexpr int CHUNK = ATTENTION_CHUNK;

// Every lane gets the sum of docs/paths.md's tree: lane l with l + 16, then + 8, 4, 2, 1 (addition commutes,
// so the lanes above the half add the same two numbers).
__device__ __forceinline__ float warp_tree(float lane) {
  for (int half = WARP / 2; half; half /= 2) lane = lane + __shfl_xor_sync(~0u, lane, half);
  return lane;
}

__device__ __forceinline__ float half_bits_to_f32(uint16_t bits) { // exact, as half_to_f32
  return __half2float(__ushort_as_half(bits));
}

// Adds the warp's sums to a digest.
__device__ __forceinline__ void add_digest(unsigned long long *to, unsigned long long sum) {
  for (int half = WARP / 2; half; half /= 2) sum += __shfl_xor_sync(~0u, sum, half);
  if (threadIdx.x % WARP == 0) atomicAdd(to, sum);
}

// A matrix, or a stack of them (one an expert of this rank), in device memory. Rows keep their K-quant bits;
// those of Q6_K lie as four planes a row (planes_q6k.cuh).
struct dev_matrix {
  const uint8_t *data;
  weight_type type;
  int rows, cols;
  size_t row_bytes, member_bytes; // member: one expert's matrix
};

struct dev_layer {
  const float *attn_norm, *q_norm, *k_norm, *ffn_norm;
  dev_matrix q, k, v, o, router, gate, up, down;
};

// Activations of up to `rows` rows: floats, and on q8k their Q8_K blocks as planes.
struct dev_inputs {
  float *x;       // [rows][width]
  int8_t *qs;     // [rows][width]
  float *d;       // [rows][width / 256]
  int16_t *bsums; // [rows][width / 16]
  int8_t *halves; // [rows][width / 256][16]: sums of 32, s = low + 128 * high, 8 low (0..127) and 8 high
  int width;
};

// What a product multiplies and where its results go. An item is an output row: a token, or a slot (a token's
// chosen expert). In a stack, item i uses member expert[i]; items of members that are not here (-1) are
// skipped.
struct product {
  dev_matrix w;
  dev_inputs in;
  const int *member; // [n_items] stack member of an item, or NULL: member 0
  const int *first;  // [n_members + 1] start of each member's items in `order`, or NULL: all items in order
  const int *order;  // items grouped by member
  const int
      *tiles; // [TILE_SIZES][n_members + 1] with `first`: each member's first tile of 8, 16, 32, 64 items
  const int64_t *place;                  // [n_items] output row of an item, or NULL: the item itself
  int n_members, n_items, input_divisor; // input row = item / input_divisor
  float *out;                            // [..][w.rows]
  bool adds;                             // out = out + product, in place of out = product
};

// Tile `index` of the grouped items, in tiles of `items`: its member, its first place in `order` and its
// length (0: there is no such tile). A grid of n_items / items + n_members tiles holds all; only the last few
// are empty.
static constexpr int TILE_SIZES = 4;
struct item_tile {
  int member, begin, count;
};

__device__ __forceinline__ item_tile find_tile(const product &p, int items, int index) {
  const int *tiles = p.tiles + (items == 8 ? 0 : items == 16 ? 1 : items == 32 ? 2 : 3) * (p.n_members + 1);
  int low = 0, high = p.n_members; // the last member whose first tile is at or before `index`
  while (high - low > 1) {
    int middle = (low + high) / 2;
    if (tiles[middle] <= index)
      low = middle;
    else
      high = middle;
  }
  int begin = p.first[low] + (index - tiles[low]) * items, left = p.first[low + 1] - begin;
  return {low, begin, left < 0 ? 0 : left < items ? left : items};
}

static inline unsigned tile_count(const product *p, int items) {
  return (unsigned)(p->first ? p->n_items / items + p->n_members : (p->n_items + items - 1) / items);
}

// Products that read the same inputs, computed by one launch.
struct product_set {
  product p[3];
  int begin[3]; // first thread block of each
  int count;
};

// Where this rank's experts and, if an arm wants them, the shared tensors lie; one copy for all arms.
struct dev_weights {
  const model_weights *source;
  const expert_local *local;
  int users, n_local;
  bool has_shared;
  dev_matrix embedding, output;
  const float *output_norm;
  dev_layer *layers;    // host array
  int *local_of_expert; // device [n_experts]
  void *blocks[4096];   // allocations
  int n_blocks;
  size_t bytes;
  memory_plan *plan; // not NULL: nothing is taken, all is only added up
  size_t staging;    // of the largest tensor that is re-ordered
};

status weights_acquire(dev_weights **out, const model_weights *source, const expert_local *local,
                       bool wants_shared);
void weights_release(dev_weights *w);
bool weights_computes(weight_type type); // the backend has products of the type
// Adds what weights_acquire would take.
status weights_plan(memory_plan *out, const model_weights *source, const expert_local *local,
                    bool wants_shared);

// product_f32.cu
status product_f32_launch(const product *p, cudaStream_t stream);
// product_q8k.cu: any K-quant type; the items, members and inputs of a set are the same
status product_q8k_launch(product_set *set, cudaStream_t stream);

// vectors.cu
struct kv_cache {
  void *keys, *values; // [layers][sequences][kv_heads] of [chunks][head_dim][CHUNK] and [positions][head_dim]
  bool f16;
  size_t head_elements; // of one (layer, sequence, head)
  int n_sequences, n_kv_heads, head_dim;
};
struct dev_batch { // device arrays of a batch
  const int *token, *sequence, *position;
  int n;
};
status embed_launch(float *x, const dev_matrix *embedding, const dev_batch *b, cudaStream_t stream);
// out = rms_norm(x) * weight; rounds to Q8_K when `round`
status norm_launch(dev_inputs out, const float *x, const float *weight, int n, float epsilon, bool round,
                   cudaStream_t stream);
status round_launch(dev_inputs io, int n, cudaStream_t stream);
// gate = silu(gate) * up: rounded, and as floats where they are read
status swiglu_launch(dev_inputs gate, const float *up, const int *member, int n, bool round, bool floats,
                     cudaStream_t stream);
// Caches keys and values of the whole batch; RoPE of the queries of n tokens from `first` on. keys: where the
// rotated keys go as well, [batch][n_kv_heads][head_dim], or NULL.
status heads_launch(float *q, float *k, const float *v, const dev_layer *w, const model_shape *s,
                    const float *rope, kv_cache cache, int layer, const dev_batch *b, int first, int n,
                    float *keys, cudaStream_t stream);
// Also the member of each slot's expert among this rank's, -1 for others; and with `place` the fixed
// place of each slot's row, from the rank that owns its expert.
status route_launch(int *expert, float *weight, int *member, int64_t *place, double *margin,
                    const float *logits, const int *local_of_expert, const int *rank_of_expert, int n,
                    int n_experts, int k, cudaStream_t stream);
// The members alone, where another rank has routed.
status members_launch(int *member, const int *expert, const int *local_of_expert, int n_slots,
                      cudaStream_t stream);
status group_launch(int *first, int *order, int *tiles, const int *member, int n_items, int n_members,
                    cudaStream_t stream);
// x += the slots' sum; the new rows' digest as layer `layer` is added to sums[sequence].
status combine_launch(float *x, const float *slots, const float *weight, const int64_t *place,
                      const dev_batch *b, int k, int hidden, unsigned long long *sums, uint64_t tag,
                      int layer, cudaStream_t stream);
status digest_launch(unsigned long long *sums, const float *rows, const dev_batch *b, int first, int n,
                     int width, uint64_t tag, int64_t layer, cudaStream_t stream);

// attention.cu
struct attention_work {
  float *max, *sum, *out; // [tokens * heads][chunks] (max, sum), [..][head_dim] of split attention
  size_t capacity;        // rows * chunks
};
status attention_launch(float *out, const float *q, kv_cache cache, int layer, const dev_batch *b,
                        int n_heads, int max_keys, attention_work *work, cudaStream_t stream);
