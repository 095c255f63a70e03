#include "src/report/inspect_report.h"
#include "src/report/json_tree.h"

static void put_files(branch root, const gguf *g) {
  branch list = put_array(root, "files");
  for (size_t i = 0; i < gguf_file_count(g); i++) {
    branch o = put_object(list, NULL);
    put(o, "path", gguf_file_path(g, i) ? json_tree_repair(gguf_file_path(g, i)) : json_null());
    put_integer(o, "bytes", (int64_t)gguf_file_bytes(g, i));
  }
}

// null: the architecture is unknown. A size that could not be read is 0.
static void put_model(branch root, const model *m) {
  const model_shape *s = &m->weights.shape;
  if (!m->architecture) {
    put(root, "model", json_null());
    return;
  }
  branch o = put_object(root, "model");
  put_text(o, "name", m->name);
  put_text(o, "architecture", m->architecture->name);
  put_text(o, "types", m->types);
  put_integer(o, "n_layers", s->n_layers);
  put_integer(o, "hidden", s->hidden);
  put_integer(o, "n_heads", s->n_heads);
  put_integer(o, "n_kv_heads", s->n_kv_heads);
  put_integer(o, "head_dim", s->head_dim);
  put_integer(o, "n_experts", s->n_experts);
  put_integer(o, "top_k", s->top_k);
  put_integer(o, "expert_width", s->expert_width);
  put_integer(o, "vocabulary", s->vocabulary);
  put_integer(o, "context", m->context_length);
  put_real(o, "rope_base", s->rope_base);
  put_real(o, "rms_epsilon", s->rms_epsilon);
  put_bool(o, "tied", m->tied);
}

static const char *rule_name(const architecture *a, const char *key, const char **why) {
  bool ours;
  const setting_row *row = a ? architecture_setting(&ours, a, key) : NULL;
  *why = row ? row->why : NULL;
  if (!row) return a && ours ? "unknown" : "no setting";
  switch (row->kind) {
  case SETTING_SIZE:
  case SETTING_REAL:
    return "obeyed";
  case SETTING_ONLY:
  case SETTING_ONLY_TEXT:
    return "one value";
  case SETTING_UNUSED:
    return "without effect";
  }
  __builtin_unreachable();
}

static void put_keys(branch root, const model *m) {
  branch list = put_array(root, "keys");
  for (size_t i = 0; i < gguf_key_count(m->file); i++) {
    char value[256];
    const char *key = gguf_key_name(m->file, i), *why;
    branch o = put_object(list, NULL);
    gguf_key_describe(m->file, i, value, sizeof value);
    put_text(o, "key", key);
    put_text(o, "value", value);
    put_text(o, "rule", rule_name(m->architecture, key, &why));
    put(o, "why", why ? json_string(why) : json_null());
  }
}

static void put_tensors(branch root, const gguf *g) {
  branch list = put_array(root, "tensors");
  for (size_t i = 0; i < gguf_tensor_count(g); i++) {
    const gguf_tensor *t = gguf_tensor_at(g, i);
    branch o = put_object(list, NULL);
    put_text(o, "name", t->name);
    put_text(o, "type", type_name_any(t->type_number));
    branch shape = put_array(o, "shape");
    for (int d = 0; d < t->n_dims; d++) put_integer(shape, NULL, t->dim[d]);
    put(o, "bytes", t->type ? json_integer((int64_t)t->bytes) : json_null());
    put_text(o, "file", t->file);
    put(o, "offset", t->data ? json_integer((int64_t)t->offset) : json_null());
  }
}

static void put_tokenizer(branch root, const inspection *i) {
  branch o = put_object(root, "tokenizer"), ends;
  put(o, "tokens", i->tokenizer ? json_integer((int64_t)tokenizer_vocabulary(i->tokenizer)) : json_null());
  if (i->tokenizer_error)
    put_text(o, "error", i->tokenizer_error);
  else
    put(o, "error", json_null());
  ends = put_array(o, "ends");
  for (size_t e = 0; e < end_tokens_count(i->ends); e++) {
    branch end = put_object(ends, NULL);
    put_integer(end, "id", end_tokens_id(i->ends, e));
    put_text(end, "text", end_tokens_text(i->ends, e));
  }
}

static void put_ranks(branch root, const inspection *i) {
  branch list = put_array(root, "ranks");
  for (int r = 0; r < i->n_ranks && i->ranks; r++) {
    branch o = put_object(list, NULL);
    put_integer(o, "rank", r);
    put_integer(o, "experts", i->ranks[r].experts);
    put_integer(o, "expert_bytes", (int64_t)i->ranks[r].bytes);
    put_integer(o, "shared_bytes", (int64_t)i->m->shared_bytes);
  }
}

status inspect_print_json(FILE *out, const inspection *i) {
  bool bad = false;
  branch root = {json_object(), &bad};
  put_integer(root, "schema", INSPECT_SCHEMA);
  put_text(root, "command", "inspect");
  put_files(root, i->m->file);
  put_model(root, i->m);
  put_keys(root, i->m);
  put_tensors(root, i->m->file);
  put_tokenizer(root, i);
  put_ranks(root, i);
  put_messages(root, "warnings", i->warnings);
  put_messages(root, "refusals", i->refusals);
  char *text = bad ? NULL : json_dumps(root.node, JSON_INDENT(1) | JSON_REAL_PRECISION(17));
  json_decref(root.node);
  if (!text) return FAIL("inspect: cannot allocate the report");
  fprintf(out, "%s\n", text);
  free(text);
  return 0;
}
