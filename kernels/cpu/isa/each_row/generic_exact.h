// generic_exact: attention in integers in portable C, the readable reference of docs/paths.md ("Attention in
// integers") on the cpu backend's cache.
#pragma once
#include "kernels/cpu/exact.h"
#include <string.h>

// ---- vectors ----

static exact_scale vector_scale_generic(const float *x, const float *factor, int64_t n) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; i++) {
    uint32_t magnitude = exact_magnitude(x[i] * factor[i]);
    largest = magnitude > largest ? magnitude : largest;
  }
  return exact_vector_scale(largest);
}

static inline uint8_t biased(int32_t limb) {
  return (uint8_t)(limb + LIMB_BIAS);
}

static void exact_store_generic(const exact_cache *kv, int64_t position, const float *k, const float *v,
                                const exact_factors *factors, int64_t head_dim) {
  exact_chunk c = exact_chunk_at(kv, position / EXACT_CHUNK);
  int64_t j = position % EXACT_CHUNK;
  exact_scale key = vector_scale_generic(k, factors->key, head_dim);
  exact_scale value = vector_scale_generic(v, factors->value, head_dim);
  c.key_unit[j] = key.unit;
  c.value_unit[j] = key.unit == key.unit ? value.unit : key.unit; // a key that is not finite shows
  for (int64_t d = 0; d < head_dim; d++) {
    int32_t x = exact_integer(k[d] * factors->key[d], key),
            y = exact_integer(v[d] * factors->value[d], value);
    int64_t key_at = exact_key_at(j, d, kv->width), value_at = exact_value_at(j, d);
    c.key_high[key_at] = biased(exact_high(x));
    c.key_low[key_at] = biased(exact_low(x));
    c.value_high[value_at] = biased(exact_high(y));
    c.value_low[value_at] = biased(exact_low(y));
  }
}

static void exact_query_generic(const exact_queries *to, const float *q, const exact_factors *factors,
                                int64_t head_dim, int64_t width) {
  exact_scale s = vector_scale_generic(q, factors->query, head_dim);
  int32_t high_sum = 0, low_sum = 0;
  for (int64_t d = 0; d < width; d++) {
    int32_t x = d < head_dim ? exact_integer(q[d] * factors->query[d], s) : 0;
    to->high[d] = (int8_t)exact_high(x);
    to->low[d] = (int8_t)exact_low(x);
    high_sum += to->high[d];
    low_sum += to->low[d];
  }
  to->unit[0] = s.unit;
  to->high_sum[0] = LIMB_BIAS * high_sum;
  to->low_sum[0] = LIMB_BIAS * low_sum;
}

// ---- a chunk ----

typedef struct { // one row of queries over a chunk
  int32_t high_high[EXACT_CHUNK], crossed[EXACT_CHUNK];
  float score[EXACT_CHUNK];
  int32_t weight_high[EXACT_CHUNK], weight_low[EXACT_CHUNK];
} exact_work;

// score[j] for all keys of the chunk, those beyond the row's own included.
static void exact_scores_generic(exact_work *w, const exact_queries *q, const exact_chunk *c, int64_t width) {
  for (int j = 0; j < EXACT_CHUNK; j++) {
    w->high_high[j] = -q->high_sum[0];
    w->crossed[j] = -(q->high_sum[0] + q->low_sum[0]);
  }
  for (int64_t i = 0; i < EXACT_CHUNK / 16 * (width / 4); i++) {
    const uint8_t *high = c->key_high + i * 64, *low = c->key_low + i * 64;
    const int8_t *h = q->high + i % (width / 4) * 4, *l = q->low + i % (width / 4) * 4;
    int64_t j = i / (width / 4) * 16;
    for (int k = 0; k < 16; k++, j++, high += 4, low += 4) {
      w->high_high[j] += h[0] * high[0] + h[1] * high[1] + h[2] * high[2] + h[3] * high[3];
      w->crossed[j] += h[0] * low[0] + h[1] * low[1] + h[2] * low[2] + h[3] * low[3] + l[0] * high[0] +
                       l[1] * high[1] + l[2] * high[2] + l[3] * high[3];
    }
  }
  for (int j = 0; j < EXACT_CHUNK; j++) {
    float units = q->unit[0] * c->key_unit[j];
    w->score[j] = width <= EXACT_WIDE_HEAD
                      ? exact_score(exact_score_sum(w->high_high[j], w->crossed[j]), units)
                      : exact_score_wide(256 * (int64_t)w->high_high[j] + w->crossed[j], units);
  }
}

// Scores of the first n keys to the limbs of their weights, 0 for the others. Returns the weights' unit.
static float exact_weights_generic(exact_work *w, float *max, float *sum, const float *value_unit,
                                   int32_t n) {
  float most = -__builtin_inff();
  for (int32_t j = 0; j < n; j++) most = w->score[j] > most ? w->score[j] : most;
  float bias = exact_bias(most);
  int32_t count = 0;
  uint32_t largest = 0;
  for (int32_t j = 0; j < n; j++) {
    float e = exact_exp(exact_z(w->score[j], bias));
    count += exact_count(e);
    w->score[j] = e * value_unit[j];
    uint32_t magnitude = exact_magnitude(w->score[j]);
    largest = magnitude > largest ? magnitude : largest;
  }
  exact_scale s = exact_weight_scale(largest);
  for (int32_t j = 0; j < EXACT_CHUNK; j++) {
    int32_t weight = j < n ? exact_integer(w->score[j], s) : 0;
    w->weight_high[j] = exact_high(weight);
    w->weight_low[j] = exact_low(weight);
  }
  *max = most;
  *sum = exact_sum(count);
  return s.unit;
}

// out[width] of the weights' limbs times the values'
static void exact_output_generic(float *out, const exact_work *w, const exact_chunk *c, float weight_unit,
                                 int64_t width) {
  int32_t high_sum = 0, low_sum = 0;
  for (int j = 0; j < EXACT_CHUNK; j++) {
    high_sum += LIMB_BIAS * w->weight_high[j];
    low_sum += LIMB_BIAS * w->weight_low[j];
  }
  for (int64_t d = 0; d < width; d++) {
    int32_t high_high = -high_sum, crossed = -(high_sum + low_sum), low_low = -low_sum;
    for (int j = 0; j < EXACT_CHUNK; j++) {
      int64_t at = exact_value_at(j, d);
      high_high += w->weight_high[j] * c->value_high[at];
      crossed += w->weight_high[j] * c->value_low[at] + w->weight_low[j] * c->value_high[at];
      low_low += w->weight_low[j] * c->value_low[at];
    }
    out[d] = exact_output(exact_output_sum(high_high, crossed, low_low), weight_unit);
  }
}

static void exact_chunk_generic(const exact_rows *to, const exact_queries *q, const exact_chunk *c,
                                const int32_t *n_keys, int64_t n, int64_t width) {
  for (int64_t r = 0; r < n; r++) {
    if (!n_keys[r]) continue;
    exact_work w;
    exact_queries row = exact_queries_from(q, r, width);
    exact_scores_generic(&w, &row, c, width);
    float weight_unit = exact_weights_generic(&w, &to->max[r], &to->sum[r], c->value_unit, n_keys[r]);
    exact_output_generic(to->out + r * width, &w, c, weight_unit, width);
  }
}

// ---- folds ----

static void exact_fold_generic(const exact_rows *run, const exact_rows *next, int64_t width) {
  float both = run->max[0] > next->max[0] ? run->max[0] : next->max[0];
  float old = exact_rescale(run->max[0], both), fresh = exact_rescale(next->max[0], both);
  run->sum[0] = num_fma_f32(next->sum[0], fresh, run->sum[0] * old);
  run->max[0] = both;
  for (int64_t d = 0; d < width; d++) run->out[d] = num_fma_f32(next->out[d], fresh, run->out[d] * old);
}

static void exact_finish_generic(float *out, const exact_rows *run, float query_unit, int64_t head_dim) {
  float inverse = exact_inverse(run->sum[0], query_unit);
  for (int64_t d = 0; d < head_dim; d++) out[d] = run->out[d] * inverse;
}

static const exact_ops exact_ops_generic = {
    .store = exact_store_generic,
    .query = exact_query_generic,
    .chunk = exact_chunk_generic,
    .fold = exact_fold_generic,
    .finish = exact_finish_generic,
    .attend = exact_attend,
};
