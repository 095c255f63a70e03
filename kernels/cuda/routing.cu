// routing: the choice of experts from the router's logits, and the grouping of slots by this rank's experts.
#include "kernels/cuda/routing.cuh"

// ---- routing: a warp a token ----

__device__ unsigned long long best_of(const float *p, int n) {
  unsigned long long best = 0; // (probability, lowest index); chosen ones are negative
  for (int e = threadIdx.x; e < n; e += WARP)
    if (p[e] >= 0.0f) {
      unsigned long long key = (unsigned long long)__float_as_uint(p[e]) << 32 | (0xffffffffu - (uint32_t)e);
      best = key > best ? key : best;
    }
  for (int half = WARP / 2; half; half /= 2) {
    unsigned long long other = __shfl_xor_sync(~0u, best, half);
    best = other > best ? other : best;
  }
  return best;
}

// When logits are not finite: the first expert not chosen yet, as the C code does it; the logits are refused
// later.
__device__ int first_left(const float *p, int n) {
  for (int e = 0; e < n; e++)
    if (!(p[e] < 0.0f)) return e;
  return 0;
}

__global__ void route_tokens(int *expert, float *weight, int *member, int64_t *place, double *margin,
                             const float *logits, const layer_map map, const dev_batch rows,
                             const uint32_t *epoch, int n, int k) {
  wait_for_inputs();
  extern __shared__ float p[];
  int t = blockIdx.x, lane = threadIdx.x;
  const float *from = logits + (size_t)t * n;
  float max = from[0];
  for (int e = lane; e < n; e += WARP) max = from[e] > max ? from[e] : max;
  max = warp_max(max);
  for (int e = lane; e < n; e += WARP) p[e] = num_exp_f32(from[e] - max);
  __syncwarp();
  double all = 0;
  if (lane == 0 && margin)
    for (int e = 0; e < n; e++) all += (double)p[e];
  float sum = 0, last = 0;
  for (int slot = 0; slot <= k; slot++) {
    unsigned long long best = best_of(p, n);
    float found = best ? __uint_as_float((uint32_t)(best >> 32)) : 0.0f;
    int e = best ? (int)(0xffffffffu - (uint32_t)best) : first_left(p, n);
    if (slot == k) {
      if (lane == 0 && margin) margin[t] = best ? ((double)last - (double)found) / all : 1.0;
      break;
    }
    __syncwarp();
    if (lane == 0) {
      expert[t * k + slot] = e;
      expert_share share = map.share[e];
      uint32_t turn = slot_turn(rows.sequence[t], rows.position[t], e);
      member[t * k + slot] = slot_member(share, turn);
      if (place) {
        int part =
            epoch ? (int)(*epoch & 1) : map.holder[map.first[e] + (int)slot_holder(turn, share.holders)];
        place[t * k + slot] = (int64_t)part * gridDim.x * k + t * k + slot;
      }
      weight[t * k + slot] = found;
      p[e] = -1.0f;
    }
    __syncwarp();
    sum = sum + found;
    last = found;
  }
  for (int slot = lane; slot < k; slot += WARP) weight[t * k + slot] = weight[t * k + slot] / sum;
}

status route_launch(int *expert, float *weight, int *member, int64_t *place, double *margin,
                    const float *logits, const layer_map &map, const dev_batch &rows, const uint32_t *epoch,
                    int n_experts, int k, cudaStream_t stream) {
  return launch(route_tokens, dim3((unsigned)rows.n), WARP, (size_t)n_experts * sizeof(float), stream, expert,
                weight, member, place, margin, logits, map, rows, epoch, n_experts, k);
}

// ---- grouping slots by this rank's experts ----

static constexpr int BLOCK = 256; // threads of find_members

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

__global__ void find_members(int *member, const int *expert, const layer_map map, const dev_batch rows,
                             int k) {
  wait_for_inputs();
  int i = blockIdx.x * blockDim.x + threadIdx.x, t = i / k;
  if (t < rows.n)
    member[i] = slot_member(map.share[expert[i]], slot_turn(rows.sequence[t], rows.position[t], expert[i]));
}

status members_launch(int *member, const int *expert, const layer_map &map, const dev_batch &rows, int k,
                      cudaStream_t stream) {
  return launch(find_members, dim3((unsigned)ceil_div(rows.n * k, BLOCK)), BLOCK, 0, stream, member, expert,
                map, rows, k);
}

status group_launch(int *first, int *order, int *tiles, const int *member, int n_items, int n_members,
                    cudaStream_t stream) {
  return launch(group_member, dim3((unsigned)n_members), GROUPERS * WARP, (size_t)n_members * sizeof(int),
                stream, first, order, tiles, member, n_items, n_members);
}
