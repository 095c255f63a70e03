// product: what a product of weights and activations is given, for the kernels of every path; and the tiles
// in which its items are taken.
//
// Independent of: how a kernel computes it.
#pragma once
#include "kernels/cuda/device.cuh"

// What a product multiplies and where its results go. An item is an output row: a token, or a slot (a token's
// chosen expert). In a stack, item i uses member member[i]; items of members that another rank owns (-1)
// are skipped.
struct product {
  dev_matrix w;
  dev_inputs in;
  const float *up;   // not NULL (product_q8k_gates): the inputs are silu(in.x) * up, which the product rounds
  const int *member; // [n_items] stack member of an item, or NULL: member 0
  const int *first;  // [n_members + 1] start of each member's items in `order`, or NULL: all items in order
  const int *order;  // items grouped by member
  const int *tiles; // [TILE_SIZES][n_members + 1] with `first`: a member's first tile, of 8, 16, 32, 64 items
  const int64_t *place;  // [n_items] output row of an item, or NULL: the item itself
  const int64_t *offset; // [n_items] or NULL: in place of that, where in `out` an item's row starts: it may
                         // lie in another GPU's memory
  int n_members, n_items, input_divisor; // input row = item / input_divisor
  int each;   // with `first`: items that a member has, on average, of all ranks' members and rounded up
  float *out; // [..][w.rows]
  bool adds;  // out = out + product, in place of out = product
};

// Where in `out` the row of an item starts.
__device__ __forceinline__ int64_t output_of(const product &p, int item) {
  if (p.offset) return p.offset[item];
  return (p.place ? p.place[item] : item) * (int64_t)p.w.rows;
}

// Tile `index` of the grouped items, in tiles of `items`: its member, its first place in `order` and its
// length (0: there is no such tile). A grid of n_items / items + n_members tiles holds all; only the last few
// are empty.
static constexpr int TILE_SIZES = 4;
struct item_tile {
  int member, first, count;
};

// Each member's first tile of `items` items, and how many there are in all.
__device__ __forceinline__ const int *tiles_of(const product &p, int items) {
  return p.tiles + (items == 8 ? 0 : items == 16 ? 1 : items == 32 ? 2 : 3) * (p.n_members + 1);
}

__device__ __forceinline__ item_tile find_tile(const product &p, int items, int index) {
  const int *tiles = tiles_of(p, items);
  int low = 0, high = p.n_members; // the last member whose first tile is at or before `index`
  while (high - low > 1) {
    int middle = (low + high) / 2;
    if (tiles[middle] <= index)
      low = middle;
    else
      high = middle;
  }
  int first = p.first[low] + (index - tiles[low]) * items, left = p.first[low + 1] - first;
  return {low, first, left < 0 ? 0 : left < items ? left : items};
}

// The items of this thread block, at most `items`.
__device__ __forceinline__ item_tile tile_of(const product &p, int items) {
  if (p.first) return find_tile(p, items, blockIdx.y);
  if (p.member) return {p.member[blockIdx.y], (int)blockIdx.y, p.member[blockIdx.y] < 0 ? 0 : 1};
  int first = (int)blockIdx.y * items, left = p.n_items - first;
  return {0, first, left < items ? left : items};
}

static inline unsigned tile_count(const product *p, int items) {
  return (unsigned)(p->first ? p->n_items / items + p->n_members : ceil_div(p->n_items, items));
}

// Products that read the same inputs, computed by one launch.
struct product_set {
  product p[3];
  int first_block[3]; // thread block of each, or piece of rows (product_q8k_stream.cu)
  int count;
};

// product_f32.cu
status product_f32_launch(const product *p, cudaStream_t stream);
// product_q8k.cu: any type whose products read Q8_K; the items, members and inputs of a set are the same
status product_q8k_launch(product_set *set, cudaStream_t stream);
// Whether product_q8k_launch can make the inputs of this product from their two factors (product.up).
bool product_q8k_gates(const product *p);
// product_few_bits.cu: types of few bits in blocks of 256, as product_q8k_launch; and any in blocks of 32, of
// the input's floats, without the outliers where the path splits
status product_unpacked_launch(const product *p, cudaStream_t stream);
status product_q8_0_launch(const product *p, bool splits, cudaStream_t stream);
// product_outliers.cu: adds the outliers' terms to the products that product_q8k_launch has put to `out`
status product_outliers_launch(product_set *set, cudaStream_t stream);
