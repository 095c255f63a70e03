#include "src/synth/synth_layout.h"
#include "base/memory.h"
#include "kernels/formats/numerics.h"
#include "src/model/qwen3moe.h"
#include "src/model/type_counts.h"
#include "src/synth/synth_header.h"
#include <stdlib.h>
#include <string.h>

// A planted channel stands out where it is written, and far more in what the products read: its norm weight
// takes an embedding at synth_loud_level to 146.68, as loud as the one of a trained 30B model that spoilt its
// block of 256. The rows that add to it are loud too, so that it still stands out when 48 layers have been
// added.
static const double loud_normed = 146.68;
static const double loud_written = 2;

// ---- how a tensor is filled ----

static double over_root(double x, int64_t n) {
  return x / __builtin_sqrt((double)n);
}

static synth_recipe norm_vector(double mean, double loud) {
  return (synth_recipe){.mean = mean, .std = 0.15 * mean, .loud_norm = loud};
}

static synth_recipe weights(double std, double row_spread, synth_columns columns) {
  return (synth_recipe){.std = std, .row_spread = row_spread, .columns = columns};
}

static synth_recipe loud_rows(double std) {
  return (synth_recipe){.std = std, .row_spread = 0.25, .loud_rows = loud_written};
}

// Products of a normed input have a mean square of 1, of the router 1.5^2; queries and keys of 1.5 make
// attention as sharp as a trained model's; logits' standard deviation is 3; a layer adds to the residual
// stream a small part of what the embedding put there, which is `stream`. A tied head reads the planted
// channels as loud as the embedding has them, so their norm stays as it is.
static synth_recipe recipe_of(tensor_id id, int64_t cols, const synth_model *m) {
  double loud = loud_normed / synth_loud_level, logit = over_root(3, m->settings.shape.hidden);
  double stream = m->tied ? logit : 1;
  switch (id) {
  case TENSOR_TOKEN_EMBD:
    return weights(stream, 0.1, COLUMNS_LOUD);
  case TENSOR_ATTN_NORM:
  case TENSOR_FFN_NORM:
    return norm_vector(1, loud);
  case TENSOR_ATTN_Q:
  case TENSOR_ATTN_K:
  case TENSOR_ATTN_V:
  case TENSOR_FFN_GATE_EXPS:
  case TENSOR_FFN_UP_EXPS:
    return weights(over_root(1, cols), 0.25, COLUMNS_QUIET);
  case TENSOR_ATTN_Q_NORM:
  case TENSOR_ATTN_K_NORM:
    return norm_vector(1.5, 1);
  case TENSOR_ATTN_OUTPUT:
    return loud_rows(over_root(0.2 * stream, cols));
  case TENSOR_FFN_GATE_INP:
    return weights(1.5 * over_root(1, cols), 0.2, COLUMNS_QUIET);
  case TENSOR_FFN_DOWN_EXPS:
    return loud_rows(over_root(0.35 * stream, cols));
  case TENSOR_OUTPUT_NORM:
    return norm_vector(1, m->tied ? 1 : loud);
  case TENSOR_OUTPUT:
    return weights(logit, 0.1, COLUMNS_QUIET);
  }
  abort(); // no tensor of the enum
}

// ---- tensors ----

static uint64_t key_of(const synth_model *m, const char *name) {
  uint64_t key = synth_random((uint64_t)m->seed, 0);
  for (const char *c = name; *c; c++)
    key = num_mix64(key ^ (uint64_t)(unsigned char)*c) + 0x9e3779b97f4a7c15u;
  return key;
}

static void fill_tensor(synth_tensor *t, const synth_layout *l, const synth_model *m, const tensor_row *row,
                        int64_t layer) {
  tensor_row_name(t->name, row, layer);
  t->n_dims = tensor_row_dims(row);
  for (int d = 0; d < TENSOR_DIMS; d++) t->dim[d] = tensor_row_dim(row, d, &m->settings.shape);
  synth_recipe *r = &t->recipe;
  *r = recipe_of(row->id, t->dim[0], m);
  r->key = key_of(m, t->name);
  r->type = synth_type(m, row, layer);
  r->cols = t->dim[0];
  r->rows = t->dim[1];
  r->channels = l->channels;
  r->n_channels = m->outliers;
  if (!m->outliers) r->columns = COLUMNS_PLAIN;
  if (!r->loud_rows || !m->outliers) r->loud_rows = 1;
  if (!r->loud_norm || !m->outliers) r->loud_norm = 1;
  t->rows = t->dim[1] * t->dim[2];
  t->row_bytes = type_row_bytes(type_find((uint32_t)r->type), (size_t)t->dim[0]);
}

static status fill_tensors(synth_layout *l, const architecture *a, const synth_model *m) {
  int64_t layer, n_layers = m->settings.shape.n_layers;
  size_t count = architecture_tensor_count(a, n_layers);
  TRY(TAKE(&l->tensors, count, "the tensors' table"));
  for (size_t i = 0; i < count; i++) {
    const tensor_row *row = architecture_tensor_at(&layer, a, n_layers, i);
    if (!(row->tied && m->tied)) fill_tensor(&l->tensors[l->n_tensors++], l, m, row, layer);
  }
  return 0;
}

static status plant_channels(synth_layout *l, const synth_model *m) {
  TRY(TAKE(&l->channels, (size_t)m->outliers, "planted channels"));
  uint64_t key = synth_random((uint64_t)m->seed, 1);
  for (int64_t n = 0, tries = 0; n < m->outliers; tries++) {
    int64_t channel = (int64_t)(synth_random(key, (uint64_t)tries) % (uint64_t)m->settings.shape.hidden);
    bool is_new = true;
    for (int64_t i = 0; i < n; i++) is_new = is_new && l->channels[i] != channel;
    if (is_new) l->channels[n++] = channel;
  }
  return 0;
}

static status place_tensors(synth_layout *l) {
  uint64_t at = 0;
  for (size_t i = 0; i < l->n_tensors; i++) {
    synth_tensor *t = &l->tensors[i];
    uint64_t bytes, end;
    t->offset = at;
    if (__builtin_mul_overflow((uint64_t)t->rows, t->row_bytes, &bytes) ||
        __builtin_add_overflow(at, bytes, &end) || end > (uint64_t)1 << 60)
      return REFUSE("synth: a model of this shape is larger than any file can be");
    at = (end + SYNTH_ALIGNMENT - 1) / SYNTH_ALIGNMENT * SYNTH_ALIGNMENT;
  }
  l->file_bytes = at;
  return 0;
}

status synth_layout_open(synth_layout *out, const synth_model *m) {
  *out = (synth_layout){.n_tensors = 0};
  status result;
  TRY_DONE(result, plant_channels(out, m));
  TRY_DONE(result, fill_tensors(out, &qwen3moe, m));
  TRY_DONE(result, place_tensors(out));
  TRY_DONE(result,
           synth_header(&out->header, &out->header_bytes, &qwen3moe, m, out->tensors, out->n_tensors));
  out->file_bytes += out->header_bytes;
done:
  if (result) synth_layout_close(out);
  return result;
}

void synth_layout_close(synth_layout *l) {
  free(l->tensors);
  free(l->channels);
  free(l->header);
  *l = (synth_layout){.n_tensors = 0};
}

void synth_layout_types(char *out, size_t size, const synth_layout *l) {
  type_counts types = {.n = 0};
  for (size_t i = 0; i < l->n_tensors; i++)
    type_counts_add(&types, type_find((uint32_t)l->tensors[i].recipe.type));
  type_counts_text(out, size, &types);
}
