#include "src/report/json_tree.h"
#include "src/report/screen_report.h"

static const char *place_kind(screen_place place) {
  switch (place) {
  case AT_CORES:
    return "cores";
  case AT_DEVICE:
    return "gpu";
  case AT_LINK:
    return "link";
  }
  __builtin_unreachable();
}

static void put_device(branch to, const device_id *d) {
  char uuid[48] = "GPU-";
  if (d->index < 0) {
    put(to, "gpu", json_null());
    return;
  }
  for (int i = 0, n = 4; i < 16; i++)
    n += snprintf(uuid + n, sizeof uuid - (size_t)n, "%s%02x",
                  i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", d->uuid[i]);
  branch o = put_object(to, "gpu");
  put_integer(o, "index", d->index);
  put_text(o, "name", d->name);
  put_text(o, "pci", d->pci);
  put_text(o, "uuid", uuid);
}

static void put_unit(branch list, const screen_coverage *c) {
  branch o = put_object(list, NULL);
  put_text(o, "arm", c->arm);
  put_text(o, "row", c->row);
  branch cuts = put_object(o, "work");
  for (int cut = 0; cut < SCREEN_CUTS; cut++) {
    branch one = put_object(cuts, screen_cut_name((screen_cut)cut));
    put_integer(one, "runs", (int64_t)c->runs[cut]);
    put_integer(one, "tokens", (int64_t)c->tokens[cut]);
    put_real(one, "seconds", c->seconds[cut]);
  }
}

static void put_rank(branch list, const screen_rank *r, int rank) {
  branch o = put_object(list, NULL);
  put_integer(o, "rank", rank);
  put_text(o, "host", r->host);
  put_text(o, "cores", r->cores);
  put_text(o, "rows", r->cpu_rows);
  put_device(o, &r->device);
  put_integer(o, "link_bytes", (int64_t)r->link_bytes);
  branch units = put_array(o, "units");
  for (int32_t i = 0; i < r->n_units; i++) put_unit(units, &r->unit[i]);
}

static void put_count(branch to, const char *key, int64_t n) {
  if (n < 0)
    put(to, key, json_null());
  else
    put_integer(to, key, n);
}

static void put_finding(branch list, const screen_result *s, const screen_finding *f) {
  branch o = put_object(list, NULL);
  const screen_rank *r = &s->ranks[f->rank];
  put_text(o, "place", place_kind(f->place));
  put_integer(o, "rank", f->rank);
  put_text(o, "host", r->host);
  put_text(o, "cores", r->cores);
  put_device(o, &r->device);
  put_count(o, "from", f->from);
  put_text(o, "arm", f->arm);
  put_text(o, "row", f->row);
  put_text(o, "work", f->work);
  put_text(o, "step", f->step);
  put_count(o, "rows", f->rows);
  put_count(o, "numbers", f->values);
  put_count(o, "bits", f->bits);
  put_bool(o, "undecided", f->undecided);
  put_integer(o, "times", (int64_t)f->times);
  put_real(o, "seconds", f->seconds);
}

static const char *verdict_name(known_verdict v) {
  switch (v) {
  case KNOWN_HOLDS:
    return "holds";
  case KNOWN_DIFFERS:
    return "differs";
  case KNOWN_OTHER_VERSION:
    return "other version";
  }
  __builtin_unreachable();
}

static void put_answers(branch root, const screen_report *r) {
  branch list = put_array(root, "answers");
  for (size_t i = 0; i < r->result->n_answers; i++) {
    const screen_answer *a = &r->result->answers[i];
    branch o = put_object(list, NULL);
    put_text(o, "path", a->path->name);
    put_integer(o, "version", a->path->version);
    put_digest(o, "digest", a->logits);
    put_integer(o, "voters", a->voters);
  }
  list = put_array(root, "known");
  for (size_t i = 0; i < r->known->n_checks; i++) {
    const known_check *k = &r->known->checks[i];
    branch o = put_object(list, NULL);
    put_text(o, "test", k->test);
    put_text(o, "path", k->path->name);
    put_integer(o, "version", k->version);
    put_digest(o, "expected", k->expected);
    put_digest(o, "found", k->found);
    put_text(o, "verdict", verdict_name(k->verdict));
  }
}

status screen_report_write(const screen_report *r, const char *dir) {
  bool bad = false;
  const screen_result *s = r->result;
  uint64_t lost = 0;
  branch root = {json_object(), &bad};
  put_integer(root, "schema", SCREEN_SCHEMA);
  put_text(root, "command", "screen");
  put_text(root, "model", r->model);
  put_digest(root, "fingerprint", r->fingerprint);
  put_integer(root, "tokens", s->n_tokens);
  put_integer(root, "sequences", s->sequences);
  put_integer(root, "rounds", s->rounds);
  put_real(root, "seconds", s->seconds);
  put_text(root, "transport", s->transport);
  put_bool(root, "clean", screen_report_is_clean(r));
  branch list = put_array(root, "ranks");
  for (int q = 0; q < s->n_ranks; q++) put_rank(list, &s->ranks[q], q);
  put_answers(root, r);
  list = put_array(root, "findings");
  for (size_t i = 0; i < s->n_findings; i++) put_finding(list, s, &s->findings[i]);
  for (int q = 0; q < s->n_ranks; q++) lost += s->ranks[q].lost_findings;
  put_integer(root, "findings_beyond", (int64_t)lost);
  return json_tree_write(dir, "screen.json", root);
}
