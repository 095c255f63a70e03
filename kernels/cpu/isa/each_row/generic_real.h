// generic_real: docs/paths.md in portable C for one real type. Included by generic.h once with REAL float and
// once with REAL double; REAL_FN(name) appends the type's suffix, NUM(name) picks the function of numerics.h.

static REAL REAL_FN(dot)(const REAL *a, const float *w, int64_t n) {
  REAL lane[LANES] = {0};
  int64_t whole = n / LANES * LANES;
  for (int64_t i = 0; i < whole; i += LANES)
    for (int l = 0; l < LANES; l++) lane[l] = NUM(fma)((REAL)w[i + l], a[i + l], lane[l]);
  for (int64_t i = whole; i < n; i++) lane[i - whole] = NUM(fma)((REAL)w[i], a[i], lane[i - whole]);
  return NUM(tree)(lane);
}

static void REAL_FN(product)(void *const *out, const matrix *rows, const void *const *x, int64_t n_tokens,
                             float *scratch) {
  size_t row_bytes = type_row_bytes(type_find(rows->type), (size_t)rows->cols);
  for (int64_t r = 0; r < rows->rows; r++) {
    const float *w = (const float *)((const char *)rows->data + (size_t)r * row_bytes);
    if (rows->type != TYPE_F32) {
      dequantize(scratch, rows->type, w, (size_t)rows->cols);
      w = scratch;
    }
    for (int64_t t = 0; t < n_tokens; t++)
      ((REAL *)out[t])[r] = REAL_FN(dot)((const REAL *)x[t], w, rows->cols);
  }
}

static void REAL_FN(embed)(void *x, const matrix *embedding, int64_t token, float *scratch) {
  size_t row_bytes = type_row_bytes(type_find(embedding->type), (size_t)embedding->cols);
  dequantize(scratch, embedding->type, (const char *)embedding->data + (size_t)token * row_bytes,
             (size_t)embedding->cols);
  for (int64_t i = 0; i < embedding->cols; i++) ((REAL *)x)[i] = (REAL)scratch[i];
}

static void REAL_FN(rms_norm)(void *out, const void *x, const float *weight, int64_t n, double epsilon) {
  const REAL *in = (const REAL *)x;
  REAL lane[LANES] = {0};
  for (int64_t i = 0; i < n; i++) lane[i % LANES] = NUM(fma)(in[i], in[i], lane[i % LANES]);
  REAL mean = NUM(tree)(lane) / (REAL)n;
  REAL inverse = (REAL)1 / REAL_SQRT(mean + (REAL)epsilon);
  for (int64_t i = 0; i < n; i++) ((REAL *)out)[i] = in[i] * inverse * (REAL)weight[i];
}

static void REAL_FN(rope_table)(void *table, double base, int64_t position, int64_t pairs) {
  for (int64_t i = 0; i < pairs; i++) {
    double c, s;
    num_cos_sin_f64(&c, &s, (double)position * num_rope_frequency(base, i, pairs));
    ((REAL *)table)[2 * i] = (REAL)c;
    ((REAL *)table)[2 * i + 1] = (REAL)s;
  }
}

static void REAL_FN(rope)(void *x, const void *table, int64_t pairs, double scale) {
  REAL *v = (REAL *)x;
  const REAL *cs = (const REAL *)table;
  for (int64_t i = 0; i < pairs; i++) {
    REAL a = v[i], b = v[i + pairs], c = cs[2 * i], s = cs[2 * i + 1];
    v[i] = NUM(fma)(a, c, -(b * s)) * (REAL)scale;
    v[i + pairs] = NUM(fma)(a, s, b * c) * (REAL)scale;
  }
}

static void REAL_FN(kv_store)(kv_head *kv, int64_t position, const void *k, const void *v, int64_t head_dim) {
  int64_t chunk = position / ATTENTION_CHUNK, j = position % ATTENTION_CHUNK;
  for (int64_t d = 0; d < head_dim; d++) {
    REAL key = ((const REAL *)k)[d], value = ((const REAL *)v)[d];
    int64_t at = (chunk * head_dim + d) * ATTENTION_CHUNK + j;
    switch (kv->storage) {
    case KV_HALF:
      ((uint16_t *)kv->keys)[at] = f32_to_half((float)key);
      ((uint16_t *)kv->values)[position * head_dim + d] = f32_to_half((float)value);
      break;
    case KV_REAL:
      ((REAL *)kv->keys)[at] = key;
      ((REAL *)kv->values)[position * head_dim + d] = value;
      break;
    }
  }
}

// The cache's numbers from `at` on as reals: in place, or widened into scratch.
static const REAL *REAL_FN(kv_read)(const kv_head *kv, const void *cache, int64_t at, int64_t n,
                                    REAL *scratch) {
  switch (kv->storage) {
  case KV_HALF:
    for (int64_t i = 0; i < n; i++) scratch[i] = (REAL)half_to_f32(((const uint16_t *)cache)[at + i]);
    return scratch;
  case KV_REAL:
    break;
  }
  return (const REAL *)cache + at;
}

// Scores of one chunk's keys to weights relative to the chunk's maximum. Returns their sum.
static REAL REAL_FN(chunk_weights)(REAL *score, int64_t n, REAL *max_out) {
  REAL max = score[0], lane[LANES] = {0};
  for (int64_t j = 1; j < n; j++) max = score[j] > max ? score[j] : max;
  for (int64_t j = 0; j < n; j++) {
    score[j] = NUM(exp)(score[j] - max);
    lane[j % LANES] = lane[j % LANES] + score[j];
  }
  *max_out = max;
  return NUM(tree)(lane);
}

// Folds a chunk (max, sum, out) into the running ones, both relative to the greater maximum.
static void REAL_FN(chunk_fold)(REAL *run_max, REAL *run_sum, REAL *run, REAL max, REAL sum, const REAL *out,
                                int64_t head_dim) {
  REAL both = *run_max > max ? *run_max : max;
  REAL old = NUM(exp)(*run_max - both), fresh = NUM(exp)(max - both);
  *run_sum = NUM(fma)(sum, fresh, *run_sum * old);
  for (int64_t d = 0; d < head_dim; d++) run[d] = NUM(fma)(out[d], fresh, run[d] * old);
  *run_max = both;
}

static void REAL_FN(attend)(void *result, const void *q, const kv_head *kv, int64_t n_keys, int64_t head_dim,
                            void *scratch) {
  REAL *run = (REAL *)result, *wide = (REAL *)scratch;
  REAL *score = wide + ATTENTION_CHUNK * head_dim, *out = score + ATTENTION_CHUNK;
  REAL run_max = 0, run_sum = 0;
  for (int64_t first = 0; first < n_keys; first += ATTENTION_CHUNK) {
    int64_t n = n_keys - first < ATTENTION_CHUNK ? n_keys - first : ATTENTION_CHUNK;
    const REAL *k = REAL_FN(kv_read)(kv, kv->keys, first * head_dim, ATTENTION_CHUNK * head_dim, wide);
    for (int64_t j = 0; j < n; j++) score[j] = 0;
    for (int64_t d = 0; d < head_dim; d++)
      for (int64_t j = 0; j < n; j++)
        score[j] = NUM(fma)(((const REAL *)q)[d], k[d * ATTENTION_CHUNK + j], score[j]);
    REAL max, sum = REAL_FN(chunk_weights)(score, n, &max);
    const REAL *v = REAL_FN(kv_read)(kv, kv->values, first * head_dim, n * head_dim, wide);
    REAL *into = first ? out : run;
    for (int64_t d = 0; d < head_dim; d++) into[d] = 0;
    for (int64_t j = 0; j < n; j++)
      for (int64_t d = 0; d < head_dim; d++) into[d] = NUM(fma)(score[j], v[j * head_dim + d], into[d]);
    if (first) {
      REAL_FN(chunk_fold)(&run_max, &run_sum, run, max, sum, out, head_dim);
    } else {
      run_max = max;
      run_sum = sum;
    }
  }
  REAL inverse = (REAL)1 / run_sum;
  for (int64_t d = 0; d < head_dim; d++) run[d] = run[d] * inverse;
}

static void REAL_FN(route)(expert_global *expert, void *weight, double *margin, void *logits, int64_t n,
                           int64_t k) {
  REAL *p = (REAL *)logits, *w = (REAL *)weight, max = p[0], sum = 0;
  double all = 0;
  for (int64_t e = 1; e < n; e++) max = p[e] > max ? p[e] : max;
  for (int64_t e = 0; e < n; e++) {
    p[e] = NUM(exp)(p[e] - max);
    all += (double)p[e];
  }
  REAL last = 0;
  for (int64_t slot = 0; slot <= k; slot++) { // one more than k, for the margin
    int64_t best = -1;
    for (int64_t e = 0; e < n; e++)
      if (p[e] >= 0 && (best < 0 || p[e] > p[best])) best = e;
    REAL found = best < 0 ? 0 : p[best];
    if (slot == k) {
      *margin = best < 0 ? 1.0 : ((double)last - (double)found) / all;
      break;
    }
    if (best < 0) // only when logits are not finite: still a valid choice, whose logits are refused later
      for (best = 0; p[best] < 0;) best++;
    expert[slot] = (expert_global){(int32_t)best};
    w[slot] = found;
    sum = sum + found;
    p[best] = -1; // chosen
    last = found;
  }
  for (int64_t slot = 0; slot < k; slot++) w[slot] = w[slot] / sum;
}

static void REAL_FN(swiglu)(void *gate, const void *up, int64_t n) {
  for (int64_t i = 0; i < n; i++) ((REAL *)gate)[i] = NUM(silu)(((REAL *)gate)[i]) * ((const REAL *)up)[i];
}

static void REAL_FN(add)(void *x, const void *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) ((REAL *)x)[i] = ((REAL *)x)[i] + ((const REAL *)y)[i];
}

static void REAL_FN(combine)(void *x, const void *const *slot, const void *weight, int64_t k, int64_t n) {
  const REAL *w = (const REAL *)weight;
  for (int64_t i = 0; i < n; i++) {
    REAL sum = w[0] * ((const REAL *)slot[0])[i];
    for (int64_t s = 1; s < k; s++) sum = NUM(fma)(w[s], ((const REAL *)slot[s])[i], sum);
    ((REAL *)x)[i] = ((REAL *)x)[i] + sum;
  }
}

static const real_ops REAL_FN(ops) = {
    .bytes = sizeof(REAL),
    .embed = REAL_FN(embed),
    .rms_norm = REAL_FN(rms_norm),
    .rope = REAL_FN(rope),
    .rope_table = REAL_FN(rope_table),
    .kv_store = REAL_FN(kv_store),
    .attend = REAL_FN(attend),
    .route = REAL_FN(route),
    .swiglu = REAL_FN(swiglu),
    .add = REAL_FN(add),
    .combine = REAL_FN(combine),
    .product = REAL_FN(product),
};
