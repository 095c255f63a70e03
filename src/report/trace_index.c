#include "src/report/trace_index.h"
#include "base/whole_file.h"
#include "src/report/report_json.h"
#include <errno.h>
#include <string.h>

static void put_integers(branch to, const char *key, const int32_t *x, int64_t n) {
  branch list = put_array(to, key);
  for (int64_t i = 0; i < n; i++) put_integer(list, NULL, x[i]);
}

static void put_layers(branch root, const trace_files *t) {
  branch list = put_array(root, "layers");
  for (int64_t l = 0; l < t->shape->n_layers; l++)
    if (t->layers[l]) put_integer(list, NULL, l);
}

static const char *scope_name(probe_scope scope) {
  switch (scope) {
  case PROBE_OF_BATCH:
    return "input";
  case PROBE_OF_LAYER:
    return "layer";
  case PROBE_OF_HEAD:
    return "output";
  }
  __builtin_unreachable();
}

static void put_probes(branch root, const trace_files *t) {
  branch list = put_array(root, "probes");
  for (int p = 0; p < PROBE_COUNT; p++) {
    const probe_info *info = probe_get((probe_point)p);
    if (!(t->points >> p & 1)) continue;
    branch o = put_object(list, NULL);
    put_text(o, "name", info->name);
    put_text(o, "of", scope_name(info->scope));
    put_bool(o, "per_slot", info->per_slot);
    put_bool(o, "ids", info->is_ids);
    put_real(o, "factor", probe_factor((probe_point)p, t->shape));
  }
}

static void put_files(branch arm, const trace_arm *a) {
  static const char *const TYPES[] = {[NPY_F32] = "float32", [NPY_F64] = "float64", [NPY_I32] = "int32"};
  branch list = put_array(arm, "files");
  for (size_t i = 0; i < a->n_files; i++) {
    const trace_file *f = &a->files[i];
    char path[sizeof f->name + 64];
    branch o = put_object(list, NULL);
    snprintf(path, sizeof path, "%s/%s", a->name, f->name);
    put_text(o, "file", path);
    put_text(o, "probe", probe_get(f->point)->name);
    if (f->layer < 0)
      put(o, "layer", json_null());
    else
      put_integer(o, "layer", f->layer);
    put_text(o, "type", TYPES[f->type]);
    branch shape = put_array(o, "shape");
    for (int d = 0; d < f->n_dims; d++) put_integer(shape, NULL, f->size[d]);
  }
}

static void put_arm(branch list, const report *r, const report_arm *a, const trace_arm *files) {
  put_files(report_json_arm(list, r, a), files);
}

static status make_tree(json_t **out, const trace_files *t, const report *r, const token_batch *tokens) {
  bool bad = false;
  branch root = {json_object(), &bad};
  put_integer(root, "schema", TRACE_SCHEMA);
  put_text(root, "command", command_name(r->command));
  put_text(root, "version", r->build.version);
  report_json_model(root, r);
  put_text(root, "kv", r->kv);
  put_digest(root, "input", r->input);
  put_integer(root, "n_tokens", tokens->n);
  put_integers(root, "tokens", tokens->token, tokens->n);
  put_integers(root, "sequences", tokens->sequence, tokens->n);
  put_integers(root, "positions", tokens->position, tokens->n);
  put_layers(root, t);
  put_probes(root, t);
  branch arms = put_array(root, "arms");
  for (size_t i = 0; i < r->n_arms; i++) put_arm(arms, r, &r->arms[i], &t->arms[i]);
  put_bool(root, "complete", true);
  *out = root.node;
  if (!bad && root.node) return 0;
  json_decref(root.node);
  *out = NULL;
  return FAIL("index.json: cannot allocate the index");
}

static status write_tree(FILE *out, const trace_files *t, const report *r, const token_batch *tokens) {
  json_t *tree;
  TRY(make_tree(&tree, t, r, tokens));
  int bad = json_dumpf(tree, out, JSON_INDENT(1) | JSON_REAL_PRECISION(17));
  json_decref(tree);
  fputc('\n', out);
  return bad ? FAIL("index.json: cannot be written: %s", strerror(errno)) : 0;
}

status trace_index_write(trace_files *t, const report *r, const token_batch *tokens) {
  whole_file file;
  status result;
  TRY(whole_file_open(&file, t->dir, "index.json"));
  TRY_DONE(result, write_tree(file.f, t, r, tokens));
  TRY_DONE(result, whole_file_sync(&file));
  TRY_DONE(result, trace_files_complete(t));
  TRY_DONE(result, trace_files_name(t));
  TRY_DONE(result, whole_file_name(&file));
  result = whole_file_sync_dir(t->dir);
done:
  whole_file_abandon(&file);
  return result;
}
