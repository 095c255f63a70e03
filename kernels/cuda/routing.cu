// routing: the choice of experts from the router's logits, and the grouping of slots by this rank's experts.
#include "kernels/cuda/routing.cuh"

// ---- routing: a warp a token ----

// The lowest of the experts with the largest probability, by a warp; chosen ones are negative. -1: none is
// left that can be compared.
__device__ __forceinline__ int best_of(const float *p, int n) {
  unsigned best = 0; // 0: none; else one more than the bits, which order as the numbers do
  int mine = n;
  for (int e = threadIdx.x; e < n; e += WARP) {
    unsigned key = p[e] >= 0.0f ? __float_as_uint(p[e]) + 1 : 0;
    if (key > best) {
      best = key;
      mine = e;
    }
  }
  unsigned all = __reduce_max_sync(~0u, best);
  int found = (int)__reduce_min_sync(~0u, best == all ? (unsigned)mine : (unsigned)n);
  return all ? found : -1;
}

// When logits are not finite: the first expert not chosen yet, as the C code does it; the logits are refused
// later.
__device__ int first_left(const float *p, int n) {
  for (int e = 0; e < n; e++)
    if (!(p[e] < 0.0f)) return e;
  return 0;
}

__global__ void route_tokens(int *expert, float *weight, int *member, int64_t *place, double *margin,
                             const float *logits, const layer_map map, const uint32_t *epoch, int n, int k) {
  wait_for_inputs();
  extern __shared__ float p[];
  float *found = p + n;             // [k]
  int *chosen = (int *)(found + k); // [k]
  int t = blockIdx.x, lane = threadIdx.x;
  const float *from = logits + (size_t)t * n;
  float max = from[0];
  for (int e = lane; e < n; e += WARP) {
    p[e] = from[e];
    max = p[e] > max ? p[e] : max;
  }
  max = warp_max(max);
  for (int e = lane; e < n; e += WARP) p[e] = num_exp_f32(p[e] - max);
  __syncwarp();
  double all = 0;
  if (lane == 0 && margin)
    for (int e = 0; e < n; e++) all += (double)p[e];
  float sum = 0, last = 0;
  for (int slot = 0; slot < k; slot++) {
    int best = best_of(p, n), e = best < 0 ? first_left(p, n) : best;
    last = best < 0 ? 0.0f : p[e];
    sum = sum + last;
    __syncwarp();
    if (lane == 0) {
      found[slot] = last;
      chosen[slot] = e;
      p[e] = -1.0f;
    }
    __syncwarp();
  }
  if (margin) {
    int best = best_of(p, n);
    if (lane == 0) margin[t] = best < 0 ? 1.0 : ((double)last - (double)p[best]) / all;
  }
  for (int slot = lane; slot < k; slot += WARP) {
    int e = chosen[slot], at = t * k + slot;
    int part = epoch ? (int)(*epoch & 1) : place ? map.holder[map.first[e]] : 0;
    expert[at] = e;
    member[at] = map.local[e];
    weight[at] = found[slot] / sum;
    if (place) place[at] = (int64_t)part * gridDim.x * k + at;
  }
}

// ---- which rank computes a slot, where experts have several holders: a thread a token ----

static constexpr int BLOCK = 256; // threads of share_slots and find_members

// Members and places as the rule has them, in place of those of an expert's first holder.
__global__ void share_slots(int *member, int64_t *place, const int *expert, const layer_map map,
                            const dev_batch rows, const uint32_t *epoch, int k) {
  wait_for_inputs();
  int t = blockIdx.x * blockDim.x + threadIdx.x;
  if (t >= rows.n) return;
  int *rank = member + t * k;
  token_ranks(rank, expert + t * k, k, map.first, map.holder, rows.sequence[t], rows.position[t]);
  for (int slot = 0; slot < k; slot++) {
    int64_t part = epoch ? (int64_t)(*epoch & 1) : rank[slot];
    if (place) place[t * k + slot] = part * rows.n * k + t * k + slot;
    rank[slot] = rank[slot] == map.rank ? map.local[expert[t * k + slot]] : -1;
  }
}

static status share_launch(int *member, int64_t *place, const int *expert, const layer_map &map,
                           const dev_batch &rows, const uint32_t *epoch, int k, cudaStream_t stream) {
  return launch(share_slots, dim3((unsigned)ceil_div(rows.n, BLOCK)), BLOCK, 0, stream, member, place, expert,
                map, rows, epoch, k);
}

status route_launch(int *expert, float *weight, int *member, int64_t *place, double *margin,
                    const float *logits, const layer_map &map, const dev_batch &rows, const uint32_t *epoch,
                    int n_experts, int k, cudaStream_t stream) {
  TRY(launch(route_tokens, dim3((unsigned)rows.n), WARP, (size_t)(n_experts + 2 * k) * sizeof(float), stream,
             expert, weight, member, place, margin, logits, map, epoch, n_experts, k));
  return map.has_replicas ? share_launch(member, place, expert, map, rows, epoch, k, stream) : 0;
}

// ---- grouping slots by this rank's experts ----

// A thread block a member. Each counts the items of all members, so that none waits for another; the order
// within a group is ascending, so the list is the same every time.
static constexpr int GROUPERS = 16, AT_ONCE = 8; // warps of a block; loads in flight

// f(items' members, index of the lane's item), of 32 items each, over the items that belong to this warp.
template <typename Take>
__device__ __forceinline__ void each_of_warp(const int *member, int n_items, Take take) {
  int lane = threadIdx.x % WARP, share = (n_items + GROUPERS * WARP - 1) / (GROUPERS * WARP) * WARP;
  int start = threadIdx.x / WARP * share, end = min(start + share, n_items);
  for (int base = start; base < end; base += AT_ONCE * WARP) {
    int of[AT_ONCE];
#pragma unroll
    for (int k = 0; k < AT_ONCE; k++) {
      int i = base + k * WARP + lane;
      of[k] = i < end ? member[i] : -1;
    }
#pragma unroll
    for (int k = 0; k < AT_ONCE; k++) take(of[k], base + k * WARP + lane);
  }
}

// The tiles of `items` items that members 0 .. n - 1 have.
__device__ __forceinline__ int tiles_before(const int *count, int n, int items) {
  int sum = 0;
  for (int m = threadIdx.x % WARP; m < n; m += WARP) sum += (count[m] + items - 1) / items;
  return warp_sum(sum);
}

__global__ void __launch_bounds__(GROUPERS *WARP)
    group_member(int *first, int *order, int *tiles, const int *member, int n_items, int n_members) {
  extern __shared__ __align__(16) uint8_t memory[];
  __shared__ int start, of_warp[GROUPERS];
  wait_for_inputs();
  int *count = (int *)memory; // [n_members]
  int group = blockIdx.x, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, mine = 0;
  for (int m = threadIdx.x; m < n_members; m += GROUPERS * WARP) count[m] = 0;
  __syncthreads();
  each_of_warp(member, n_items, [&](int of, int) {
    if (of >= 0) atomicAdd(&count[of], 1);
    mine += __popc(__ballot_sync(~0u, of == group));
  });
  if (lane == 0) of_warp[warp] = mine;
  __syncthreads();
  if (warp <= TILE_SIZES) { // warp 0 sums items, the next four tiles of 8, 16, 32, 64
    int items = warp ? 4 << warp : 1, before = tiles_before(count, group, items);
    int *to = warp ? tiles + (warp - 1) * (n_members + 1) : first;
    if (lane == 0) {
      to[group] = before;
      if (group == n_members - 1) to[n_members] = before + (count[group] + items - 1) / items;
      if (warp == 0) start = before;
    }
  }
  __syncthreads();
  int at = start;
  for (int w = 0; w < warp; w++) at += of_warp[w];
  each_of_warp(member, n_items, [&](int of, int i) {
    unsigned mask = __ballot_sync(~0u, of == group);
    if (of == group) order[at + __popc(mask & ((1u << lane) - 1))] = i;
    at += __popc(mask);
  });
}

__global__ void find_members(int *member, const int *expert, const int *local_of_expert, int n_slots) {
  wait_for_inputs();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n_slots) member[i] = local_of_expert[expert[i]];
}

status members_launch(int *member, const int *expert, const layer_map &map, const dev_batch &rows, int k,
                      cudaStream_t stream) {
  int n_slots = rows.n * k;
  if (map.has_replicas) return share_launch(member, nullptr, expert, map, rows, nullptr, k, stream);
  return launch(find_members, dim3((unsigned)ceil_div(n_slots, BLOCK)), BLOCK, 0, stream, member, expert,
                map.local, n_slots);
}

status group_launch(int *first, int *order, int *tiles, const int *member, int n_items, int n_members,
                    cudaStream_t stream) {
  return launch(group_member, dim3((unsigned)n_members), GROUPERS * WARP, (size_t)n_members * sizeof(int),
                stream, first, order, tiles, member, n_items, n_members);
}
