#include "src/report/bisect_report.h"
#include "src/report/json_tree.h"
#include "src/report/npy.h"
#include "src/report/report_file.h"

enum { SENTENCE = 1024 };
static const char FILE_NAME[] = "bisect.json";

static void put_operations(branch root, const product_bisection *f) {
  branch list = put_array(root, "operations");
  for (size_t i = 0; i < f->n_rows; i++) {
    branch o = put_object(list, NULL), axes;
    put_text(o, "name", f->row[i].name);
    put_text(o, "what", f->row[i].what);
    axes = put_array(o, "axes");
    for (int a = 0; a < PRODUCT_AXES; a++) {
      branch axis = put_object(axes, NULL);
      put_text(axis, "axis", product_axis_name((product_axis)a));
      put_text(axis, "value", product_axis_value((product_axis)a, f->row[i].operation.at[a]));
    }
    put(o, "absent", f->absent[i] ? json_string(f->absent[i]) : json_null());
    put(o, "class", f->absent[i] ? json_null() : json_integer(f->cls[i] + 1));
  }
}

static void put_pairs(branch root, const product_bisection *f) {
  branch list = put_array(root, "pairs");
  for (size_t i = 0; i < f->n_pairs; i++) {
    const product_pair *p = &f->pair[i];
    branch o = put_object(list, NULL);
    put_text(o, "a", f->row[p->a].name);
    put_text(o, "b", f->row[p->b].name);
    for (int d = 0; d < PRODUCT_DISTANCES; d++) {
      branch distance = put_object(o, product_distance_name((product_distance)d));
      put_real(distance, "shown", p->shown[d]);
      put_real(distance, "rank", p->rank[d]);
      branch quantiles = put_array(distance, "quantiles");
      for (int q = 0; q < PRODUCT_QUANTILES; q++) put_real(quantiles, NULL, p->quantile[d][q]);
    }
    put_real(o, "rel_l2_of_all", p->rel_l2);
  }
}

static void put_walks(branch root, const product_bisection *f) {
  branch list = put_array(root, "walks");
  for (size_t i = 0; i < f->n_walks; i++) {
    const product_walk *w = &f->walk[i];
    char text[SENTENCE];
    branch o = put_object(list, NULL);
    put_text(o, "a", f->row[w->a].name);
    put_text(o, "b", f->row[w->b].name);
    branch steps = put_array(o, "steps");
    for (int s = 0; s < w->n_steps; s++) {
      const product_step *step = &w->step[s];
      branch at = put_object(steps, NULL);
      put_text(at, "axis", product_axis_name(step->axis));
      put_text(at, "from", product_axis_value(step->axis, step->from));
      put_text(at, "to", product_axis_value(step->axis, step->to));
      put_real(at, "rel_l2", step->rel_l2);
      put_bool(at, "separates", step->separates);
    }
    product_walk_say(text, sizeof text, f, w);
    put_text(o, "sentence", text);
  }
}

static void put_product(branch root, const bisect_product *p) {
  const matrix *w = &p->weights->weights;
  branch o = put_object(root, "product");
  put_text(o, "tensor", p->weights->tensor->name);
  put_text(o, "type", p->weights->tensor->type->name);
  put_integer(o, "rows", w->rows);
  put_integer(o, "cols", w->cols);
  put_text(o, "activations", p->activations);
  put(o, "arm", p->arm ? json_string(p->arm) : json_null());
  put(o, "seed", p->arm ? json_null() : json_integer(p->seed));
  put_integer(o, "draws", p->n);
  put_integer(o, "shown", p->shown);
  put_real(o, "reordered", p->found->reordered);
  put_real(o, "bound", p->found->bound);
  branch quantiles = put_array(o, "quantiles");
  for (int q = 0; q < PRODUCT_QUANTILES; q++) put_real(quantiles, NULL, product_quantile[q]);
  put_operations(o, p->found);
  put_pairs(o, p->found);
  put_walks(o, p->found);
}

static branch start(const char *path, const message_list *warnings, bool *bad) {
  branch root = {json_object(), bad};
  put_integer(root, "schema", BISECT_SCHEMA);
  put_text(root, "command", "bisect");
  put_text(root, "model", path);
  put_messages(root, "warnings", warnings);
  return root;
}

// ---- the whole model ----

static void put_side(branch root, const char *key, const bisect_side *s) {
  branch o = put_object(root, key);
  put_text(o, "arm", s->arm);
  put_digest(o, "digest", s->digest);
  put_text(o, "model", s->model);
  put_text(o, "kv", s->kv);
  put_text(o, "row", s->row);
}

static void put_distance(branch to, const char *key, const pass_distance *d) {
  branch o = put_object(to, key);
  put_real(o, "kl", d->kl);
  put_real(o, "rel_l2", d->rel_l2);
  put_real(o, "top1_agreement", d->top1);
  put_integer(o, "flips", d->flips);
  put_bool(o, "same_bits", d->same_bits);
}

static void put_settings(branch root, const model_bisection *m) {
  branch list = put_array(root, "settings");
  for (size_t i = 0; i < m->n_settings; i++) {
    const model_setting *s = &m->setting[i];
    branch o = put_object(list, NULL);
    put_text(o, "name", s->name);
    put_real(o, "gone", s->gone);
    put_real(o, "appears", s->appears);
    put_distance(o, "to_a", &s->to_a);
    put_distance(o, "to_b", &s->to_b);
  }
}

static void put_part(branch list, const model_node *n) {
  branch o = put_object(list, NULL), steps;
  put_text(o, "name", n->name);
  steps = put_array(o, "steps");
  for (int s = 0; s < MODEL_STEPS; s++)
    if (n->part.steps >> s & 1) put(steps, NULL, json_string(model_step_name((model_step)s)));
  put_integer(o, "first_layer", n->part.first_layer);
  put_integer(o, "end_layer", n->part.end_layer);
  put_integer(o, "first_expert", n->part.first_expert);
  put_integer(o, "end_expert", n->part.end_expert);
  put_real(o, "gone", n->gone);
  put_real(o, "appears", n->appears);
  put_distance(o, "to_a", &n->to_a);
  put_distance(o, "to_b", &n->to_b);
}

static void put_model(branch root, const bisect_model *m) {
  char text[SENTENCE], tensor[PRODUCT_TENSOR_BYTES];
  probe_point reads;
  branch o = put_object(root, "whole");
  put_side(o, "a", &m->a);
  put_side(o, "b", &m->b);
  put_integer(o, "tokens", m->n_tokens);
  put_integer(o, "passes", m->found->passes);
  put_integer(o, "budget", m->found->budget);
  put_bool(o, "budget_spent", m->found->budget_spent);
  put_distance(o, "a_to_b", &m->found->a_b);
  put_distance(o, "b_to_a", &m->found->b_a);
  put_settings(o, m->found);
  branch parts = put_array(o, "parts");
  for (size_t i = 0; i < m->found->n_nodes; i++) put_part(parts, &m->found->node[i]);
  model_bisection_say(text, sizeof text, m->found);
  put_text(o, "sentence", text);
  bool has_product = model_bisection_product(tensor, &reads, m->found);
  put(o, "tensor", has_product ? json_string(tensor) : json_null());
  put(o, "activations", has_product ? json_string(probe_get(reads)->name) : json_null());
}

status bisect_write_model(const char *dir, const bisect_model *m) {
  bool bad = false;
  branch root = start(m->a.model, m->warnings, &bad);
  put_model(root, m);
  return json_tree_write(dir, FILE_NAME, root);
}

static status write_rows(const char *dir, const char *name, npy_type type, const void *rows, int64_t n,
                         int64_t width) {
  char file[64];
  npy *f;
  npy_row row = {type, 1, {width}};
  status result;
  snprintf(file, sizeof file, "%s.npy", name);
  TRY(npy_open(&f, dir, file, &row));
  TRY_DONE(result, npy_append(f, rows, (size_t)n));
  TRY_DONE(result, npy_complete(f));
  return npy_name(f);
done:
  npy_abandon(f);
  return result;
}

static status write_outputs(const char *dir, const bisect_product *p) {
  const matrix *w = &p->weights->weights;
  TRY(write_rows(dir, "activations", NPY_F32, p->x, p->n, w->cols));
  for (size_t i = 0; i < p->found->n_rows; i++)
    if (p->found->out[i])
      TRY(write_rows(dir, p->found->row[i].name, NPY_F64, p->found->out[i], p->n, w->rows));
  return 0;
}

status bisect_write_product(const char *dir, const bisect_product *p) {
  bool bad = false;
  TRY(report_file_retract_name(dir, FILE_NAME)); // it never stands beside arrays of another run
  TRY(write_outputs(dir, p));
  branch root = start(p->model, p->warnings, &bad);
  put_product(root, p);
  return json_tree_write(dir, FILE_NAME, root);
}
