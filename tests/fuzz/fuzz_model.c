// fuzz_model: a small valid model, whole or split, with a few edits that the input asks for. Almost every
// input gets far into the reader, where random bytes do not.
//
// An input: a byte that says whether it is split, then edits of 6 bytes: what, where (2), value (2), shift.
#include "tests/fuzz/fuzz.h"
#include "src/model/model.h"
#include <stdio.h>
#include <string.h>

enum { HIDDEN = 256, EXPERTS = 2, VOCABULARY = 2, HEAD_DIM = 2, MOST_EDITS = 8, LAYER_TENSORS = 12 };

typedef struct {
  const char *name;
  uint32_t type;
  uint64_t dim[3];
} base_tensor;

static const base_tensor layer_base[LAYER_TENSORS] = {
    // one row of 256 in every type
    {"attn_norm", TYPE_F32, {HIDDEN}},
    {"attn_q", TYPE_Q6_K, {HIDDEN, HEAD_DIM}},
    {"attn_k", TYPE_Q8_0, {HIDDEN, HEAD_DIM}},
    {"attn_v", TYPE_F16, {HIDDEN, HEAD_DIM}},
    {"attn_q_norm", TYPE_F16, {HEAD_DIM}},
    {"attn_k_norm", TYPE_BF16, {HEAD_DIM}},
    {"attn_output", TYPE_F32, {HEAD_DIM, HIDDEN}},
    {"ffn_norm", TYPE_BF16, {HIDDEN}},
    {"ffn_gate_inp", TYPE_BF16, {HIDDEN, EXPERTS}},
    {"ffn_gate_exps", TYPE_Q4_K, {HIDDEN, 1, EXPERTS}},
    {"ffn_up_exps", TYPE_Q5_K, {HIDDEN, 1, EXPERTS}},
    {"ffn_down_exps", TYPE_F16, {1, HIDDEN, EXPERTS}},
};
static const base_tensor outer_base[] = {
    {"token_embd.weight", TYPE_Q4_K, {HIDDEN, VOCABULARY}},
    {"output_norm.weight", TYPE_F32, {HIDDEN}},
    {"output.weight", TYPE_Q6_K, {HIDDEN, VOCABULARY}},
};

static void put_tensor(gguf_bytes *g, const char *name, const base_tensor *t, uint64_t *offset) {
  const type_info *type = type_find(t->type);
  uint32_t dims = t->dim[2] ? 3 : t->dim[1] ? 2 : 1;
  uint64_t bytes = t->dim[0] / type->elements * type->bytes;
  gguf_put_name(g, name);
  gguf_put_number(g, dims, 4);
  for (uint32_t i = 0; i < dims; i++) gguf_put_number(g, t->dim[i], 8);
  for (uint32_t i = 1; i < dims; i++) bytes *= t->dim[i];
  gguf_put_number(g, t->type, 4);
  gguf_put_number(g, *offset, 8);
  *offset += (bytes + 31) / 32 * 32;
}

static void put_data(gguf_bytes *g, uint64_t bytes) { // of zeros: every one of them is a finite weight
  while (g->count % 32) gguf_put(g, "", 1);
  memset(g->bytes + g->count, 0, bytes);
  g->count += bytes;
}

static void put_shape(gguf_bytes *g) {
  static const struct {
    const char *name;
    uint32_t value;
  } numbers[] = {
      {"block_count", 1},
      {"embedding_length", HIDDEN},
      {"attention.head_count", 1},
      {"attention.head_count_kv", 1},
      {"attention.key_length", HEAD_DIM},
      {"attention.value_length", HEAD_DIM},
      {"expert_count", EXPERTS},
      {"expert_used_count", 1},
      {"expert_feed_forward_length", 1},
      {"context_length", 16},
  };
  char key[80];
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    snprintf(key, sizeof key, "qwen3moe.%s", numbers[i].name);
    gguf_put_u32(g, key, numbers[i].value);
  }
  gguf_put_f32(g, "qwen3moe.attention.layer_norm_rms_epsilon", 1e-6f);
  gguf_put_f32(g, "qwen3moe.rope.freq_base", 1e6f);
  gguf_put_string(g, "general.architecture", "qwen3moe");
  gguf_put_string(g, "general.name", "fuzz");
}

enum { SHAPE_KEYS = 14, SPLIT_KEYS = 3, OUTER_TENSORS = 3 };

static void put_split(gguf_bytes *g, uint32_t no) {
  gguf_put_u32(g, "split.no", no);
  gguf_put_u32(g, "split.count", 2);
  gguf_put_u32(g, "split.tensors.count", LAYER_TENSORS + OUTER_TENSORS);
}

static void put_outer(gguf_bytes *g, uint64_t *offset) {
  for (size_t i = 0; i < OUTER_TENSORS; i++) put_tensor(g, outer_base[i].name, &outer_base[i], offset);
}

static void put_layer(gguf_bytes *g, uint64_t *offset) {
  char name[80];
  for (size_t i = 0; i < LAYER_TENSORS; i++) {
    snprintf(name, sizeof name, "blk.0.%s.weight", layer_base[i].name);
    put_tensor(g, name, &layer_base[i], offset);
  }
}

static gguf_bytes whole, part[FUZZ_MOST_FILES];

static void make_bases(void) {
  uint64_t offset = 0;
  gguf_put_head(&whole, LAYER_TENSORS + OUTER_TENSORS, SHAPE_KEYS);
  put_shape(&whole);
  put_outer(&whole, &offset);
  put_layer(&whole, &offset);
  put_data(&whole, offset);
  offset = 0;
  gguf_put_head(&part[0], OUTER_TENSORS, SHAPE_KEYS + SPLIT_KEYS);
  put_shape(&part[0]);
  put_split(&part[0], 0);
  put_outer(&part[0], &offset);
  put_data(&part[0], offset);
  offset = 0;
  gguf_put_head(&part[1], LAYER_TENSORS, SPLIT_KEYS);
  put_split(&part[1], 1);
  put_layer(&part[1], &offset);
  put_data(&part[1], offset);
}

// ---- edits ----

static void write_number(gguf_bytes *g, size_t at, uint64_t value, size_t size) {
  if (at < g->count) memcpy(g->bytes + at, &value, size < g->count - at ? size : g->count - at);
}

static void cut_bytes(gguf_bytes *g, size_t at, size_t size) {
  if (at >= g->count) return;
  if (size > g->count - at) size = g->count - at;
  memmove(g->bytes + at, g->bytes + at + size, g->count - at - size);
  g->count -= size;
}

static void insert_zeros(gguf_bytes *g, size_t at, size_t size) {
  if (at >= g->count || size > sizeof g->bytes - g->count) return;
  memmove(g->bytes + at + size, g->bytes + at, g->count - at);
  memset(g->bytes + at, 0, size);
  g->count += size;
}

static void copy_bytes(gguf_bytes *g, size_t at, size_t from,
                       size_t size) { // names and numbers of another place
  if (at >= g->count || from >= g->count) return;
  if (size > g->count - at) size = g->count - at;
  if (size > g->count - from) size = g->count - from;
  memmove(g->bytes + at, g->bytes + from, size);
}

static void edit(gguf_bytes *g, fuzz_input *in) {
  unsigned what = (unsigned)fuzz_take(in, 1), where = (unsigned)fuzz_take(in, 2),
           value = (unsigned)fuzz_take(in, 2), shift = (unsigned)fuzz_take(in, 1);
  uint64_t wide = (uint64_t)(int64_t)(int16_t)value
                  << shift % 64; // small numbers, powers of two, negative ones
  size_t at = what & 8 ? where : g->field[where % g->fields];
  if (!g->count) return;
  switch (what % 8) {
  case 0:
    return write_number(g, at, wide, 8);
  case 1:
    return write_number(g, at, wide, 4);
  case 2:
    return write_number(g, at, wide, 1);
  case 3:
    return cut_bytes(g, at, value);
  case 4:
    return insert_zeros(g, at, value % 64);
  case 5:
    return copy_bytes(g, at, g->field[value % g->fields], shift);
  case 6:
    g->bytes[at % g->count] ^= (uint8_t)(1u << shift % 8);
    return;
  default: // a shorter file
    if (where < g->count) g->count -= where;
  }
}

static void copy_base(gguf_bytes *out, const gguf_bytes *base) {
  memcpy(out->bytes, base->bytes, base->count);
  memcpy(out->field, base->field, base->fields * sizeof *base->field);
  out->count = base->count;
  out->fields = base->fields;
}

// What a backend will read of a tensor is all of it.
static void check_matrix(const model *m, const char *name, const matrix *w, int64_t copies) {
  const gguf_tensor *t = gguf_tensor_find(m->file, name);
  size_t row = type_row_bytes(type_find((uint32_t)w->type), (size_t)w->cols);
  REQUIRE(t && t->data == w->data && t->bytes == row * (size_t)w->rows * (size_t)copies);
}

static void check_model(const char *path, bool untouched) {
  static int32_t room[65536];
  model *m;
  uint64_t shared, experts;
  status_reset();
  status result = model_open(&m, path);
  REQUIRE((result != 0) == (m == NULL) && (!untouched || m) && (result != 0) == (*status_text() != 0));
  if (!m) return;
  expert_map all = expert_map_of_all(room, m->weights.shape.n_experts);
  result = model_check_weights(m, &all, 0, 1, &shared, &experts, NULL);
  REQUIRE(!untouched || !result);
  uint64_t bytes = 0;
  for (size_t i = 0; i < gguf_tensor_count(m->file); i++) bytes += gguf_tensor_at(m->file, i)->bytes;
  REQUIRE(bytes == m->shared_bytes + model_experts_bytes(m, &all));
  int64_t experts_held = m->weights.shape.n_experts;
  check_matrix(m, "token_embd.weight", &m->weights.embedding, 1);
  check_matrix(m, "blk.0.attn_q.weight", &m->weights.layers[0].q, 1);
  check_matrix(m, "blk.0.attn_output.weight", &m->weights.layers[0].o, 1);
  check_matrix(m, "blk.0.ffn_gate_inp.weight", &m->weights.layers[0].router, 1);
  check_matrix(m, "blk.0.ffn_gate_exps.weight", &m->weights.layers[0].gate, experts_held);
  check_matrix(m, "blk.0.ffn_down_exps.weight", &m->weights.layers[0].down, experts_held);
  model_close(m);
}

FUZZ_TARGET(model) {
  static gguf_bytes now[FUZZ_MOST_FILES];
  fuzz_input in = {data, size};
  if (!whole.count) make_bases();
  bool split = fuzz_take(&in, 1) & 1;
  bool untouched = !in.left;
  if (split)
    for (size_t i = 0; i < FUZZ_MOST_FILES; i++) copy_base(&now[i], &part[i]);
  else
    copy_base(&now[0], &whole);
  for (int i = 0; in.left && i < MOST_EDITS; i++) edit(&now[split && in.at[0] & 16], &in);
  size_t files = split ? FUZZ_MOST_FILES : 1;
  const char *path = fuzz_file(0, files, now[0].bytes, now[0].count);
  if (split) fuzz_file(1, files, now[1].bytes, now[1].count);
  check_model(path, untouched);
  return 0;
}
