#include "src/synth/synth_layout.h"
#include "base/memory.h"
#include "kernels/formats/numerics.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { GGUF_VERSION = 3, GGUF_ALIGNMENT = 32, GGUF_U32 = 4, GGUF_FLOAT32 = 6, GGUF_STRING = 8 };

static const double epsilon = 1e-6;

// A planted channel stands out where it is written, and far more in what the products read: its norm weight
// takes an embedding at synth_loud_level to 146.68, as loud as the one of a trained 30B model that spoilt its
// block of 256. The rows that add to it are loud too, so that it still stands out when 48 layers have been
// added.
static const double loud_normed = 146.68;
static const double loud_written = 2;

// ---- types ----

// The layers whose attn_v and ffn_down_exps have more bits in llama.cpp's *_K_M mixes (its use_more_bits).
static bool has_more_bits(int64_t i, int64_t n) {
  return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
}

static weight_type wanted_type(const synth_options *o, const char *kind, int64_t layer) {
  bool better = !strcmp(kind, "output") || (o->tied && !strcmp(kind, "token_embd"));
  if (!strcmp(kind, "attn_v") || !strcmp(kind, "ffn_down_exps"))
    better = has_more_bits(layer, o->shape.layers);
  switch (o->mix) {
  case MIX_Q4_K_M:
    return better ? TYPE_Q6_K : TYPE_Q4_K;
  case MIX_Q5_K_M:
    return better ? TYPE_Q6_K : TYPE_Q5_K;
  case MIX_Q6_K:
    return TYPE_Q6_K;
  case MIX_Q8_0:
    return TYPE_Q8_0;
  case MIX_F16:
    return TYPE_F16;
  case MIX_F32:
    break;
  }
  return TYPE_F32;
}

// Norms and router are floats in every mix. A row that is no whole number of blocks takes a type of smaller
// ones.
static weight_type type_of(const synth_options *o, const char *kind, int64_t layer, int64_t cols) {
  if (strstr(kind, "norm") || !strcmp(kind, "ffn_gate_inp")) return TYPE_F32;
  weight_type type = wanted_type(o, kind, layer);
  if (cols % (int64_t)type_find((uint32_t)type)->elements) type = TYPE_Q8_0;
  if (cols % (int64_t)type_find((uint32_t)type)->elements) type = TYPE_F16;
  return type;
}

static uint32_t file_type(synth_mix mix) { // llama.cpp's numbers of its mixes, for who shows them
  static const uint32_t number[] = {15, 17, 18, 7, 1, 0};
  return number[mix];
}

// ---- tensors ----

static uint64_t key_of(const synth_options *o, const char *name) {
  uint64_t key = synth_random((uint64_t)o->seed, 0);
  for (const char *c = name; *c; c++)
    key = num_mix64(key ^ (uint64_t)(unsigned char)*c) + 0x9e3779b97f4a7c15u;
  return key;
}

static double over_root(double x, int64_t n) {
  return x / __builtin_sqrt((double)n);
}

static void add_tensor(synth_layout *l, const synth_options *o, int64_t layer, const char *kind,
                       synth_tensor t) {
  if (layer < 0)
    snprintf(t.name, sizeof t.name, "%s.weight", kind);
  else
    snprintf(t.name, sizeof t.name, "blk.%lld.%s.weight", (long long)layer, kind);
  for (int d = 2; d >= 0; d--)
    if (!t.dim[d]) t.dim[d] = 1;
  synth_recipe *r = &t.recipe;
  r->key = key_of(o, t.name);
  r->type = type_of(o, kind, layer, t.dim[0]);
  r->cols = t.dim[0];
  r->rows = t.dim[1];
  r->channels = l->channels;
  r->n_channels = o->outliers;
  if (!o->outliers) r->columns = COLUMNS_PLAIN;
  if (!r->loud_rows || !o->outliers) r->loud_rows = 1;
  if (!r->loud_norm || !o->outliers) r->loud_norm = 1;
  t.rows = t.dim[1] * t.dim[2];
  t.row_bytes = type_row_bytes(type_find((uint32_t)r->type), (size_t)t.dim[0]);
  l->tensors[l->n_tensors++] = t;
}

#define DIMS(n, ...)       .n_dims = (n), .dim = {__VA_ARGS__}
#define WEIGHTS(s, spread) .std = (s), .row_spread = (spread)

static synth_tensor norm_vector(int64_t n, double mean, double loud) {
  return (synth_tensor){DIMS(1, n), .recipe = {.mean = mean, .std = 0.15 * mean, .loud_norm = loud}};
}

// Products of a normed input have a mean square of 1, of the router 1.5^2; queries and keys of 1.5 make
// attention as sharp as a trained model's; a layer adds to the residual stream a small part of what the
// embedding put there.
static void add_layer(synth_layout *l, const synth_options *o, int64_t i, double stream) {
  const synth_shape *s = &o->shape;
  int64_t h = s->hidden, q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim, e = s->experts,
          w = s->expert_width;
  double in = over_root(1, h), loud = loud_normed / synth_loud_level;
  const synth_columns quiet = COLUMNS_QUIET;
  add_tensor(l, o, i, "attn_norm", norm_vector(h, 1, loud));
  add_tensor(l, o, i, "attn_q",
             (synth_tensor){DIMS(2, h, q), .recipe = {WEIGHTS(in, 0.25), .columns = quiet}});
  add_tensor(l, o, i, "attn_k",
             (synth_tensor){DIMS(2, h, kv), .recipe = {WEIGHTS(in, 0.25), .columns = quiet}});
  add_tensor(l, o, i, "attn_v",
             (synth_tensor){DIMS(2, h, kv), .recipe = {WEIGHTS(in, 0.25), .columns = quiet}});
  add_tensor(l, o, i, "attn_q_norm", norm_vector(s->head_dim, 1.5, 1));
  add_tensor(l, o, i, "attn_k_norm", norm_vector(s->head_dim, 1.5, 1));
  add_tensor(l, o, i, "attn_output",
             (synth_tensor){DIMS(2, q, h), .recipe = {WEIGHTS(over_root(0.2 * stream, q), 0.25),
                                                      .loud_rows = loud_written}});
  add_tensor(l, o, i, "ffn_norm", norm_vector(h, 1, loud));
  add_tensor(l, o, i, "ffn_gate_inp",
             (synth_tensor){DIMS(2, h, e), .recipe = {WEIGHTS(1.5 * in, 0.2), .columns = quiet}});
  add_tensor(l, o, i, "ffn_gate_exps",
             (synth_tensor){DIMS(3, h, w, e), .recipe = {WEIGHTS(in, 0.25), .columns = quiet}});
  add_tensor(l, o, i, "ffn_up_exps",
             (synth_tensor){DIMS(3, h, w, e), .recipe = {WEIGHTS(in, 0.25), .columns = quiet}});
  add_tensor(l, o, i, "ffn_down_exps",
             (synth_tensor){DIMS(3, w, h, e), .recipe = {WEIGHTS(over_root(0.35 * stream, w), 0.25),
                                                         .loud_rows = loud_written}});
}

enum { TENSORS_PER_LAYER = 12, OUTER_TENSORS = 3 };

static void add_tensors(synth_layout *l, const synth_options *o) {
  int64_t h = o->shape.hidden, v = o->shape.vocab;
  double logit = over_root(3, h), stream = o->tied ? logit : 1; // logits' standard deviation is 3
  add_tensor(l, o, -1, "token_embd",
             (synth_tensor){DIMS(2, h, v), .recipe = {WEIGHTS(stream, 0.1), .columns = COLUMNS_LOUD}});
  for (int64_t i = 0; i < o->shape.layers; i++) add_layer(l, o, i, stream);
  // a tied head reads the channels as loud as the embedding has them: then their norm stays as it is
  add_tensor(l, o, -1, "output_norm", norm_vector(h, 1, o->tied ? 1 : loud_normed / synth_loud_level));
  if (!o->tied)
    add_tensor(l, o, -1, "output",
               (synth_tensor){DIMS(2, h, v), .recipe = {WEIGHTS(logit, 0.1), .columns = COLUMNS_QUIET}});
}

static status plant_channels(synth_layout *l, const synth_options *o) {
  TRY(TAKE(&l->channels, (size_t)o->outliers, "planted channels"));
  uint64_t key = synth_random((uint64_t)o->seed, 1);
  for (int64_t n = 0, tries = 0; n < o->outliers; tries++) {
    int64_t channel = (int64_t)(synth_random(key, (uint64_t)tries) % (uint64_t)o->shape.hidden);
    bool is_new = true;
    for (int64_t i = 0; i < n; i++) is_new = is_new && l->channels[i] != channel;
    if (is_new) l->channels[n++] = channel;
  }
  return 0;
}

// ---- header ----

static void put(FILE *f, const void *data, size_t bytes) {
  fwrite(data, 1, bytes, f);
}

static void put_u32(FILE *f, uint32_t x) {
  put(f, &x, sizeof x);
}

static void put_u64(FILE *f, uint64_t x) {
  put(f, &x, sizeof x);
}

static void put_text(FILE *f, const char *text) {
  put_u64(f, strlen(text));
  put(f, text, strlen(text));
}

static void put_key_text(FILE *f, const char *key, const char *text) {
  put_text(f, key);
  put_u32(f, GGUF_STRING);
  put_text(f, text);
}

static void put_key_u32(FILE *f, const char *key, int64_t value) {
  put_text(f, key);
  put_u32(f, GGUF_U32);
  put_u32(f, (uint32_t)value);
}

static void put_key_float(FILE *f, const char *key, double value) {
  float narrow = (float)value;
  put_text(f, key);
  put_u32(f, GGUF_FLOAT32);
  put(f, &narrow, sizeof narrow);
}

enum { N_KEYS = 20 };

static void put_keys(FILE *f, const synth_options *o) {
  const synth_shape *s = &o->shape;
  char name[128], made_with[1024];
  snprintf(name, sizeof name, "synthetic %s, seed %lld", o->shape_name, (long long)o->seed);
  synth_options_text(made_with, sizeof made_with, o);
  put_key_text(f, "general.architecture", "qwen3moe");
  put_key_text(f, "general.name", name);
  put_key_u32(f, "general.file_type", file_type(o->mix));
  put_key_u32(f, "general.quantization_version", 2);
  put_key_text(f, "moe_run.synth", made_with);
  put_key_u32(f, "qwen3moe.block_count", s->layers);
  put_key_u32(f, "qwen3moe.context_length", s->context);
  put_key_u32(f, "qwen3moe.embedding_length", s->hidden);
  put_key_u32(f, "qwen3moe.feed_forward_length", 3 * s->hidden);
  put_key_u32(f, "qwen3moe.expert_feed_forward_length", s->expert_width);
  put_key_u32(f, "qwen3moe.expert_count", s->experts);
  put_key_u32(f, "qwen3moe.expert_used_count", s->top_k);
  put_key_u32(f, "qwen3moe.attention.head_count", s->heads);
  put_key_u32(f, "qwen3moe.attention.head_count_kv", s->kv_heads);
  put_key_u32(f, "qwen3moe.attention.key_length", s->head_dim);
  put_key_u32(f, "qwen3moe.attention.value_length", s->head_dim);
  put_key_float(f, "qwen3moe.attention.layer_norm_rms_epsilon", epsilon);
  put_key_float(f, "qwen3moe.rope.freq_base", (double)s->rope_base);
  put_key_u32(f, "qwen3moe.vocab_size", s->vocab);
  put_key_text(f, "tokenizer.ggml.model", "none"); // the model runs on token ids
}

static uint64_t aligned(uint64_t x) {
  return (x + GGUF_ALIGNMENT - 1) / GGUF_ALIGNMENT * GGUF_ALIGNMENT;
}

static void put_header(FILE *f, const synth_layout *l, const synth_options *o) {
  put(f, "GGUF", 4);
  put_u32(f, GGUF_VERSION);
  put_u64(f, l->n_tensors);
  put_u64(f, N_KEYS);
  put_keys(f, o);
  for (size_t i = 0; i < l->n_tensors; i++) {
    const synth_tensor *t = &l->tensors[i];
    put_text(f, t->name);
    put_u32(f, (uint32_t)t->n_dims);
    for (int d = 0; d < t->n_dims; d++) put_u64(f, (uint64_t)t->dim[d]);
    put_u32(f, (uint32_t)t->recipe.type);
    put_u64(f, t->offset); // from the end of the header
  }
  static const char zeros[GGUF_ALIGNMENT];
  uint64_t at = (uint64_t)ftell(f);
  put(f, zeros, aligned(at) - at);
}

static status build_header(synth_layout *l, const synth_options *o) {
  FILE *f = open_memstream(&l->header, &l->header_bytes);
  if (!f) return FAIL("cannot allocate the header: %s", strerror(errno));
  put_header(f, l, o);
  bool bad = ferror(f);
  if (fclose(f) || bad) return FAIL("cannot allocate the header: out of memory");
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
      return FAIL("synth: a model of this shape is larger than any file can be");
    at = aligned(end);
  }
  l->file_bytes = at;
  return 0;
}

status synth_layout_open(synth_layout *out, const synth_options *o) {
  *out = (synth_layout){.n_tensors = 0};
  size_t most = (size_t)o->shape.layers * TENSORS_PER_LAYER + OUTER_TENSORS;
  status result;
  TRY_DONE(result, plant_channels(out, o));
  TRY_DONE(result, TAKE(&out->tensors, most, "the tensors' table"));
  add_tensors(out, o);
  TRY_DONE(result, place_tensors(out));
  TRY_DONE(result, build_header(out, o));
  out->file_bytes += out->header_bytes;
  for (size_t i = 0; i < out->n_tensors; i++) out->tensors[i].offset += out->header_bytes;
done:
  if (result) synth_layout_close(out);
  return result;
}

void synth_layout_close(synth_layout *l) {
  if (!l) return;
  free(l->tensors);
  free(l->channels);
  free(l->header);
  *l = (synth_layout){.n_tensors = 0};
}

void synth_layout_types(char *out, size_t size, const synth_layout *l) {
  out[0] = 0;
  for (uint32_t type = 0; type <= TYPE_BF16; type++) {
    int count = 0;
    for (size_t i = 0; i < l->n_tensors; i++) count += (uint32_t)l->tensors[i].recipe.type == type;
    size_t used = strlen(out);
    if (count && used < size)
      snprintf(out + used, size - used, "%s%s %d", used ? ", " : "", type_find(type)->name, count);
  }
}
