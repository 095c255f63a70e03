// planted_rows: rows of the cpu backend that are wrong in one thing each, so that test_law.py can show that
// the digest catches it, and test_rows and test_golden that the comparison of kernels does. Linked before the
// library into moe_run_planted, test_rows_planted and test_golden_planted, where its table takes the place of
// that of kernels/cpu/rows.c: the build's own rows first, then the planted ones.
//
// Invariant: but for planted_rope_pairs and planted_q8k_truncates, each row differs from the portable one in
// an order, a tie or a last bit: its results are close, and only the bits tell.
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

// ---- the same from packed tokens alone, with a layout of its own: block after block, each of all tokens
// ----

static size_t group_bytes_plain(int64_t cols) {
  return (size_t)(cols / QK_K) * PACKED_TOKENS * sizeof(block_q8_K);
}

static void pack_plain(void *group, const block_q8_K *const *tokens, int64_t cols, int64_t n, int64_t block) {
  (void)cols;
  block_q8_K *to = (block_q8_K *)group + block * PACKED_TOKENS;
  for (int64_t t = 0; t < n; t++) to[t] = tokens[t][block];
}

static void product_swapped_packed(float *const *out, const matrix *rows, const void *packed, int64_t n) {
  int64_t n_blocks = rows->cols / QK_K;
  if (n_blocks > MAX_BLOCKS) abort();
  for (int64_t t = 0; t < n; t++) {
    block_q8_K token[MAX_BLOCKS];
    const char *group = (const char *)packed + (size_t)(t / PACKED_TOKENS) * group_bytes_plain(rows->cols);
    for (int64_t b = 0; b < n_blocks; b++)
      token[b] = ((const block_q8_K *)(const void *)group)[b * PACKED_TOKENS + t % PACKED_TOKENS];
    const block_q8_K *in = token;
    product_swapped_blocks(out + t, rows, &in, 1);
  }
}

static const packed_ops packed_swapped = {QK_K, type_has_q8k_kernels, group_bytes_plain, pack_plain,
                                          product_swapped_packed};

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
} key_chunk;

static void chunk_scores(key_chunk *c, const float *q, const kv_head *kv, int64_t first, int64_t n,
                         int64_t head_dim) {
  const float *k = kv_read_f32(kv, kv->keys, first * head_dim, ATTENTION_CHUNK * head_dim, c->wide);
  for (int64_t j = 0; j < n; j++) {
    c->score[j] = 0;
    for (int64_t d = 0; d < head_dim; d++)
      c->score[j] = num_fma_f32(q[d], k[d * ATTENTION_CHUNK + j], c->score[j]);
  }
}

static void chunk_values(key_chunk *c, const kv_head *kv, int64_t first, int64_t n, int64_t head_dim) {
  const float *v = kv_read_f32(kv, kv->values, first * head_dim, n * head_dim, c->wide);
  for (int64_t d = 0; d < head_dim; d++) c->out[d] = 0;
  for (int64_t j = 0; j < n; j++)
    for (int64_t d = 0; d < head_dim; d++)
      c->out[d] = num_fma_f32(c->score[j], v[j * head_dim + d], c->out[d]);
}

static key_chunk chunk_at(void *scratch, int64_t head_dim) {
  float *wide = (float *)scratch;
  return (key_chunk){wide, wide + ATTENTION_CHUNK * head_dim, wide + ATTENTION_CHUNK * (head_dim + 1), 0, 0};
}

static void divide(float *run, float sum, int64_t head_dim) {
  float inverse = 1.0f / sum;
  for (int64_t d = 0; d < head_dim; d++) run[d] = run[d] * inverse;
}

// The chunks as they are defined, folded from the last to the first.
static void attend_descending(void *result, const void *q, const kv_head *kv, int64_t n_keys,
                              int64_t head_dim, void *scratch) {
  float *run = (float *)result, run_max = 0, run_sum = 0;
  key_chunk c = chunk_at(scratch, head_dim);
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
  key_chunk c = chunk_at(scratch, head_dim);
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

// ---- RoPE ----

// Angles in float: off by up to a few units of 1e-3 at position 40,000, by nothing at 0.
static void rope_table_float_angle(void *table, double base, int64_t position, int64_t pairs) {
  for (int64_t i = 0; i < pairs; i++) {
    double c, s;
    float angle = (float)position * (float)num_rope_frequency(base, i, pairs);
    num_cos_sin_f64(&c, &s, (double)angle);
    ((float *)table)[2 * i] = (float)c;
    ((float *)table)[2 * i + 1] = (float)s;
  }
}

// Neighbours, as other architectures pair them, instead of i with i + pairs.
static void rope_neighbours(void *x, const void *table, int64_t pairs, double scale) {
  float *v = (float *)x;
  const float *cs = (const float *)table;
  for (int64_t i = 0; i < pairs; i++) {
    float a = v[2 * i], b = v[2 * i + 1], c = cs[2 * i], s = cs[2 * i + 1];
    v[2 * i] = num_fma_f32(a, c, -(b * s)) * (float)scale;
    v[2 * i + 1] = num_fma_f32(a, s, b * c) * (float)scale;
  }
}

// ---- every kernel in floats once more, with an exp whose last bit is the other one ----

static inline float exp_last_bit(float x) {
  float e = num_exp_f32(x);
  return e > 0 && e < 1 ? num_from_bits_f32(num_bits_f32(e) ^ 1u) : e;
}
#define planted_fma_f32     num_fma_f32
#define planted_tree_f32    num_tree_f32
#define planted_exp_f32     exp_last_bit
#define planted_silu_f32(x) ((x) / (1.0f + exp_last_bit(-(x))))

#define REAL       float
#define REAL_FN(x) x##_last_bit
#define NUM(x)     planted_##x##_f32
#define REAL_SQRT  __builtin_sqrtf
#include "kernels/cpu/isa/each_row/generic_real.h"
#undef REAL
#undef REAL_FN
#undef NUM
#undef REAL_SQRT

// ---- rounding to Q8_K ----

static float last_extreme(const float *x) { // of elements of equal magnitude the last
  float extreme = 0;
  for (int i = 0; i < QK_K; i++)
    if (__builtin_fabsf(x[i]) >= __builtin_fabsf(extreme)) extreme = x[i];
  return extreme;
}

static float first_extreme(const float *x) {
  float extreme = 0;
  for (int i = 0; i < QK_K; i++)
    if (__builtin_fabsf(x[i]) > __builtin_fabsf(extreme)) extreme = x[i];
  return extreme;
}

static int32_t round_half_away(float inverse, float x) {
  float scaled = inverse * x, whole = __builtin_truncf(scaled), rest = scaled - whole;
  int32_t q = (int32_t)whole + (rest >= 0.5f) - (rest <= -0.5f);
  return q < 127 ? q : 127;
}

static void quantize_with(block_q8_K *out, const float *x, int64_t n, float (*extreme_of)(const float *),
                          int32_t (*rounded)(float, float)) {
  for (int64_t b = 0; b < n / QK_K; b++, x += QK_K, out++) {
    float extreme = extreme_of(x);
    memset(out, 0, sizeof *out);
    if (extreme == 0) continue;
    float inverse = num_q8k_inverse_scale(extreme);
    for (int i = 0; i < QK_K; i++) {
      int32_t q = rounded(inverse, x[i]);
      out->qs[i] = (int8_t)q;
      out->bsums[i / 16] = (int16_t)(out->bsums[i / 16] + q);
    }
    out->d = 1.0f / inverse;
  }
}

static void quantize_last_sign(block_q8_K *out, const float *x, int64_t n) {
  quantize_with(out, x, n, last_extreme, num_q8k_round);
}

static void quantize_half_away(block_q8_K *out, const float *x, int64_t n) {
  quantize_with(out, x, n, first_extreme, round_half_away);
}

static int32_t round_toward_zero(float inverse, float x) {
  return (int32_t)(inverse * x);
}

static void quantize_truncating(block_q8_K *out, const float *x, int64_t n) {
  quantize_with(out, x, n, first_extreme, round_toward_zero);
}

// ---- q8k_split: an outlier just at the limit taken too; terms in another order, or one left out ----

static void take_at_limit(row_outliers *out, float *rest, const float *x, int64_t first) {
  float limit = num_outlier_limit(ordinary_magnitude_generic(x));
  for (int i = 0; i < QK_K; i++) {
    bool is_out = limit > 0 ? __builtin_fabsf(x[i]) >= limit : x[i] != 0;
    rest[i] = is_out ? 0 : x[i];
    if (is_out) out->of[out->count++] = (outlier){(int32_t)(first + i), x[i]};
  }
}

static void split_at_limit(block_q8_K *out, const float *x, int64_t n) {
  row_outliers *outliers = (row_outliers *)(void *)(out + n / QK_K);
  outliers->count = 0;
  for (int64_t at = 0; at < n; at += QK_K, out++) {
    float rest[QK_K];
    take_at_limit(outliers, rest, x + at, at);
    quantize_q8k_generic(out, rest, QK_K);
  }
}

typedef struct { // one token's row, of which add_outliers reads the end alone
  block_q8_K blocks[MAX_BLOCKS];
  char outliers[sizeof(row_outliers) + MAX_BLOCKS * MOST_OUTLIERS * sizeof(outlier)];
} split_row;

// Adds the terms of a copy of each token's outliers, which `change` has changed.
static void add_changed(void (*change)(row_outliers *), float *const *out, const matrix *rows,
                        const block_q8_K *const *x, int64_t n_tokens) {
  int64_t n_blocks = rows->cols / QK_K;
  if (n_blocks > MAX_BLOCKS) abort();
  for (int64_t t = 0; t < n_tokens; t++) {
    split_row row;
    const block_q8_K *in = row.blocks;
    memcpy(&row, x[t], (size_t)n_blocks * sizeof *in);
    const row_outliers *from = outliers_of(x[t], n_blocks);
    row_outliers *to = (row_outliers *)(void *)(row.blocks + n_blocks);
    memcpy(to, from, sizeof *from + (size_t)from->count * sizeof *from->of);
    change(to);
    add_outliers_generic(&out[t], rows, &in, 1);
  }
}

static void leave_last_out(row_outliers *o) {
  if (o->count) o->count--;
}

static void turn_around(row_outliers *o) {
  for (int32_t i = 0; i < o->count / 2; i++) {
    outlier other = o->of[i];
    o->of[i] = o->of[o->count - 1 - i];
    o->of[o->count - 1 - i] = other;
  }
}

static void add_all_but_last(float *const *out, const matrix *rows, const block_q8_K *const *x,
                             int64_t n_tokens) {
  add_changed(leave_last_out, out, rows, x, n_tokens);
}

static void add_descending(float *const *out, const matrix *rows, const block_q8_K *const *x,
                           int64_t n_tokens) {
  add_changed(turn_around, out, rows, x, n_tokens);
}

// ---- a router that gives a tie to the higher index ----

static void route_last_of_equals(expert_global *expert, void *weight, double *margin, void *logits, int64_t n,
                                 int64_t k) {
  float *p = (float *)logits;
  for (int64_t e = 0; e < n / 2; e++) { // the last of equals is the first of those in reverse
    float other = p[e];
    p[e] = p[n - 1 - e];
    p[n - 1 - e] = other;
  }
  route_f32(expert, weight, margin, logits, n, k);
  for (int64_t s = 0; s < k; s++) expert[s].id = (int32_t)(n - 1 - expert[s].id);
}

// ---- a cache that rounds halves toward zero ----

static uint16_t half_toward_zero(float x) {
  uint16_t half = f32_to_half(x);
  return __builtin_fabsf(half_to_f32(half)) > __builtin_fabsf(x) ? (uint16_t)(half - 1) : half;
}

static void kv_store_toward_zero(kv_head *kv, int64_t position, const void *k, const void *v,
                                 int64_t head_dim) {
  int64_t chunk = position / ATTENTION_CHUNK, j = position % ATTENTION_CHUNK;
  if (kv->storage != KV_HALF) {
    kv_store_f32(kv, position, k, v, head_dim);
    return;
  }
  for (int64_t d = 0; d < head_dim; d++) {
    ((uint16_t *)kv->keys)[(chunk * head_dim + d) * ATTENTION_CHUNK + j] =
        half_toward_zero(((const float *)k)[d]);
    ((uint16_t *)kv->values)[position * head_dim + d] = half_toward_zero(((const float *)v)[d]);
  }
}

// ---- attention in integers, wrong in one thing ----

// The product of the query's low limbs and the keys' high limbs is left out.
static void chunk_without_a_product(const exact_rows *to, const exact_queries *q, const exact_chunk *c,
                                    const int32_t *n_keys, int64_t n, int64_t width) {
  int8_t *none = calloc((size_t)(n * width), 1);
  int32_t no_sum[EXACT_TILE] = {0};
  if (!none) abort();
  const exact_queries high = {q->high, none, q->unit, q->high_sum, no_sum};
  exact_chunk_generic(to, &high, c, n_keys, n, width);
  free(none);
}

typedef struct { // one row of queries of a span: its integers, and results of parts of its keys
  int8_t high[4096], low[4096];
  float unit, max[2], sum[2], out[2][4096];
  int32_t sums[2];
} exact_row;

static exact_queries queries_of(exact_row *r) {
  return (exact_queries){r->high, r->low, &r->unit, &r->sums[0], &r->sums[1]};
}

static exact_rows result_of(exact_row *r, int i) {
  return (exact_rows){&r->max[i], &r->sum[i], r->out[i]};
}

// Attention of one row after the other over parts of its keys, the part of a rank given by `part`: its chunk
// and its first and last key there. Ends where part returns false.
static void attend_parts(const exact_span *s, int64_t head_dim,
                         bool (*part)(int64_t rank, int64_t n_keys, int64_t *chunk, int32_t *first,
                                      int32_t *end)) {
  exact_row *r = malloc(sizeof *r);
  if (!r) abort();
  for (int64_t i = 0; i < s->n * s->heads; i++) {
    int64_t n_keys = s->n_keys[i / s->heads], at = i % s->heads * head_dim, chunk;
    int32_t first, end;
    const exact_queries q = queries_of(r);
    const exact_rows run = result_of(r, 0), next = result_of(r, 1);
    exact_query_generic(&q, (const float *)s->q[i / s->heads] + at, &s->factors, head_dim, s->kv.width);
    for (int64_t rank = 0; part(rank, n_keys, &chunk, &first, &end); rank++) {
      exact_work w;
      exact_chunk keys = exact_chunk_at(&s->kv, chunk);
      const exact_rows *to = rank ? &next : &run;
      exact_scores_generic(&w, &q, &keys, s->kv.width);
      memmove(w.score, w.score + first, (size_t)(end - first) * sizeof *w.score);
      float weight_unit = exact_weights_generic(&w, to->max, to->sum, keys.value_unit + first, end - first);
      memmove(w.weight_high + first, w.weight_high, (size_t)(EXACT_CHUNK - first) * sizeof *w.weight_high);
      memmove(w.weight_low + first, w.weight_low, (size_t)(EXACT_CHUNK - first) * sizeof *w.weight_low);
      memset(w.weight_high, 0, (size_t)first * sizeof *w.weight_high);
      memset(w.weight_low, 0, (size_t)first * sizeof *w.weight_low);
      exact_output_generic(to->out, &w, &keys, weight_unit, s->kv.width);
      if (rank) exact_fold_generic(&run, &next, s->kv.width);
    }
    exact_finish_generic((float *)s->out[i / s->heads] + at, &run, r->unit, head_dim);
  }
  free(r);
}

// A chunk ends after 64 keys, as on the paths that compute in reals.
static bool part_of_64(int64_t rank, int64_t n_keys, int64_t *chunk, int32_t *first, int32_t *end) {
  *chunk = rank / 2;
  *first = rank % 2 * 64;
  *end = n_keys - rank * 64 < 64 ? (int32_t)(n_keys - rank * 64) + *first : *first + 64;
  return rank * 64 < n_keys;
}

static bool part_from_the_end(int64_t rank, int64_t n_keys, int64_t *chunk, int32_t *first, int32_t *end) {
  *chunk = (n_keys - 1) / EXACT_CHUNK - rank;
  *first = 0;
  *end = rank ? EXACT_CHUNK : (int32_t)((n_keys - 1) % EXACT_CHUNK + 1);
  return *chunk >= 0;
}

static void attend_moved_boundary(const exact_ops *ops, const exact_span *s, int64_t head_dim,
                                  void *scratch) {
  (void)ops, (void)scratch;
  attend_parts(s, head_dim, part_of_64);
}

static void attend_chunks_descending(const exact_ops *ops, const exact_span *s, int64_t head_dim,
                                     void *scratch) {
  (void)ops, (void)scratch;
  attend_parts(s, head_dim, part_from_the_end);
}

// Channel 0 is balanced by another power of two, in keys and queries alike: the same product, rounded
// elsewhere.
static float *with_first_channel(const float *x, float factor, int64_t head_dim) {
  float *out = malloc((size_t)head_dim * sizeof *out);
  if (!out) abort();
  memcpy(out, x, (size_t)head_dim * sizeof *out);
  out[0] *= factor;
  return out;
}

static void store_off_balance(const exact_cache *kv, int64_t position, const float *k, const float *v,
                              const exact_factors *factors, int64_t head_dim) {
  float *other = with_first_channel(factors->key, 16, head_dim);
  exact_factors wrong = {factors->query, other, factors->value};
  exact_store_generic(kv, position, k, v, &wrong, head_dim);
  free(other);
}

static void query_off_balance(const exact_queries *to, const float *q, const exact_factors *factors,
                              int64_t head_dim, int64_t width) {
  float *other = with_first_channel(factors->query, 1.0f / 16, head_dim);
  exact_factors wrong = {other, factors->key, factors->value};
  exact_query_generic(to, q, &wrong, head_dim, width);
  free(other);
}

// ---- the table ----

enum {
  BLOCK_ORDER,
  SLOT_ORDER,
  FOLD_ORDER,
  FOLD_MAXIMUM,
  LANE_TREE,
  ROPE_ANGLE,
  ROPE_PAIRS,
  EXP_LAST_BIT,
  Q8K_SIGN,
  Q8K_ROUNDING,
  ROUTE_TIE,
  F16_CACHE,
  SWIGLU_EXP,
  Q8K_TRUNCATES,
  OUTLIER_LIMIT,
  OUTLIER_ORDER,
  OUTLIER_LEFT_OUT,
  EXACT_PRODUCT,
  EXACT_BOUNDARY,
  EXACT_FOLD,
  EXACT_CHANNEL,
  PACKED_ORDER,
  N_PLANTED
};

static const char *const names[N_PLANTED] = {
    [BLOCK_ORDER] = "planted_block_order",
    [SLOT_ORDER] = "planted_slot_order",
    [FOLD_ORDER] = "planted_fold_order",
    [FOLD_MAXIMUM] = "planted_fold_maximum",
    [LANE_TREE] = "planted_lane_tree",
    [ROPE_ANGLE] = "planted_rope_angle",
    [ROPE_PAIRS] = "planted_rope_pairs",
    [EXP_LAST_BIT] = "planted_exp_last_bit",
    [Q8K_SIGN] = "planted_q8k_sign",
    [Q8K_ROUNDING] = "planted_q8k_rounding",
    [ROUTE_TIE] = "planted_route_tie",
    [F16_CACHE] = "planted_f16_cache",
    [OUTLIER_LIMIT] = "planted_outlier_limit",
    [OUTLIER_ORDER] = "planted_outlier_order",
    [OUTLIER_LEFT_OUT] = "planted_outlier_left_out",
    [SWIGLU_EXP] = "planted_swiglu_exp",
    [Q8K_TRUNCATES] = "planted_q8k_truncates",
    [EXACT_PRODUCT] = "planted_exact_product",
    [EXACT_BOUNDARY] = "planted_exact_boundary",
    [EXACT_FOLD] = "planted_exact_fold",
    [EXACT_CHANNEL] = "planted_exact_balance",
    [PACKED_ORDER] = "planted_packed_order",
};

static bool always_usable(void) {
  return true;
}

static void plant(cpu_row *row, real_ops *ops, exact_ops *exact) {
  for (int i = 0; i < N_PLANTED; i++) {
    ops[i] = i == EXP_LAST_BIT ? ops_last_bit : ops_f32;
    exact[i] = exact_ops_generic;
    row[i] = (cpu_row){
        .name = names[i],
        .usable = always_usable,
        .f32 = &ops[i],
        .f64 = &ops_f64,
        .exact = &exact[i],
        .quantize_q8k = quantize_q8k_generic,
        .product_q8k = product_q8k_generic,
        .split_q8k = split_q8k_generic,
        .add_outliers = add_outliers_generic,
        .product_unpacked = product_unpacked_generic,
        .round_q8_0 = round_q8_0_generic,
        .product_q8_0 = product_q8_0_generic,
        .add_outliers_few_bits = add_outliers_few_bits,
    };
  }
  row[BLOCK_ORDER].product_q8k = product_swapped_blocks;
  row[PACKED_ORDER].packed = &packed_swapped;
  ops[SLOT_ORDER].combine = combine_swapped_slots;
  ops[FOLD_ORDER].attend = attend_descending;
  ops[FOLD_MAXIMUM].attend = attend_running_maximum;
  ops[LANE_TREE].product = product_neighbours;
  ops[ROPE_ANGLE].rope_table = rope_table_float_angle;
  ops[ROPE_PAIRS].rope = rope_neighbours;
  row[Q8K_SIGN].quantize_q8k = quantize_last_sign;
  row[Q8K_ROUNDING].quantize_q8k = quantize_half_away;
  ops[ROUTE_TIE].route = route_last_of_equals;
  ops[F16_CACHE].kv_store = kv_store_toward_zero;
  ops[SWIGLU_EXP].swiglu = swiglu_last_bit;
  row[Q8K_TRUNCATES].quantize_q8k = quantize_truncating;
  row[OUTLIER_LIMIT].split_q8k = split_at_limit;
  row[OUTLIER_ORDER].add_outliers = add_descending;
  row[OUTLIER_LEFT_OUT].add_outliers = add_all_but_last;
  exact[EXACT_PRODUCT].chunk = chunk_without_a_product;
  exact[EXACT_BOUNDARY].attend = attend_moved_boundary;
  exact[EXACT_FOLD].attend = attend_chunks_descending;
  exact[EXACT_CHANNEL].store = store_off_balance;
  exact[EXACT_CHANNEL].query = query_off_balance;
}

const cpu_row *const *cpu_row_table(void) {
  static cpu_row planted[N_PLANTED];
  static real_ops ops[N_PLANTED];
  static exact_ops exact[N_PLANTED];
  static const cpu_row *const built_in[] = {CPU_ROW_TABLE_ROWS NULL};
  enum { N_BUILT_IN = sizeof built_in / sizeof *built_in - 1 };
  static const cpu_row *table[N_BUILT_IN + N_PLANTED + 1];
  if (table[0]) return table;
  plant(planted, ops, exact);
  for (int i = 0; i < N_PLANTED; i++) table[N_BUILT_IN + i] = &planted[i];
  for (int i = N_BUILT_IN - 1; i >= 0; i--) table[i] = built_in[i];
  return table;
}

const cpu_row *cpu_row_find(const char *name) {
  for (const cpu_row *const *row = cpu_row_table(); *row; row++)
    if ((!strcmp(name, "auto") || !strcmp(name, (*row)->name)) && (*row)->usable()) return *row;
  return NULL;
}
