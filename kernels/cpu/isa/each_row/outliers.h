// outliers: what the path q8k_split does beyond q8k, in plain C for each ISA row: it takes the outliers of a
// block out before the rest is rounded, and adds the sum of the outliers' terms to a product. A part of
// generic.h.
//
// Owns: the criterion and the order of the terms. Invariant: a row of activations without an
// outlier has the bits of q8k.

// ---- the criterion ----

// Whether any element is an outlier, which is rare: whether the largest is above the limits that all but the
// MOST_OUTLIERS largest would set.
static inline bool has_outliers_generic(const float *x) {
  enum { AT_ONCE = 16 }; // lanes that the compiler makes vectors of
  float most = 0, lane[AT_ONCE] = {0};
  int within = 0;
  for (int i = 0; i < QK_K; i += AT_ONCE)
    for (int l = 0; l < AT_ONCE; l++) {
      float m = __builtin_fabsf(x[i + l]);
      lane[l] = m > lane[l] ? m : lane[l];
    }
  for (int l = 0; l < AT_ONCE; l++) most = lane[l] > most ? lane[l] : most;
  for (int i = 0; i < QK_K; i++) within += num_outlier_limit(__builtin_fabsf(x[i])) >= most;
  return within <= MOST_OUTLIERS;
}

// The magnitude of rank MOST_OUTLIERS + 1.
static inline float ordinary_magnitude_generic(const float *x) {
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

// Appends the outliers of x, whose first element is `first` of its row; rest: x with zeros in their places.
static inline void take_outliers_generic(row_outliers *out, float *rest, const float *x, int64_t first) {
  float limit = num_outlier_limit(ordinary_magnitude_generic(x));
  for (int i = 0; i < QK_K; i++) {
    bool is_out = __builtin_fabsf(x[i]) > limit;
    rest[i] = is_out ? 0 : x[i];
    if (is_out) out->of[out->count++] = (outlier){(int32_t)(first + i), x[i]};
  }
}

typedef void take_function(row_outliers *out, float *rest, const float *x, int64_t first);

static inline void split_q8k_with(bool (*has_outliers)(const float *x), take_function *take,
                                  void (*quantize)(block_q8_K *out, const float *x, int64_t n),
                                  block_q8_K *out, const float *x, int64_t n) {
  row_outliers *outliers = (row_outliers *)(void *)(out + n / QK_K);
  outliers->count = 0;
  for (int64_t at = 0; at < n; at += QK_K, out++) {
    float rest[QK_K];
    bool splits = has_outliers(x + at);
    if (splits) take(outliers, rest, x + at, at);
    quantize(out, splits ? rest : x + at, QK_K);
  }
}

static inline void split_q8k_generic(block_q8_K *out, const float *x, int64_t n) {
  split_q8k_with(has_outliers_generic, take_outliers_generic, quantize_q8k_generic, out, x, n);
}

// ---- a column of weights, which are those of dequantize.h ----

typedef struct { // of one weight in each of ROW_TILE rows: w = d * scale * q - dmin * min
  uint16_t d[ROW_TILE], dmin[ROW_TILE];
  int8_t scale[ROW_TILE], min[ROW_TILE], q[ROW_TILE];
} column_parts;

// Weight i of a block; fifth: the fifth bits of Q5_K's quants; NULL: Q4_K.
static inline void parts_with_min(column_parts *p, int64_t r, uint16_t d, uint16_t dmin,
                                  const uint8_t *scales, const uint8_t *qs, const uint8_t *fifth, int i) {
  int scale, min;
  block_scale_min(&scale, &min, scales, i / 32);
  p->d[r] = d;
  p->dmin[r] = dmin;
  p->scale[r] = (int8_t)scale;
  p->min[r] = (int8_t)min;
  p->q[r] = (int8_t)((qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15) |
                     (fifth ? (fifth[i % 32] >> i / 32 & 1) << 4 : 0));
}

static inline void parts_q4k(column_parts *p, int64_t r, const void *block, int i) {
  const block_q4_K *w = (const block_q4_K *)block;
  parts_with_min(p, r, w->d, w->dmin, w->scales, w->qs, NULL, i);
}

static inline void parts_q5k(column_parts *p, int64_t r, const void *block, int i) {
  const block_q5_K *w = (const block_q5_K *)block;
  parts_with_min(p, r, w->d, w->dmin, w->scales, w->qs, w->qh, i);
}

static inline void parts_q6k(column_parts *p, int64_t r, const void *block, int i) {
  const block_q6_K *w = (const block_q6_K *)block;
  int half = i / 128, group = i / 32 % 4, l = i % 32;
  int low = w->ql[half * 64 + group % 2 * 32 + l] >> (group / 2 * 4) & 15;
  int high = w->qh[half * 32 + l] >> (group * 2) & 3;
  p->d[r] = w->d;
  p->scale[r] = w->scales[i / 16];
  p->q[r] = (int8_t)((low | high << 4) - 32);
}

static inline void weight_column_generic(float w[ROW_TILE], weight_type type, const char *rows,
                                         size_t row_bytes, int64_t n, int64_t at) {
  column_parts p = {0};
  int i = (int)(at % QK_K);
  rows += (size_t)(at / QK_K) * type_find(type)->bytes;
  switch (type) {
  case TYPE_Q4_K:
    for (int64_t r = 0; r < n; r++) parts_q4k(&p, r, rows + (size_t)r * row_bytes, i);
    break;
  case TYPE_Q5_K:
    for (int64_t r = 0; r < n; r++) parts_q5k(&p, r, rows + (size_t)r * row_bytes, i);
    break;
  case TYPE_Q6_K:
    for (int64_t r = 0; r < n; r++) parts_q6k(&p, r, rows + (size_t)r * row_bytes, i);
    break;
    CASES_WITHOUT_Q8K
    __builtin_trap(); // the arm was refused
  }
  for (int64_t r = 0; r < ROW_TILE; r++) {
    float step = half_to_f32(p.d[r]) * (float)p.scale[r];
    w[r] = step * (float)p.q[r];
  }
  if (!block_has_minimums(type)) return;
  for (int64_t r = 0; r < ROW_TILE; r++) w[r] = w[r] - half_to_f32(p.dmin[r]) * (float)p.min[r];
}

// ---- the terms ----

enum { CACHED_COLUMNS = 64 }; // outlier channels are the same for most tokens

typedef struct { // columns of up to ROW_TILE rows
  int32_t at[CACHED_COLUMNS];
  float w[CACHED_COLUMNS][ROW_TILE];
} column_cache;

// Weight `at` of n rows, at most ROW_TILE, whose places beyond n are of no meaning.
typedef void column_function(float w[ROW_TILE], weight_type type, const char *rows, size_t row_bytes,
                             int64_t n, int64_t at);

// z[r] = the sum over a token's outliers, ascending.
static inline void outlier_sums(float z[ROW_TILE], column_cache *c, column_function *column, weight_type type,
                                const char *rows, size_t row_bytes, int64_t n, const row_outliers *outliers) {
  for (int r = 0; r < ROW_TILE; r++) z[r] = 0;
  for (int32_t k = 0; k < outliers->count; k++) {
    int32_t at = outliers->of[k].at, place = at % CACHED_COLUMNS;
    float *w = c->w[place], x = outliers->of[k].x;
    if (c->at[place] != at) column(w, type, rows, row_bytes, n, at);
    c->at[place] = at;
    for (int r = 0; r < ROW_TILE; r++) z[r] = num_fma_f32(w[r], x, z[r]);
  }
}

static inline void add_outliers_with(column_function *column, float *const *out, const matrix *rows,
                                     const block_q8_K *const *x, int64_t n_tokens) {
  size_t row_bytes = type_row_bytes(type_find(rows->type), (size_t)rows->cols);
  for (int64_t first = 0; first < rows->rows; first += ROW_TILE) {
    const char *data = (const char *)rows->data + (size_t)first * row_bytes;
    int64_t n = rows->rows - first < ROW_TILE ? rows->rows - first : ROW_TILE;
    column_cache columns;
    bool is_empty = true; // its `at` is not set yet
    for (int64_t t = 0; t < n_tokens; t++) {
      const row_outliers *outliers = outliers_of(x[t], rows->cols / QK_K);
      float z[ROW_TILE];
      if (!outliers->count) continue;
      if (is_empty) memset(columns.at, 0xff, sizeof columns.at);
      is_empty = false;
      outlier_sums(z, &columns, column, rows->type, data, row_bytes, n, outliers);
      for (int64_t r = 0; r < n; r++) out[t][first + r] = out[t][first + r] + z[r];
    }
  }
}

static inline void add_outliers_generic(float *const *out, const matrix *rows, const block_q8_K *const *x,
                                        int64_t n_tokens) {
  add_outliers_with(weight_column_generic, out, rows, x, n_tokens);
}

// Of a type of few bits, a whole block for each weight: few are asked for, and most are cached.
static inline void weight_column_few_bits(float w[ROW_TILE], weight_type type, const char *rows,
                                          size_t row_bytes, int64_t n, int64_t at) {
  float block[QK_K] = {0}; // (a compiler does not see that dequantize fills it)
  const type_info *t = type_find(type);
  int64_t elements = (int64_t)t->elements;
  rows += (size_t)(at / elements) * t->bytes;
  for (int64_t r = 0; r < ROW_TILE; r++) w[r] = 0;
  for (int64_t r = 0; r < n; r++) {
    dequantize(block, type, rows + (size_t)r * row_bytes, t->elements);
    w[r] = block[at % elements];
  }
}

static inline void add_outliers_few_bits(float *const *out, const matrix *rows, const block_q8_K *const *x,
                                         int64_t n_tokens) {
  add_outliers_with(weight_column_few_bits, out, rows, x, n_tokens);
}
