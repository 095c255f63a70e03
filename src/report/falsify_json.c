#include "src/report/falsify_report.h"
#include "src/report/json_tree.h"

static void put_bounds(branch to, const experiment_result *r) {
  branch list = put_array(to, "predicts");
  for (size_t i = 0; i < r->settings->n_bounds; i++) {
    const experiment_bound *b = &r->settings->bounds[i];
    double figure = experiment_figure_of(r, b->figure);
    branch o = put_object(list, NULL);
    put_text(o, "figure", b->figure);
    put_real(o, "min", b->low); // null: no end
    put_real(o, "max", b->high);
    put_real(o, "found", figure);
    put_bool(o, "holds", experiment_bound_holds(b, figure));
  }
}

static void put_figures(branch to, const experiment_result *r) {
  branch figures = put_object(to, "figures");
  for (size_t i = 0; i < r->n_figures; i++)
    if (isfinite(r->figures[i].value)) put_real(figures, r->figures[i].name, r->figures[i].value);
  branch known = put_object(to, "known");
  for (size_t i = 0; i < r->settings->n_known; i++)
    put_real(known, r->settings->known[i].name, r->settings->known[i].value);
}

// A row for each layer.
static void put_map(branch to, const experiment_result *r) {
  branch map = put_object(to, "map");
  put_text(map, "arm", r->expert_arm);
  branch errors = put_array(map, "rel_l2"), hits = put_array(map, "hits");
  for (int64_t l = 0; l < r->n_layers; l++) {
    branch error = put_array(errors, NULL), hit = put_array(hits, NULL);
    for (int64_t e = 0; e < r->n_experts; e++) {
      put_real(error, NULL, r->expert_error[l * r->n_experts + e]);
      put_integer(hit, NULL, r->expert_hits[l * r->n_experts + e]);
    }
  }
}

static void put_experiment(branch list, const experiment_result *r) {
  char bound[EXPERIMENT_TEXT];
  branch o = put_object(list, NULL);
  experiment_bound_text(bound, sizeof bound, r->settings);
  put_integer(o, "id", r->settings->id);
  put_text(o, "name", r->settings->name);
  put_text(o, "hypothesis", r->settings->hypothesis);
  put_text(o, "method", r->method);
  put_text(o, "bound", bound);
  put_bounds(o, r);
  put_text(o, "verdict", experiment_verdict_name(r->verdict));
  put_figures(o, r);
  branch notes = put_array(o, "notes");
  for (size_t i = 0; i < r->n_notes; i++) put_text(notes, NULL, r->notes[i]);
  put_real(o, "seconds", r->seconds);
  if (r->expert_error) put_map(o, r);
}

status falsify_write(const char *dir, const char *model, const message_list *warnings,
                     const experiment_result *results, size_t n) {
  bool bad = false;
  branch root = {json_object(), &bad};
  put_integer(root, "schema", FALSIFY_SCHEMA);
  put_text(root, "command", "falsify");
  put_text(root, "model", model);
  put_messages(root, "warnings", warnings);
  branch list = put_array(root, "experiments");
  for (size_t i = 0; i < n; i++) put_experiment(list, &results[i]);
  return json_tree_write(dir, "falsify.json", root);
}
