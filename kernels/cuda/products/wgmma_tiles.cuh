// wgmma_tiles: which tiles each thread block of product_q8k_wgmma takes.
//
// Each member's items are cut into tiles of `wide` items and a rest. In order of members, then items, then
// rows, the tiles lie on a line with their cost as their length, and a thread block takes those that start in
// its part of the line: experts are chosen unevenly, and equal numbers of tiles would leave one block with a
// sixth more work than the others. A tile's weights are read from memory unless the tile just before it was
// of the same member and rows: then the L2 cache still has them.
#pragma once
#include "kernels/cuda/products/product.cuh"

static constexpr int ROWS = 128, ITEMS = 128; // of a tile, at most
static constexpr int MAX_MEMBERS = 256;
// A block of 256 of a tile of w items takes time like UNPACKING + w: gate and up of 64 tokens, about 128
// tiles of 32, 119 us on an H100, of 2,048 tokens, about 128 of 128 and 60 narrower rests, 303: 10 ns a unit
// of their sums.
static constexpr int UNPACKING = 64;

// Items that are multiplied for a tile of so many: a width that wgmma_k32 has.
__device__ __forceinline__ int width_of(int count) {
  return (count + 31) / 32 * 32;
}

__device__ __forceinline__ int members_of(const product &p) {
  return p.first ? p.n_members : 1;
}

__device__ __forceinline__ int cost_of(int items) {
  return UNPACKING + width_of(items);
}

// One warp: where each member starts on the line, over one tile of rows.
static __device__ void add_costs(int *first_cost, const product &p, int wide) {
  int lane = threadIdx.x % WARP, members = members_of(p), before = 0;
  for (int base = 0; base < members; base += WARP) {
    int m = base + lane, n = m >= members ? 0 : p.first ? p.first[m + 1] - p.first[m] : p.n_items;
    int cost = n / wide * cost_of(wide) + (n % wide ? cost_of(n % wide) : 0), sum = cost;
    for (int step = 1; step < WARP; step *= 2) {
      int other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    if (m < members) first_cost[m] = before + sum - cost;
    before += __shfl_sync(~0u, sum, WARP - 1);
  }
  if (lane == 0) first_cost[members] = before;
}

struct tile_walk {                  // a thread block's tiles, one after the other
  int member, first, end, row_tile; // end: of the member's items
  int at, stop;                     // on the line
  int row_tiles, wide;

  __device__ __forceinline__ int count() const { return min(end - first, wide); }
  __device__ __forceinline__ bool exists() const { return at < stop; }

  __device__ __forceinline__ void enter(const product &p) { // its member
    first = p.first ? p.first[member] : 0;
    end = p.first ? p.first[member + 1] : p.n_items;
  }

  __device__ __forceinline__ void next_items(const product &p) {
    row_tile = 0;
    first += wide;
    while (first >= end) {
      if (++member == members_of(p)) {
        at = stop;
        return;
      }
      enter(p);
    }
  }

  __device__ __forceinline__ void next(const product &p) {
    at += cost_of(count());
    if (++row_tile == row_tiles) next_items(p);
  }

  __device__ __forceinline__ void start(const product &p, const int *first_cost, int of_rows, int items) {
    int low = 0, high = members_of(p); // the last member that starts at or before `from`
    row_tiles = of_rows;
    wide = items;
    int64_t all = (int64_t)first_cost[high] * row_tiles;
    int from = (int)(all * blockIdx.x / gridDim.x);
    stop = (int)(all * (blockIdx.x + 1) / gridDim.x);
    while (high - low > 1) {
      int middle = (low + high) / 2;
      if (first_cost[middle] * row_tiles <= from)
        low = middle;
      else
        high = middle;
    }
    member = low;
    enter(p);
    at = first_cost[low] * row_tiles;
    int full = cost_of(wide) * row_tiles, passed = min((from - at) / full, (end - first) / wide);
    at += passed * full;
    first += passed * wide;
    row_tile = (from - at + cost_of(count()) - 1) / cost_of(count());
    at += row_tile * cost_of(count());
    if (row_tile == row_tiles) next_items(p);
  }
};
