#include "src/report/trace_diff_report.h"
#include "base/whole_file.h"
#include "src/report/json_tree.h"
#include "src/report/report_file.h"
#include "src/report/report.h"

const probe_result *trace_report_first(const trace_report *r) {
  for (size_t i = 0; i < r->n_pairs; i++)
    if (r->pairs[i].first >= 0) return &r->pairs[i].probes[r->pairs[i].first];
  return NULL;
}

// "l_out-1"
static void name_probe(char out[PROBE_NAME_BYTES], const probe_result *p) {
  const char *name = probe_get(p->point)->name;
  if (p->layer == NO_LAYER)
    snprintf(out, PROBE_NAME_BYTES, "%s", name);
  else
    snprintf(out, PROBE_NAME_BYTES, "%s-%" PRId64, name, p->layer);
}

static bool counts_slots(probe_point point) {
  return probe_get(point)->per_slot;
}

// ---- compare.json ----

static void put_side(branch to, const char *key, const recorded_trace *t, const recorded_trace_arm *a,
                     input_rounding rounding) {
  branch o = put_object(to, key);
  put_text(o, "path", t->given);
  put_text(o, "arm", a->name);
  put_bool(o, "is_trace", t->tree != NULL);
  put_text(o, "rounding", input_rounding_name(rounding));
  if (!t->tree) return;
  put_text(o, "version", t->version);
  put_integer(o, "path_version", a->path_version);
  put_text(o, "kv", t->kv);
  put_digest(o, "fingerprint", t->fingerprint);
}

static const char *measure_name(trace_measure m) {
  switch (m) {
  case JUDGED_BY_BITS:
    return "bits";
  case JUDGED_BY_RESIDUAL:
    return "residual";
  case JUDGED_BY_GAIN:
    return "gain";
  case JUDGED_BY_NOTHING:
    return "nothing";
  }
  __builtin_unreachable();
}

static void put_tensor(branch to, const char *key, const tensor_statistics *s) {
  branch o = put_object(to, key);
  put_real(o, "amax", s->amax);
  put_real(o, "rms", s->rms);
  put_real(o, "max_over_second", s->max_over_second);
}

static void put_two(branch to, const char *key, const double x[SIDES]) {
  branch list = put_array(to, key);
  for (int side = 0; side < SIDES; side++) put_real(list, NULL, x[side]);
}

static void put_numbers(branch o, const pair_statistics_of_rows *s) {
  put_integer(o, "rows", s->rows);
  put_integer(o, "numbers", s->numbers);
  put_integer(o, "differing", s->differing);
  put_real(o, "rel_l2", s->rel_l2);
  put_real(o, "one_minus_cos", s->one_minus_cos);
  put_real(o, "max_abs", s->max_abs);
  put_real(o, "max_rel", s->max_rel);
  put_real(o, "worst_rel_l2", s->worst_rel_l2);
  put_tensor(o, "a", &s->of[0]);
  put_tensor(o, "b", &s->of[1]);
}

static void put_row(branch to, const char *key, const arm_pair *p, const probe_result *r, int64_t row) {
  branch o = put_object(to, key);
  bool slots = counts_slots(r->point) && p->match.top_k;
  put_integer(o, "token", slots ? row / p->match.top_k : row);
  if (slots) put_integer(o, "slot", row % p->match.top_k);
}

static void put_caches(branch o, const probe_result *r) {
  static const char *const CACHES[CACHE_KINDS] = {
      [CACHE_AS_IT_IS] = "as it is", [CACHE_F16] = "f16", [CACHE_AND_QUERIES_F16] = "f16, queries too"};
  branch list = put_array(o, "cache");
  for (int side = 0; side < SIDES; side++) put_text(list, NULL, CACHES[r->cache[side]]);
}

static void put_probe(branch list, const arm_pair *p, const probe_result *r) {
  char name[PROBE_NAME_BYTES];
  branch o = put_object(list, NULL);
  name_probe(name, r);
  put_text(o, "name", name);
  put_text(o, "probe", probe_get(r->point)->name);
  if (r->layer == NO_LAYER)
    put(o, "layer", json_null());
  else
    put_integer(o, "layer", r->layer);
  put_text(o, "step", step_name(step_of(r->point)->kind));
  put_numbers(o, &r->numbers);
  put_row(o, "worst_row", p, r, r->numbers.worst_row);
  put_integer(o, "flips", r->flips);
  put_text(o, "judged_by", measure_name(r->measure));
  put_bool(o, "is_composed", r->is_composed);
  put_two(o, "residual", r->residual);
  put_two(o, "worst_residual", r->worst_residual);
  put_two(o, "rounding", r->rounding);
  if (r->point == PROBE_KQV_OUT) put_caches(o, r);
  put_real(o, "error_in", r->error_in);
  put_real(o, "error_out", r->error_out);
  put_real(o, "own_error", r->own_error);
  put_real(o, "gain", r->gain);
  put_real(o, "worst_gain", r->worst_gain);
  put_real(o, "length_error", r->length_error);
  put_real(o, "bias", r->bias);
  put_real(o, "bias_error", r->bias_error);
  put_real(o, "bias_in", r->bias_in);
  put_real(o, "bias_in_error", r->bias_in_error);
  put_row(o, "worst_row_of_step", p, r, r->worst_row);
  put_text(o, "verdict", verdict_name(r->verdict));
  put_text(o, "reason", r->reason);
}

static void put_first(branch to, const probe_result *first) {
  char name[PROBE_NAME_BYTES];
  if (first) name_probe(name, first);
  if (first)
    put_text(to, "first", name);
  else
    put(to, "first", json_null());
}

static void put_pair(branch list, const trace_report *r, const arm_pair *p) {
  branch o = put_object(list, NULL);
  put_side(o, "a", r->a, p->a, p->rounding[0]);
  put_side(o, "b", r->b, p->b, p->rounding[1]);
  put_bool(o, "by_bits", p->by_bits);
  put_first(o, p->first < 0 ? NULL : &p->probes[p->first]);
  branch notes = put_array(o, "transformations");
  for (int i = 0; i < p->match.n_notes; i++) put_text(notes, NULL, p->match.notes[i]);
  put_integer(o, "only_in_a", p->only_in[0]);
  put_integer(o, "only_in_b", p->only_in[1]);
  branch probes = put_array(o, "probes");
  for (int64_t i = 0; i < p->n_probes; i++) put_probe(probes, p, &p->probes[i]);
}

status trace_report_write(const trace_report *r, const char *dir) {
  bool bad = false;
  TRY(output_dir_check(dir));
  branch root = {json_object(), &bad};
  put_integer(root, "schema", COMPARE_SCHEMA);
  put_text(root, "command", "compare");
  put_first(root, trace_report_first(r));
  branch pairs = put_array(root, "pairs");
  for (size_t i = 0; i < r->n_pairs; i++) put_pair(pairs, r, &r->pairs[i]);
  put_bool(root, "complete", true);
  return json_tree_write(dir, "compare.json", root);
}

// ---- the table ----

static void print_side(FILE *out, char letter, const recorded_trace *t, const recorded_trace_arm *a,
                       input_rounding rounding) {
  fprintf(out, "%c  ", letter);
  report_print_line(out, t->given, 70, true);
  fputs("\n   ", out);
  if (t->tree) {
    fputs("moe_run ", out);
    report_print_line(out, t->version, 20, false);
    fprintf(out, ", %s v%" PRId64 ", run.kv %s", a->name, a->path_version, t->kv);
  } else {
    fputs("a folder of another program", out);
  }
  fprintf(out, "; activations before products rounded to %s%s\n", input_rounding_name(rounding),
          a->is_plain ? "" : " (as its errors say)");
}

// Of another program, whose cache and attention are not known.
static void print_attention(FILE *out, char letter, const arm_pair *p, int side) {
  static const char *const CACHES[CACHE_KINDS] = {
      [CACHE_AS_IT_IS] = "no rounding of its keys, values and queries",
      [CACHE_F16] = "keys and values in f16",
      [CACHE_AND_QUERIES_F16] = "keys, values and queries in f16"};
  for (int64_t i = 0; i < p->n_probes; i++) {
    const probe_result *r = &p->probes[i];
    if (r->point != PROBE_KQV_OUT || r->measure == JUDGED_BY_NOTHING || r->is_composed) continue;
    fprintf(out, "   attention of %c is explained best by %s\n", letter, CACHES[r->cache[side]]);
    return;
  }
}

static void print_head(FILE *out, const trace_report *r, const arm_pair *p) {
  print_side(out, 'A', r->a, p->a, p->rounding[0]);
  print_side(out, 'B', r->b, p->b, p->rounding[1]);
  fprintf(out, "%" PRId64 " tokens, %" PRId64 " layers, %" PRId64 " probes in both", p->match.n_tokens,
          p->match.n_layers, p->n_probes);
  if (p->only_in[0] || p->only_in[1])
    fprintf(out, ", %" PRId64 " only in A, %" PRId64 " only in B", p->only_in[0], p->only_in[1]);
  fprintf(out, "; %s\n",
          p->by_bits ? "one path: every bit must be the same"
                     : "two paths, programs or files: errors must be explained");
  for (int i = 0; i < p->match.n_notes; i++) fprintf(out, "   %s\n", p->match.notes[i]);
  if (!r->a->tree) print_attention(out, 'A', p, 0);
  if (!r->b->tree) print_attention(out, 'B', p, 1);
}

static void print_own(FILE *out, const probe_result *r) {
  double own = r->worst_residual[0] > r->worst_residual[1] ? r->worst_residual[0] : r->worst_residual[1];
  if (!isnan(r->gain))
    fprintf(out, "  in %.1e x %-8.3g", r->error_in, r->gain);
  else if (!isnan(own))
    fprintf(out, "  own %-14.1e", own);
  else
    fprintf(out, "  %-18s", "");
}

static void print_distance(FILE *out, const pair_statistics_of_rows *s) {
  double share = fmax(s->of[0].max_over_second, s->of[1].max_over_second);
  fprintf(out, " %9.2e %9.2e %9.2e %9.2e", s->rel_l2, s->one_minus_cos, s->max_abs, s->max_rel);
  if (share > 0)
    fprintf(out, " %7.2f", share);
  else
    fprintf(out, " %7s", "-");
}

static void print_probe(FILE *out, const probe_result *r) {
  char name[PROBE_NAME_BYTES];
  name_probe(name, r);
  fprintf(out, "  %-23s", name);
  if (probe_get(r->point)->is_ids)
    fprintf(out, " %-47s", r->flips ? "other experts" : r->numbers.differing ? "other order" : "");
  else
    print_distance(out, &r->numbers);
  print_own(out, r);
  fprintf(out, "  %s%s\n", verdict_name(r->verdict), r->is_composed ? " (from further back)" : "");
}

// Of each probe the layer with the largest distance; the layer of the first that is off whole, up to it.
static double distance_of(const probe_result *r) { // a NaN is the largest
  return isnan(r->numbers.rel_l2) ? (double)INFINITY : r->numbers.rel_l2;
}

static bool is_worst_of_layers(const arm_pair *p, int64_t at) {
  const probe_result *r = &p->probes[at];
  for (int64_t i = 0; i < p->n_probes; i++) {
    const probe_result *o = &p->probes[i];
    if (i == at || o->point != r->point) continue;
    if (distance_of(o) > distance_of(r) || (!(distance_of(r) > distance_of(o)) && i < at)) return false;
  }
  return true;
}

static void print_pair(FILE *out, const trace_report *r, const arm_pair *p) {
  print_head(out, r, p);
  fprintf(out, "\n  %-23s %9s %9s %9s %9s %7s  %-18s\n", "probe, its worst layer", "rel_l2", "1 - cos",
          "max_abs", "max_rel", "max/2nd", "explained by");
  for (int point = 0; point < PROBE_COUNT; point++)
    for (int64_t i = 0; i < p->n_probes; i++)
      if ((int)p->probes[i].point == point && is_worst_of_layers(p, i)) print_probe(out, &p->probes[i]);
  if (p->first < 0) return;
  const probe_result *first = &p->probes[p->first];
  fputs("\n  the layer of the first\n", out);
  for (int64_t i = 0; i <= p->first; i++)
    if (p->probes[i].layer == first->layer) print_probe(out, &p->probes[i]);
}

static void print_outcome(FILE *out, const arm_pair *p) {
  char name[PROBE_NAME_BYTES];
  int64_t n[4] = {0};
  for (int64_t i = 0; i < p->n_probes; i++) n[p->probes[i].verdict]++;
  fprintf(out, "\n%" PRId64 " probes equal, %" PRId64 " explained, %" PRId64 " off", n[VERDICT_EQUAL],
          n[VERDICT_EXPLAINED], n[VERDICT_OFF]);
  if (n[VERDICT_UNJUDGED]) fprintf(out, ", %" PRId64 " not judged", n[VERDICT_UNJUDGED]);
  fputs(".\n", out);
  if (p->first < 0) return;
  const probe_result *first = &p->probes[p->first];
  name_probe(name, first);
  fprintf(out, "FIRST OFF: %s (", name);
  int64_t row = first->measure == JUDGED_BY_BITS ? first->numbers.worst_row : first->worst_row;
  if (counts_slots(first->point) && p->match.top_k)
    fprintf(out, "worst at token %" PRId64 ", slot %" PRId64 ")", row / p->match.top_k, row % p->match.top_k);
  else
    fprintf(out, "worst at token %" PRId64 ")", row);
  fprintf(out, ": %s\n", first->reason);
}

static void print_alone(const trace_report *r, FILE *out, bool in_a) {
  const recorded_trace *t = in_a ? r->a : r->b;
  for (size_t i = 0; i < t->n_arms; i++) {
    bool paired = false;
    for (size_t k = 0; k < r->n_pairs; k++)
      paired = paired || (in_a ? r->pairs[k].a : r->pairs[k].b) == &t->arms[i];
    if (!paired) fprintf(out, "\n%s is only in %c: not compared.\n", t->arms[i].name, in_a ? 'A' : 'B');
  }
}

void trace_report_print(const trace_report *r, FILE *out) {
  for (size_t i = 0; i < r->n_pairs; i++) {
    if (i) fputs("\n", out);
    print_pair(out, r, &r->pairs[i]);
    print_outcome(out, &r->pairs[i]);
  }
  print_alone(r, out, true);
  print_alone(r, out, false);
}
