#include "src/lab/product_operations.h"
#include "base/memory.h"
#include "src/lab/activation_rounding.h"
#include "src/lab/product_backend.h"
#include "src/lab/quants.h"
#include "kernels/formats/half.h"
#include "kernels/formats/numerics.h"
#include <stdlib.h>
#include <string.h>

// ---- the axes ----

static const char *const AXES[PRODUCT_AXES] = {
    [AXIS_ACTIVATIONS] = "activation rounding",
    [AXIS_WEIGHTS] = "weight type",
    [AXIS_INNER] = "inner loop",
    [AXIS_ORDER] = "sum order",
    [AXIS_WHERE] = "backend",
};

static const char *const ACTIVATIONS[] = {
    [ACTIVATIONS_F32] = "f32",
    [ACTIVATIONS_F16] = "f16",
    [ACTIVATIONS_Q8_K] = "Q8_K",
    [ACTIVATIONS_Q8_K_ABSMAX] = "Q8_K by absmax",
    [ACTIVATIONS_Q8_K_SPLIT] = "Q8_K without outliers",
    [ACTIVATIONS_Q8_1] = "Q8_1",
};
static const char *const WEIGHTS[] = {[WEIGHTS_F32] = "as stored", [WEIGHTS_F16] = "rounded to f16"};
static const char *const INNERS[] = {
    [INNER_FLOAT] = "floats", [INNER_INTEGER] = "integers", [INNER_DOUBLE] = "doubles"};
static const char *const ORDERS[] = {
    [ORDER_ASCENDING] = "ascending",
    [ORDER_LANES] = "32 lanes and a tree",
    [ORDER_PAIRWISE] = "pairwise",
    [ORDER_SHUFFLED] = "shuffled",
};
static const char *const PLACES[] = {[WHERE_HERE] = "plain C", [WHERE_CPU] = "cpu", [WHERE_CUDA] = "cuda"};

const char *product_axis_name(product_axis axis) {
  return AXES[axis];
}

const char *product_axis_value(product_axis axis, int value) {
  static const char *const *const values[PRODUCT_AXES] = {
      [AXIS_ACTIVATIONS] = ACTIVATIONS,
      [AXIS_WEIGHTS] = WEIGHTS,
      [AXIS_INNER] = INNERS,
      [AXIS_ORDER] = ORDERS,
      [AXIS_WHERE] = PLACES,
  };
  return values[axis][value];
}

// ---- the table ----

#define OPERATION(activations, weights, inner, order, where)                                                 \
  { {ACTIVATIONS_##activations, WEIGHTS_##weights, INNER_##inner, ORDER_##order, WHERE_##where}, 0 }

static const product_row TABLE[] = {
    {"f64", "the truth: doubles, nothing rounded", OPERATION(F32, F32, DOUBLE, ASCENDING, HERE)},
    {"q8k@cpu", "the path q8k: integers, activations in Q8_K as ggml rounds them",
     OPERATION(Q8_K, F32, INTEGER, ASCENDING, CPU)},
    {"q8k@cuda", "the same on a GPU", OPERATION(Q8_K, F32, INTEGER, ASCENDING, CUDA)},
    {"q8k_split@cpu",
     "the path q8k_split, as experts take it: outliers of the activations in floats, the rest as q8k",
     OPERATION(Q8_K_SPLIT, F32, INTEGER, ASCENDING, CPU)},
    {"q8k_split@cuda", "the same on a GPU", OPERATION(Q8_K_SPLIT, F32, INTEGER, ASCENDING, CUDA)},
    {"q8k_absmax", "integers, activations rounded as in the known case: max|x| / 127, half away from zero",
     OPERATION(Q8_K_ABSMAX, F32, INTEGER, ASCENDING, HERE)},
    {"q8_1", "integers, activations in Q8_1 as ggml's CUDA products take them",
     OPERATION(Q8_1, F32, INTEGER, ASCENDING, HERE)},
    {"f16", "weights and activations rounded to f16, sums in floats",
     OPERATION(F16, F16, FLOAT, ASCENDING, HERE)},
    {"dequantise", "dequantised weights, a plain sum in floats", OPERATION(F32, F32, FLOAT, ASCENDING, HERE)},
    {"f32@cpu", "the path f32: dequantised weights, sum32", OPERATION(F32, F32, FLOAT, LANES, CPU)},
    {"f32@cuda", "the same on a GPU", OPERATION(F32, F32, FLOAT, LANES, CUDA)},
};

const product_row *product_table(size_t *count) {
  *count = sizeof TABLE / sizeof *TABLE;
  return TABLE;
}

const product_row *product_find(const char *name) {
  for (size_t i = 0; i < sizeof TABLE / sizeof *TABLE; i++)
    if (!strcmp(TABLE[i].name, name)) return &TABLE[i];
  return NULL;
}

// ---- what can be computed ----

// The path whose product the operation is, wherever that is computed; false: no path's.
static bool find_path(path_kind *out, const product_operation *o) {
  static const struct {
    path_kind path;
    product_operation operation;
  } paths[] = {
      {PATH_F64, OPERATION(F32, F32, DOUBLE, LANES, HERE)},
      {PATH_F32, OPERATION(F32, F32, FLOAT, LANES, HERE)},
      {PATH_Q8K, OPERATION(Q8_K, F32, INTEGER, ASCENDING, HERE)},
      {PATH_Q8K_SPLIT, OPERATION(Q8_K_SPLIT, F32, INTEGER, ASCENDING, HERE)},
  };
  for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
    *out = paths[i].path;
    if (!memcmp(paths[i].operation.at, o->at, sizeof(int) * AXIS_WHERE)) return true;
  }
  return false;
}

static bool backend_of(backend_kind *out, computed_where where) {
  switch (where) {
  case WHERE_HERE:
    return false;
  case WHERE_CPU:
    *out = BACKEND_CPU;
    return true;
  case WHERE_CUDA:
    *out = BACKEND_CUDA;
    return true;
  }
  __builtin_unreachable();
}

static const char *refusal_on_backend(const product_operation *o, const product_input *in,
                                      backend_kind where) {
  path_kind path;
  const char *absence = product_backend_absence(where);
  if (absence) return absence;
  if (!find_path(&path, o)) return "no path computes this, so no backend does";
  if (!backend_get(where)->has_path(path)) return "the backend lacks the path";
  bool rounds = path == PATH_Q8K || path == PATH_Q8K_SPLIT;
  if (rounds && !quants_has_type(in->weights.type))
    return "the path does not round before a product with this type of weights";
  return NULL;
}

const char *product_refusal(const product_operation *o, const product_input *in) {
  backend_kind where;
  int64_t block = activation_block(o->at[AXIS_ACTIVATIONS]);
  if (in->weights.cols % block) return "a row is no multiple of the activations' blocks";
  if (o->at[AXIS_INNER] == INNER_INTEGER) {
    if (block == 1) return "integers need rounded activations";
    if (!quants_has_type(in->weights.type)) return "integers need weights of a K-quant";
    if (o->at[AXIS_WEIGHTS] != WEIGHTS_F32) return "integers need the weights as stored";
  }
  return backend_of(&where, o->at[AXIS_WHERE]) ? refusal_on_backend(o, in, where) : NULL;
}

// ---- sums of terms ----

typedef struct {
  sum_order order;
  const int32_t *place; // [n] of ORDER_SHUFFLED
} summing;

static float sum_pairwise(const float *a, const float *b, int64_t n) {
  if (n == 1) return a[0] * b[0];
  if (n == 2) return a[0] * b[0] + a[1] * b[1];
  return sum_pairwise(a, b, n / 2) + sum_pairwise(a + n / 2, b + n / 2, n - n / 2);
}

static float sum_lanes(const float *a, const float *b, int64_t n) {
  float lane[LANES] = {0};
  for (int64_t i = 0; i < n; i++) lane[i % LANES] = num_fma_f32(a[i], b[i], lane[i % LANES]);
  return num_tree_f32(lane);
}

// The sum of a[i] * b[i].
static float sum_floats(const summing *s, const float *a, const float *b, int64_t n) {
  float sum = 0;
  switch (s->order) {
  case ORDER_ASCENDING:
    for (int64_t i = 0; i < n; i++) sum = sum + a[i] * b[i];
    return sum;
  case ORDER_LANES:
    return sum_lanes(a, b, n);
  case ORDER_PAIRWISE:
    return sum_pairwise(a, b, n);
  case ORDER_SHUFFLED:
    for (int64_t i = 0; i < n; i++) sum = sum + a[s->place[i]] * b[s->place[i]];
    return sum;
  }
  __builtin_unreachable();
}

static double sum_doubles(const summing *s, const float *a, const float *b, int64_t n) {
  double sum = 0, lane[LANES] = {0};
  switch (s->order) {
  case ORDER_LANES:
    for (int64_t i = 0; i < n; i++)
      lane[i % LANES] = num_fma_f64((double)a[i], (double)b[i], lane[i % LANES]);
    return num_tree_f64(lane);
  case ORDER_ASCENDING:
  case ORDER_PAIRWISE: // a double's rounding is far below what any order of floats changes
    for (int64_t i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
    return sum;
  case ORDER_SHUFFLED:
    for (int64_t i = 0; i < n; i++) sum += (double)a[s->place[i]] * (double)b[s->place[i]];
    return sum;
  }
  __builtin_unreachable();
}

static status open_order(int32_t **place, int64_t n, uint64_t seed) {
  TRY(TAKE(place, (size_t)n, "a shuffled order"));
  for (int64_t i = 0; i < n; i++) {
    int64_t j = (int64_t)(num_mix64(seed ^ num_mix64((uint64_t)i + 1)) % (uint64_t)(i + 1));
    (*place)[i] = (*place)[j];
    (*place)[j] = (int32_t)i;
  }
  return 0;
}

// ---- the inner loops ----

enum { ROWS_AT_ONCE = 16 }; // rows of weights that are unpacked together, and then meet each activation

typedef struct { // an unpacked row
  float *w;      // [cols]
  quants *q;     // [blocks]
} unpacked;

typedef struct {
  const product_input *in;
  const product_operation *o;
  summing sum;
  int32_t *place;
  unpacked row[ROWS_AT_ONCE];
  float *ones;   // [cols] of 1
  float *terms;  // [blocks] of integers
  rounded_row x; // one row of activations
} product_room;

static status room_open(product_room *r, const product_input *in, const product_operation *o) {
  size_t cols = (size_t)in->weights.cols, blocks = cols / QK_K + 1;
  bool by_blocks = o->at[AXIS_INNER] == INNER_INTEGER;
  *r = (product_room){.in = in, .o = o};
  TRY(open_order(&r->place, by_blocks ? (int64_t)cols / QK_K : (int64_t)cols, o->shuffle));
  r->sum = (summing){(sum_order)o->at[AXIS_ORDER], r->place};
  for (int i = 0; i < ROWS_AT_ONCE; i++) {
    TRY(TAKE(&r->row[i].w, cols, "a product"));
    TRY(TAKE(&r->row[i].q, blocks, "a product"));
  }
  TRY(TAKE(&r->ones, cols, "a product"));
  TRY(TAKE(&r->terms, blocks, "a product"));
  for (size_t i = 0; i < cols; i++) r->ones[i] = 1;
  return rounded_row_open(&r->x, in->weights.cols);
}

static void room_close(product_room *r) {
  for (int i = 0; i < ROWS_AT_ONCE; i++) {
    free(r->row[i].w);
    free(r->row[i].q);
  }
  free(r->place);
  free(r->ones);
  free(r->terms);
  rounded_row_close(&r->x);
}

// Terms of Q8_K blocks, as the path q8k has them: the integers become floats once a block. The path's chain
// is fma(dx, term, sum); other orders add the rounded products.
static float dot_q8k(const product_room *r, const quants *q, int64_t blocks) {
  float sum = 0;
  for (int64_t b = 0; b < blocks; b++) {
    const quants *w = &q[b];
    int32_t isum = quants_scaled_sum(w, r->x.q + b * QK_K), msum = quants_minimum_sum(w, r->x.q + b * QK_K);
    float term =
        w->has_minimums ? num_fma_f32(w->d, (float)isum, -(w->dmin * (float)msum)) : w->d * (float)isum;
    r->terms[b] = term;
    sum = num_fma_f32(r->x.d[b], term, sum);
  }
  return r->sum.order == ORDER_ASCENDING ? sum : sum_floats(&r->sum, r->x.d, r->terms, blocks);
}

// As ggml's CUDA products on Q8_1 (vec_dot_q4_K_q8_1_impl_mmq and its kin): in blocks of 32 the scale times
// an integer, and the minimum times the sum of the unrounded activations.
static float dot_q8_1(const product_room *r, const quants *q, int64_t blocks) {
  for (int64_t b = 0; b < blocks; b++) {
    const quants *w = &q[b];
    float scaled = 0, minimums = 0;
    for (int j = 0; j < QK_K / 32; j++) {
      int64_t at = b * (QK_K / 32) + j;
      scaled = scaled + r->x.d[at] * (float)quants_scaled_part(w, j, r->x.q + b * QK_K + j * 32);
      if (w->has_minimums) minimums = minimums + r->x.sum[at] * (float)w->min[j];
    }
    r->terms[b] = w->d * scaled - w->dmin * minimums;
  }
  return sum_floats(&r->sum, r->ones, r->terms, blocks);
}

// As the path q8k_split, which adds the sum of the outliers' terms, with the weights as floats.
static float dot_split(const product_room *r, const unpacked *row, int64_t blocks) {
  float sum = dot_q8k(r, row->q, blocks), z = 0;
  bool any = false;
  for (int64_t i = 0; i < blocks * QK_K; i++) {
    if (r->x.outlier[i] == 0) continue;
    z = num_fma_f32(row->w[i], r->x.outlier[i], z);
    any = true;
  }
  return any ? sum + z : sum;
}

static double dot_integers(const product_room *r, const unpacked *row) {
  int64_t blocks = r->in->weights.cols / QK_K;
  const quants *q = row->q;
  switch ((activation_rounding)r->o->at[AXIS_ACTIVATIONS]) {
  case ACTIVATIONS_Q8_K:
  case ACTIVATIONS_Q8_K_ABSMAX:
    return (double)dot_q8k(r, q, blocks);
  case ACTIVATIONS_Q8_K_SPLIT:
    return (double)dot_split(r, row, blocks);
  case ACTIVATIONS_Q8_1:
    return (double)dot_q8_1(r, q, blocks);
  case ACTIVATIONS_F32:
  case ACTIVATIONS_F16:
    break;
  }
  __builtin_trap(); // product_refusal names it
}

// What Q8_1 does to minimums: they meet the sum of the unrounded activations, so that much is added to the
// sum over rounded ones.
static double correct_minimums(const product_room *r, const quants *q) {
  double sum = 0;
  if (r->o->at[AXIS_ACTIVATIONS] != ACTIVATIONS_Q8_1 || !quants_has_type(r->in->weights.type)) return 0;
  for (int64_t at = 0; at < r->in->weights.cols / 32; at++) {
    const quants *w = &q[at / (QK_K / 32)];
    double rounded = 0;
    if (!w->has_minimums) return 0;
    for (int i = 0; i < 32; i++) rounded += (double)r->x.value[at * 32 + i];
    sum += (double)(w->dmin * (float)w->min[at % (QK_K / 32)]) * (rounded - (double)r->x.sum[at]);
  }
  return sum;
}

static double dot(const product_room *r, const unpacked *row) {
  int64_t cols = r->in->weights.cols;
  switch ((inner_loop)r->o->at[AXIS_INNER]) {
  case INNER_FLOAT:
    return (double)(float)((double)sum_floats(&r->sum, row->w, r->x.value, cols) +
                           correct_minimums(r, row->q));
  case INNER_INTEGER:
    return dot_integers(r, row);
  case INNER_DOUBLE:
    return sum_doubles(&r->sum, row->w, r->x.value, cols) + correct_minimums(r, row->q);
  }
  __builtin_unreachable();
}

static void unpack_row(product_room *r, unpacked *out, int64_t row) {
  const matrix *m = &r->in->weights;
  const void *data =
      (const char *)m->data + (size_t)row * type_row_bytes(type_find(m->type), (size_t)m->cols);
  dequantize_row(out->w, m->type, data, (size_t)m->cols);
  for (int64_t i = 0; i < m->cols && r->o->at[AXIS_WEIGHTS] == WEIGHTS_F16; i++)
    out->w[i] = half_to_f32(f32_to_half(out->w[i]));
  if (quants_has_type(m->type)) quants_unpack(out->q, m->type, data, m->cols);
}

static void compute_here(product_room *r, double *out) {
  const matrix *m = &r->in->weights;
  for (int64_t first = 0; first < m->rows; first += ROWS_AT_ONCE) {
    int64_t count = m->rows - first < ROWS_AT_ONCE ? m->rows - first : ROWS_AT_ONCE;
    for (int64_t i = 0; i < count; i++) unpack_row(r, &r->row[i], first + i);
    for (int64_t t = 0; t < r->in->n; t++) {
      round_row(&r->x, (activation_rounding)r->o->at[AXIS_ACTIVATIONS], r->in->x + t * m->cols);
      for (int64_t i = 0; i < count; i++) out[t * m->rows + first + i] = dot(r, &r->row[i]);
    }
  }
}

status product_compute(double *out, const product_input *in, const product_operation *o) {
  const char *refusal = product_refusal(o, in);
  backend_kind where;
  path_kind path;
  if (refusal) return FAIL("one product: %s", refusal);
  if (backend_of(&where, o->at[AXIS_WHERE]))
    return find_path(&path, o) ? product_backend_compute(out, in, path, where)
                               : FAIL("one product: no path computes this");
  product_room room;
  status result = room_open(&room, in, o);
  if (!result) compute_here(&room, out);
  room_close(&room);
  return result;
}
