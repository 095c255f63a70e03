// What the law costs on a GPU, for docs/measurements.md; no test: kernels as they are beside the same sources
// with their float sums in an order of the kernel's own choice, by turns. Needs a Hopper.
//
//   time_law [REPEATS]
//
// Exits with 1 where the two do not compute the same numbers but for rounding.
//
//   decode      one token times 2 x 768 rows of each of 8 experts, 2048 wide: the terms of a row's blocks
//               are summed by a tree over lanes in place of ascending
//   prompt      gate and up of 2,048 tokens, 128 experts: a block's two terms are added one by one, each
//               with its factors multiplied first
//   attention   one query's heads in each of 2,048 tokens at depth 16,384: no groups of chunks, one running
//               sum
#include "kernels/cuda/exact/attend.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/instructions_hopper.cuh"
#include "kernels/cuda/products/block_q8k.cuh"
#include "kernels/cuda/products/product_q8k_blocks.cuh"
#include "kernels/cuda/products/product_q8k_stream.cuh"
#include "kernels/cuda/products/product_q8k_wgmma.cuh"
#include "kernels/cuda/products/wgmma_rows.cuh"
#include "kernels/cuda/products/wgmma_tiles.cuh"
#include <algorithm>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

// ---- the same sources in another order ----

template <int GROUPS>
__device__ __forceinline__ float add_terms_free(float y, float term, const float *dx, int count, int sub) {
  int j = threadIdx.x % WARP / 4 % GROUPS;
  float own = 0;
#pragma unroll
  for (int i = 0; i < GROUPS; i++) own = i == j ? dx[i] : own;
  float t = j < count ? own * term : 0.0f;
#pragma unroll
  for (int step = 4; step < 4 * GROUPS; step *= 2) t += __shfl_xor_sync(~0u, t, step);
  return y + t;
}

template <weight_type TYPE>
__device__ __forceinline__ float add_term_free(float y, float dx, float d, float isum, float dmin,
                                               float msum) {
  return TYPE == TYPE_Q6_K ? fmaf(dx * d, isum, y) : fmaf(-(dx * dmin), msum, fmaf(dx * d, isum, y));
}
static constexpr int GROUP_CHUNKS_FREE = 1 << 20;

namespace free_few {
#define add_terms add_terms_free
#include "kernels/cuda/products/product_q8k.cu"
#undef add_terms
} // namespace free_few
namespace free_many {
#define add_term add_term_free
#include "kernels/cuda/products/product_q8k_wgmma.cu"
#undef add_term
} // namespace free_many
namespace free_attention {
#define GROUP_CHUNKS GROUP_CHUNKS_FREE
#include "kernels/cuda/exact/attend_wgmma.cu"
#undef GROUP_CHUNKS
} // namespace free_attention

// ---- data ----

#define CHECK(call)                                                                                          \
  do {                                                                                                       \
    cudaError_t error_ = (call);                                                                             \
    if (error_ != cudaSuccess) {                                                                             \
      printf("%s: %s\n", #call, cudaGetErrorString(error_));                                                 \
      exit(1);                                                                                               \
    }                                                                                                        \
  } while (0)
#define GOOD(call)                                                                                           \
  do {                                                                                                       \
    if (call) {                                                                                              \
      printf("%s\n", status_text());                                                                         \
      exit(1);                                                                                               \
    }                                                                                                        \
  } while (0)

static uint32_t drawn(void) { // xorshift32
  static uint32_t x = 0x1583000a;
  x ^= x << 13;
  x ^= x >> 17;
  return x ^= x << 5;
}

template <typename T> static T *on_device(const std::vector<T> &from) {
  T *to;
  CHECK(cudaMalloc(&to, from.size() * sizeof(T)));
  CHECK(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  return to;
}

template <typename T> static T *room(size_t n) {
  return on_device(std::vector<T>(n));
}

enum { HIDDEN = 2048, WIDTH = 768, EXPERTS = 128, TOP_K = 8, TOKENS = 2048, BLOCKS = HIDDEN / QK_K };

static dev_matrix draw_stack(void) { // of Q4_K
  size_t row = BLOCKS * sizeof(block_q4_K), member = WIDTH * row, words = EXPERTS * member / 4;
  std::vector<uint32_t> bytes(words);
  for (uint32_t &w : bytes) w = drawn();
  for (size_t b = 0; b < words / 36; b++) bytes[b * 36] = 0x1c001c00u + (drawn() & 0x00ff00ffu); // d, dmin
  return dev_matrix{(const uint8_t *)on_device(bytes), TYPE_Q4_K, WIDTH, HIDDEN, row, member};
}

static dev_inputs draw_inputs(size_t n) {
  std::vector<int8_t> qs(n * HIDDEN);
  std::vector<int16_t> bsums(n * HIDDEN / 16);
  std::vector<float> d(n * BLOCKS);
  for (size_t i = 0; i < qs.size(); i++) {
    qs[i] = (int8_t)((int)(drawn() % 255) - 127);
    bsums[i / 16] = (int16_t)(bsums[i / 16] + qs[i]);
  }
  for (float &x : d) x = (float)(drawn() % 1000 + 1) * 1e-5f;
  dev_inputs in = {};
  in.qs = on_device(qs);
  in.bsums = on_device(bsums);
  in.d = on_device(d);
  in.width = HIDDEN;
  return in;
}

// ---- by turns ----

static cudaStream_t stream;

template <typename Launch> static float microseconds_of(Launch launch) {
  cudaEvent_t begin, end;
  float milliseconds;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  CHECK(cudaEventRecord(begin, stream));
  GOOD(launch());
  CHECK(cudaEventRecord(end, stream));
  CHECK(cudaEventSynchronize(end));
  CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
  CHECK(cudaEventDestroy(begin));
  CHECK(cudaEventDestroy(end));
  return milliseconds * 1e3f;
}

static float median(std::vector<float> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

static int wrong;

static void compare(const char *what, const float *a, const float *b, size_t n) {
  std::vector<float> x(n), y(n);
  double error = 0, norm = 0;
  size_t differ = 0;
  CHECK(cudaMemcpy(x.data(), a, n * 4, cudaMemcpyDeviceToHost));
  CHECK(cudaMemcpy(y.data(), b, n * 4, cudaMemcpyDeviceToHost));
  for (size_t i = 0; i < n; i++) {
    error += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
    norm += (double)x[i] * x[i];
    differ += x[i] != y[i];
  }
  bool same = norm > 0 && sqrt(error / norm) < 1e-5;
  printf("%-10s rel_l2 %.1e, %zu of %zu numbers differ%s\n", what, sqrt(error / norm), differ, n,
         same ? "" : ": NOT THE SAME");
  wrong += !same;
}

template <typename Real, typename Free>
static void time_both(const char *what, int repeats, int each, Real real, Free free) {
  std::vector<float> of_real, of_free, ratio;
  for (int i = 0; i < repeats + 2; i++) {
    auto many = [&](auto launch) {
      return microseconds_of([&] {
               for (int k = 0; k < each; k++) GOOD(launch());
               return 0;
             }) /
             (float)each;
    };
    bool first = i % 2; // which goes first changes by turns
    float a = first ? many(real) : 0, b = many(free);
    if (!first) a = many(real);
    if (i < 2) continue;
    of_real.push_back(a);
    of_free.push_back(b);
    ratio.push_back(a / b);
  }
  std::sort(ratio.begin(), ratio.end());
  printf("%-10s %9.2f us, free order %9.2f us, ratio %.4f (%.4f to %.4f), n = %d\n", what, median(of_real),
         median(of_free), ratio[ratio.size() / 2], ratio.front(), ratio.back(), repeats);
}

// ---- the three ----

static product slots(const dev_matrix &w, const dev_inputs &in, int n_items, float *out) {
  product p = {};
  p.w = w;
  p.in = in;
  p.n_members = EXPERTS;
  p.n_items = n_items;
  p.input_divisor = TOP_K;
  p.out = out;
  return p;
}

static void time_decode(const dev_matrix &gate, const dev_matrix &up, int repeats) {
  std::vector<int> member(TOP_K);
  for (int i = 0; i < TOP_K; i++) member[i] = 5 + 13 * i;
  float *out[2] = {room<float>(2 * TOP_K * WIDTH), room<float>(2 * TOP_K * WIDTH)};
  const int *members = on_device(member);
  dev_inputs in = draw_inputs(1);
  auto set_for = [&](float *to) {
    product_set set = {};
    set.count = 2;
    for (int i = 0; i < 2; i++) {
      set.p[i] = slots(i ? up : gate, in, TOP_K, to + (size_t)i * TOP_K * WIDTH);
      set.p[i].member = members;
    }
    return set;
  };
  product_set real = set_for(out[0]), free = set_for(out[1]);
  time_both(
      "decode", repeats, 50, [&] { return product_q8k_launch(&real, stream); },
      [&] { return free_few::product_q8k_launch(&free, stream); });
  compare("decode", out[0], out[1], 2 * TOP_K * WIDTH);
}

static void time_prompt(const dev_matrix &gate, const dev_matrix &up, int repeats) {
  const int n = TOKENS * TOP_K;
  std::vector<std::vector<int>> of_member(EXPERTS);
  for (int t = 0; t < TOKENS; t++)
    for (int k = 0; k < TOP_K; k++) { // unevenly: the product of two draws
      uint32_t m = (drawn() % EXPERTS) * (drawn() % EXPERTS) / EXPERTS;
      of_member[m].push_back(t * TOP_K + k);
    }
  std::vector<int> first(EXPERTS + 1), order;
  for (int m = 0; m < EXPERTS; m++) {
    order.insert(order.end(), of_member[m].begin(), of_member[m].end());
    first[m + 1] = (int)order.size();
  }
  const int *firsts = on_device(first), *orders = on_device(order);
  dev_inputs in = draw_inputs(TOKENS);
  float *out[2] = {room<float>((size_t)2 * n * WIDTH), room<float>((size_t)2 * n * WIDTH)};
  auto set_for = [&](float *to) {
    product_set set = {};
    set.count = 2;
    for (int i = 0; i < 2; i++) {
      set.p[i] = slots(i ? up : gate, in, n, to + (size_t)i * n * WIDTH);
      set.p[i].first = firsts;
      set.p[i].order = orders;
    }
    return set;
  };
  product_set real = set_for(out[0]), free = set_for(out[1]);
  time_both(
      "prompt", repeats, 4, [&] { return product_q8k_wgmma_launch(&real, stream); },
      [&] { return free_many::product_q8k_wgmma_launch(&free, stream); });
  compare("prompt", out[0], out[1], (size_t)2 * n * WIDTH);
}

static void time_attention(int repeats) {
  enum { HEADS = 32, KV_HEADS = 4, DIM = 128, DEPTH = 16384, CHUNKS = (DEPTH + TOKENS) / EXACT_CHUNK };
  const int per_tile = tokens_per_tile(HEADS / KV_HEADS), tiles = TOKENS / per_tile;
  std::vector<uint32_t> blocks((size_t)KV_HEADS * CHUNKS * block_bytes(DIM) / 4),
      words((size_t)tiles * KV_HEADS * 2 * 2 * group_words(DIM));
  for (uint32_t &w : blocks) w = drawn();
  for (uint32_t &w : words) w = drawn();
  for (size_t b = 0; b < (size_t)KV_HEADS * CHUNKS; b++)
    for (int i = 0; i < 2 * EXACT_CHUNK; i++) {
      float unit = (float)(drawn() % 1000 + 500) * 3e-8f;
      memcpy(&blocks[(b * (size_t)block_bytes(DIM) + (size_t)units_offset(DIM)) / 4 + (size_t)i], &unit, 4);
    }
  std::vector<int> position(TOKENS), zero(TOKENS);
  for (int t = 0; t < TOKENS; t++) position[t] = DEPTH + t;
  limb_cache cache = {(uint8_t *)on_device(blocks), (size_t)CHUNKS * block_bytes(DIM), 1, KV_HEADS, DIM};
  exact_work work = {};
  work.queries = query_limbs{on_device(words), on_device(std::vector<float>((size_t)TOKENS * HEADS, 3e-5f)),
                             HEADS, KV_HEADS, DIM};
  dev_batch batch = {on_device(zero), on_device(zero), on_device(position), TOKENS};
  size_t n = (size_t)TOKENS * HEADS * DIM;
  float *out[2] = {room<float>(n), room<float>(n)};
  time_both(
      "attention", repeats, 1, [&] { return exact_wgmma_launch(out[0], &work, cache, 0, &batch, stream); },
      [&] { return free_attention::exact_wgmma_launch(out[1], &work, cache, 0, &batch, stream); });
  compare("attention", out[0], out[1], n);
}

int main(int argc, char **argv) {
  int repeats = argc > 1 ? atoi(argv[1]) : 21, devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || !devices) {
    printf("skipped: no GPU\n");
    return 77;
  }
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  dev_matrix gate = draw_stack(), up = draw_stack();
  time_decode(gate, up, repeats);
  time_prompt(gate, up, repeats);
  time_attention(repeats);
  return wrong != 0;
}
