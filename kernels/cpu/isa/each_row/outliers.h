// outliers: what the path q8k_split does beyond q8k, in plain C for each ISA row: it takes the outliers of a
// block out before the rest is rounded, and adds the sum of their terms to a product. A part of generic.h.
//
// Owns: the criterion and the order of the terms. Invariant: a row of activations without an outlier has the
// bits of q8k.

// ---- the criterion ----

// Whether any element is an outlier: whether at most MOST_OUTLIERS are within the ratio of the largest. The
// usual answer is no, and vectors of the compiler's give it.
static inline bool has_outliers(const float *x) {
  enum { AT_ONCE = 16 };
  float most = 0, lane[AT_ONCE] = {0};
  int within = 0;
  for (int i = 0; i < QK_K; i += AT_ONCE)
    for (int l = 0; l < AT_ONCE; l++) {
      float m = __builtin_fabsf(x[i + l]);
      lane[l] = m > lane[l] ? m : lane[l];
    }
  for (int l = 0; l < AT_ONCE; l++) most = lane[l] > most ? lane[l] : most;
  for (int i = 0; i < QK_K; i++) within += OUTLIER_RATIO * __builtin_fabsf(x[i]) >= most;
  return within <= MOST_OUTLIERS;
}

// The magnitude of rank MOST_OUTLIERS + 1.
static inline float ordinary_magnitude(const float *x) {
  float top[MOST_OUTLIERS + 1] = {0}; // descending
  for (int i = 0; i < QK_K; i++) {
    float m = __builtin_fabsf(x[i]);
    int at = MOST_OUTLIERS;
    if (!(m > top[at])) continue;
    for (; at > 0 && m > top[at - 1]; at--) top[at] = top[at - 1];
    top[at] = m;
  }
  return top[MOST_OUTLIERS];
}

// The outliers of x, and the rest with zeros in their places.
static inline void take_outliers(block_outliers *out, float *rest, const float *x) {
  float limit = OUTLIER_RATIO * ordinary_magnitude(x);
  *out = (block_outliers){.count = 0};
  for (int i = 0; i < QK_K; i++) {
    bool is_out = __builtin_fabsf(x[i]) > limit;
    rest[i] = is_out ? 0 : x[i];
    if (!is_out) continue;
    out->at[out->count] = (uint8_t)i;
    out->x[out->count++] = x[i];
  }
}

typedef void quantize_q8k(block_q8_K *out, const float *x, int64_t n);

static inline void split_q8k_with(quantize_q8k *quantize, block_q8_K *out, const float *x, int64_t n) {
  int64_t n_blocks = n / QK_K;
  block_outliers *outliers = (block_outliers *)(void *)(out + n_blocks);
  for (int64_t b = 0; b < n_blocks; b++, x += QK_K) {
    float rest[QK_K];
    bool splits = has_outliers(x);
    outliers[b].count = 0;
    if (splits) take_outliers(&outliers[b], rest, x);
    quantize(out + b, splits ? rest : x, QK_K);
  }
}

static inline void split_q8k_generic(block_q8_K *out, const float *x, int64_t n) {
  split_q8k_with(quantize_q8k_generic, out, x, n);
}

// ---- the terms ----

// Weight i of a block, as dequantize.h has it.
static inline float weight_q4k(const block_q4_K *w, int i) {
  int scale, min, q = w->qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
  block_scale_min(&scale, &min, w->scales, i / 32);
  return half_to_f32(w->d) * (float)scale * (float)q - half_to_f32(w->dmin) * (float)min;
}

static inline float weight_q5k(const block_q5_K *w, int i) {
  int scale, min,
      q = (w->qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15) | (w->qh[i % 32] >> i / 32 & 1) << 4;
  block_scale_min(&scale, &min, w->scales, i / 32);
  return half_to_f32(w->d) * (float)scale * (float)q - half_to_f32(w->dmin) * (float)min;
}

static inline float weight_q6k(const block_q6_K *w, int i) {
  int half = i / 128, group = i / 32 % 4, l = i % 32;
  int low = w->ql[half * 64 + group % 2 * 32 + l] >> (group / 2 * 4) & 15;
  int high = w->qh[half * 32 + l] >> (group * 2) & 3;
  return half_to_f32(w->d) * (float)w->scales[i / 16] * (float)((low | high << 4) - 32);
}

// Weight `at` of `n` rows, and zeros up to ROW_TILE.
static inline void weight_column(float w[ROW_TILE], weight_type type, const char *rows, size_t row_bytes,
                                 int64_t n, int64_t at) {
  int i = (int)(at % QK_K);
  rows += (size_t)(at / QK_K) * type_find(type)->bytes;
  for (int64_t r = 0; r < ROW_TILE; r++, rows += row_bytes) {
    w[r] = 0;
    if (r >= n) continue;
    switch (type) {
    case TYPE_Q4_K:
      w[r] = weight_q4k((const block_q4_K *)(const void *)rows, i);
      break;
    case TYPE_Q5_K:
      w[r] = weight_q5k((const block_q5_K *)(const void *)rows, i);
      break;
    case TYPE_Q6_K:
      w[r] = weight_q6k((const block_q6_K *)(const void *)rows, i);
      break;
      CASES_WITHOUT_Q8K
      __builtin_trap(); // the arm was refused
    }
  }
}

enum { CACHED_COLUMNS = 64 }; // outlier channels are the same for most tokens

typedef struct { // columns of up to ROW_TILE rows
  int64_t at[CACHED_COLUMNS];
  float w[CACHED_COLUMNS][ROW_TILE];
} column_cache;

static inline int64_t outliers_count(const block_outliers *o, int64_t n_blocks) {
  int64_t count = 0;
  for (int64_t b = 0; b < n_blocks; b++) count += o[b].count;
  return count;
}

// z[r] = the sum over a token's outliers, ascending.
static inline void outlier_sums(float z[ROW_TILE], column_cache *c, const matrix *rows, const char *data,
                                size_t row_bytes, int64_t n, const block_outliers *o) {
  for (int r = 0; r < ROW_TILE; r++) z[r] = 0;
  for (int64_t b = 0; b < rows->cols / QK_K; b++)
    for (int k = 0; k < o[b].count; k++) {
      int64_t at = b * QK_K + o[b].at[k], place = at % CACHED_COLUMNS;
      float *w = c->w[place], x = o[b].x[k];
      if (c->at[place] != at) weight_column(w, rows->type, data, row_bytes, n, at);
      c->at[place] = at;
      for (int r = 0; r < ROW_TILE; r++) z[r] = num_fma_f32(w[r], x, z[r]);
    }
}

static inline void add_outliers_generic(float *const *out, const matrix *rows, const block_q8_K *const *x,
                                        int64_t n_tokens) {
  size_t row_bytes = type_row_bytes(type_find(rows->type), (size_t)rows->cols);
  int64_t n_blocks = rows->cols / QK_K;
  for (int64_t first = 0; first < rows->rows; first += ROW_TILE) {
    const char *data = (const char *)rows->data + (size_t)first * row_bytes;
    int64_t n = rows->rows - first < ROW_TILE ? rows->rows - first : ROW_TILE;
    column_cache columns;
    memset(columns.at, 0xff, sizeof columns.at);
    for (int64_t t = 0; t < n_tokens; t++) {
      const block_outliers *o = row_outliers(x[t], n_blocks);
      float z[ROW_TILE];
      if (!outliers_count(o, n_blocks)) continue;
      outlier_sums(z, &columns, rows, data, row_bytes, n, o);
      for (int64_t r = 0; r < n; r++) out[t][first + r] = out[t][first + r] + z[r];
    }
  }
}
