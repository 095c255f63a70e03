// planted_rows: rows of the cpu backend that are wrong in one thing each, so that test_law.py can show that
// the digest catches it. Linked before the library into moe_run_planted, where its table takes the place of
// that of kernels/cpu/rows.c: the build's own rows first, then the planted ones.
//
// Invariant: each row differs from the portable one in the order of float operations alone, never in what is
// summed: its results are close, and only the bits tell.
#include "kernels/cpu/isa/each_row/generic.h"
#include "kernels/table.h"
#include <stdlib.h>

enum { MAX_BLOCKS = 32 }; // of a row; the test's models have three

// ---- a K-quant product that takes the second block before the first ----

static void swap_first_two(char *out, const void *blocks, size_t block_bytes, int64_t n_blocks) {
  memcpy(out, blocks, block_bytes * (size_t)n_blocks);
  if (n_blocks < 2) return;
  memcpy(out, (const char *)blocks + block_bytes, block_bytes);
  memcpy(out + block_bytes, blocks, block_bytes);
}

static void product_swapped_blocks(float *const *out, const matrix *rows, const block_q8_K *const *x,
                                   int64_t n_tokens) {
  const type_info *type = type_find(rows->type);
  int64_t n_blocks = rows->cols / QK_K;
  size_t row_bytes = type->bytes * (size_t)n_blocks;
  if (n_blocks > MAX_BLOCKS) abort();
  for (int64_t r = 0; r < rows->rows; r++)
    for (int64_t t = 0; t < n_tokens; t++) {
      char weights[MAX_BLOCKS * sizeof(block_q6_K)];
      block_q8_K activations[MAX_BLOCKS];
      swap_first_two(weights, (const char *)rows->data + (size_t)r * row_bytes, type->bytes, n_blocks);
      swap_first_two((char *)activations, x[t], sizeof *activations, n_blocks);
      matrix row = {weights, rows->type, 1, rows->cols};
      const block_q8_K *in = activations;
      float *to = &out[t][r];
      product_q8k_generic(&to, &row, &in, 1);
    }
}

// ---- a combine that takes the last slot before the one that it follows ----

static void combine_swapped_slots(void *x, const void *const *slot, const void *weight, int64_t k,
                                  int64_t n) {
  const void *slots[MAX_TOP_K];
  float weights[MAX_TOP_K];
  for (int64_t s = 0; s < k; s++) {
    int64_t from = s == k - 1 && k > 1 ? k - 2 : s == k - 2 ? k - 1 : s;
    slots[s] = slot[from];
    weights[s] = ((const float *)weight)[from];
  }
  combine_f32(x, slots, weights, k, n);
}

// ---- attention that merges its chunks in another way ----

typedef struct { // one query over one chunk: scores, and what is kept of them
  float *wide, *score, *out;
  float max, sum;
} chunk;

static void chunk_scores(chunk *c, const float *q, const kv_head *kv, int64_t first, int64_t n,
                         int64_t head_dim) {
  const float *k = kv_read_f32(kv, kv->keys, first * head_dim, ATTENTION_CHUNK * head_dim, c->wide);
  for (int64_t j = 0; j < n; j++) {
    c->score[j] = 0;
    for (int64_t d = 0; d < head_dim; d++)
      c->score[j] = num_fma_f32(q[d], k[d * ATTENTION_CHUNK + j], c->score[j]);
  }
}

static void chunk_values(chunk *c, const kv_head *kv, int64_t first, int64_t n, int64_t head_dim) {
  const float *v = kv_read_f32(kv, kv->values, first * head_dim, n * head_dim, c->wide);
  for (int64_t d = 0; d < head_dim; d++) c->out[d] = 0;
  for (int64_t j = 0; j < n; j++)
    for (int64_t d = 0; d < head_dim; d++)
      c->out[d] = num_fma_f32(c->score[j], v[j * head_dim + d], c->out[d]);
}

static chunk chunk_at(void *scratch, int64_t head_dim) {
  float *wide = (float *)scratch;
  return (chunk){wide, wide + ATTENTION_CHUNK * head_dim, wide + ATTENTION_CHUNK * (head_dim + 1), 0, 0};
}

static void divide(float *run, float sum, int64_t head_dim) {
  float inverse = 1.0f / sum;
  for (int64_t d = 0; d < head_dim; d++) run[d] = run[d] * inverse;
}

// The chunks as they are defined, folded from the last to the first.
static void attend_descending(void *result, const void *q, const kv_head *kv, int64_t n_keys,
                              int64_t head_dim, void *scratch) {
  float *run = (float *)result, run_max = 0, run_sum = 0;
  chunk c = chunk_at(scratch, head_dim);
  int64_t last = (n_keys - 1) / ATTENTION_CHUNK * ATTENTION_CHUNK;
  for (int64_t first = last; first >= 0; first -= ATTENTION_CHUNK) {
    int64_t n = n_keys - first < ATTENTION_CHUNK ? n_keys - first : ATTENTION_CHUNK;
    chunk_scores(&c, (const float *)q, kv, first, n, head_dim);
    c.sum = chunk_weights_f32(c.score, n, &c.max);
    chunk_values(&c, kv, first, n, head_dim);
    if (first == last) {
      memcpy(run, c.out, (size_t)head_dim * sizeof *run);
      run_max = c.max;
      run_sum = c.sum;
    } else {
      chunk_fold_f32(&run_max, &run_sum, run, c.max, c.sum, c.out, head_dim);
    }
  }
  divide(run, run_sum, head_dim);
}

// Ascending, but each chunk's weights are relative to the maximum so far, as most attention kernels do it.
static void attend_running_maximum(void *result, const void *q, const kv_head *kv, int64_t n_keys,
                                   int64_t head_dim, void *scratch) {
  float *run = (float *)result, run_max = -__builtin_inff(), run_sum = 0;
  chunk c = chunk_at(scratch, head_dim);
  for (int64_t d = 0; d < head_dim; d++) run[d] = 0;
  for (int64_t first = 0; first < n_keys; first += ATTENTION_CHUNK) {
    int64_t n = n_keys - first < ATTENTION_CHUNK ? n_keys - first : ATTENTION_CHUNK;
    chunk_scores(&c, (const float *)q, kv, first, n, head_dim);
    float lane[LANES] = {0};
    c.max = run_max;
    for (int64_t j = 0; j < n; j++) c.max = c.score[j] > c.max ? c.score[j] : c.max;
    for (int64_t j = 0; j < n; j++) {
      c.score[j] = num_exp_f32(c.score[j] - c.max);
      lane[j % LANES] = lane[j % LANES] + c.score[j];
    }
    float old = first ? num_exp_f32(run_max - c.max) : 0;
    chunk_values(&c, kv, first, n, head_dim);
    run_sum = num_fma_f32(run_sum, old, num_tree_f32(lane));
    for (int64_t d = 0; d < head_dim; d++) run[d] = num_fma_f32(run[d], old, c.out[d]);
    run_max = c.max;
  }
  divide(run, run_sum, head_dim);
}

// ---- a float product whose tree adds neighbours instead of halves ----

static float dot_neighbours(const float *a, const float *w, int64_t n) {
  float lane[LANES] = {0};
  for (int64_t i = 0; i < n; i++) lane[i % LANES] = num_fma_f32(w[i], a[i], lane[i % LANES]);
  for (int step = 1; step < LANES; step *= 2)
    for (int l = 0; l < LANES; l += 2 * step) lane[l] = lane[l] + lane[l + step];
  return lane[0];
}

static void product_neighbours(void *const *out, const matrix *rows, const void *const *x, int64_t n_tokens,
                               float *scratch) {
  size_t row_bytes = type_row_bytes(type_find(rows->type), (size_t)rows->cols);
  for (int64_t r = 0; r < rows->rows; r++) {
    dequantize_row(scratch, rows->type, (const char *)rows->data + (size_t)r * row_bytes, (size_t)rows->cols);
    for (int64_t t = 0; t < n_tokens; t++)
      ((float *)out[t])[r] = dot_neighbours((const float *)x[t], scratch, rows->cols);
  }
}

// ---- the table ----

enum { BLOCK_ORDER, SLOT_ORDER, FOLD_ORDER, FOLD_MAXIMUM, LANE_TREE, N_PLANTED };

static const char *const names[N_PLANTED] = {"planted_block_order", "planted_slot_order",
                                             "planted_fold_order", "planted_fold_maximum",
                                             "planted_lane_tree"};

static bool always_usable(void) {
  return true;
}

static void plant(cpu_row *row, real_ops *ops) {
  for (int i = 0; i < N_PLANTED; i++) {
    ops[i] = ops_f32;
    row[i] = (cpu_row){names[i], always_usable, &ops[i], &ops_f64, quantize_q8k_generic, product_q8k_generic};
  }
  row[BLOCK_ORDER].product_q8k = product_swapped_blocks;
  ops[SLOT_ORDER].combine = combine_swapped_slots;
  ops[FOLD_ORDER].attend = attend_descending;
  ops[FOLD_MAXIMUM].attend = attend_running_maximum;
  ops[LANE_TREE].product = product_neighbours;
}

const cpu_row *const *cpu_row_table(void) {
  static cpu_row planted[N_PLANTED];
  static real_ops ops[N_PLANTED];
  static const cpu_row *const table[] = {
      CPU_ROW_TABLE_ROWS planted, planted + 1, planted + 2, planted + 3, planted + 4, NULL};
  _Static_assert(N_PLANTED == 5, "the table names each");
  if (!planted[0].name) plant(planted, ops);
  return table;
}

const cpu_row *cpu_row_find(const char *name) {
  for (const cpu_row *const *row = cpu_row_table(); *row; row++)
    if ((!strcmp(name, "auto") || !strcmp(name, (*row)->name)) && (*row)->usable()) return *row;
  return NULL;
}
