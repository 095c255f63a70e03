#include "src/lab/experiment.h"
#include "base/plain_text.h"
#include "src/config/config_toml.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- reading ----

typedef struct {
  const char *path, *key;
  const toml_value *v;
} place;

static status refuse(place p, const char *expected) {
  return REFUSE("%s:%d: %s: expected %s", p.path, p.v->line, p.key, expected);
}

static status read_number(double *out, place p) {
  if (p.v->kind == TOML_INTEGER)
    *out = (double)p.v->integer;
  else if (p.v->kind == TOML_FLOAT)
    *out = p.v->real;
  else
    return refuse(p, "a number");
  return 0;
}

static status read_text(char *out, size_t size, place p) {
  if (p.v->kind != TOML_STRING || !p.v->length || memchr(p.v->text, 0, p.v->length))
    return refuse(p, "a text");
  if (p.v->length >= size) return refuse(p, "a shorter text");
  memcpy(out, p.v->text, p.v->length);
  out[p.v->length] = 0;
  plain_make(out); // it is printed
  return 0;
}

static status read_name(char out[EXPERIMENT_NAME], place p, const char *name) {
  if (!*name || strlen(name) >= EXPERIMENT_NAME) return refuse(p, "a name of at most 47 bytes");
  strcpy(out, name);
  plain_make(out);
  return 0;
}

static status read_input(experiment *e, place p, const char *name) {
  if (e->n_inputs == EXPERIMENT_ENTRIES) return refuse(p, "fewer inputs");
  experiment_input *in = &e->inputs[e->n_inputs++];
  TRY(read_name(in->name, p, name));
  if (p.v->kind == TOML_STRING) return read_text(in->text, sizeof in->text, p);
  in->count = 1;
  if (p.v->kind != TOML_ARRAY) return read_number(in->value, p);
  if (!p.v->count || p.v->count > EXPERIMENT_VALUES) return refuse(p, "1 to 16 numbers");
  in->count = p.v->count;
  for (size_t i = 0; i < in->count; i++) {
    toml_value element;
    config_toml_element(&element, p.v, i);
    TRY(read_number(&in->value[i], (place){p.path, p.key, &element}));
  }
  return 0;
}

// predicts.<figure>.min and .max
static status read_bound(experiment *e, place p, const char *name) {
  char figure[EXPERIMENT_NAME];
  const char *dot = strrchr(name, '.');
  bool is_low = dot && !strcmp(dot, ".min"), is_high = dot && !strcmp(dot, ".max");
  if (!is_low && !is_high) return refuse(p, "predicts.<figure>.min or .max");
  if ((size_t)(dot - name) >= sizeof figure) return refuse(p, "a name of at most 47 bytes");
  snprintf(figure, sizeof figure, "%.*s", (int)(dot - name), name);
  experiment_bound *b = NULL;
  for (size_t i = 0; i < e->n_bounds; i++)
    if (!strcmp(e->bounds[i].figure, figure)) b = &e->bounds[i];
  if (!b) {
    if (e->n_bounds == EXPERIMENT_ENTRIES) return refuse(p, "fewer predictions");
    b = &e->bounds[e->n_bounds++];
    *b = (experiment_bound){.low = -INFINITY, .high = INFINITY};
    TRY(read_name(b->figure, p, figure));
  }
  return read_number(is_low ? &b->low : &b->high, p);
}

static status read_known(experiment *e, place p, const char *name) {
  if (e->n_known == EXPERIMENT_ENTRIES) return refuse(p, "fewer known figures");
  experiment_figure *f = &e->known[e->n_known++];
  TRY(read_name(f->name, p, name));
  return read_number(&f->value, p);
}

static status read_id(experiment *e, place p) {
  double id;
  TRY(read_number(&id, p));
  if (!(id >= 1 && id <= 999) || id != floor(id)) return refuse(p, "the experiment's number");
  e->id = (int)id;
  return 0;
}

static status read_key(experiment *e, place p) {
  static const struct {
    const char *head;
    status (*read)(experiment *e, place p, const char *name);
  } TABLES[] = {{"input.", read_input}, {"predicts.", read_bound}, {"known.", read_known}};
  if (!strcmp(p.key, "id")) return read_id(e, p);
  if (!strcmp(p.key, "name")) return read_text(e->name, sizeof e->name, p);
  if (!strcmp(p.key, "hypothesis")) return read_text(e->hypothesis, sizeof e->hypothesis, p);
  for (size_t i = 0; i < sizeof TABLES / sizeof *TABLES; i++) {
    size_t n = strlen(TABLES[i].head);
    if (!strncmp(p.key, TABLES[i].head, n)) return TABLES[i].read(e, p, p.key + n);
  }
  return refuse(p, "id, name, hypothesis, or a key of [input], [predicts] or [known]");
}

status experiment_read(experiment *out, const char *path, const char *text, size_t length) {
  config_toml *document;
  toml_error error;
  status result = 0;
  memset(out, 0, sizeof *out);
  if (!config_toml_parse(&document, &error, text, length))
    return REFUSE("%s:%d: expected TOML: %s", path, error.line, error.text);
  for (size_t i = 0; i < config_toml_count(document) && !result; i++) {
    toml_value v;
    config_toml_value(&v, document, i);
    result = read_key(out, (place){path, config_toml_key(document, i), &v});
  }
  config_toml_close(document);
  if (result) return result;
  if (!out->id || !out->name[0] || !out->hypothesis[0])
    return REFUSE("%s: expected id, name and hypothesis, found not all of them", path);
  if (!out->n_bounds)
    return REFUSE("%s: expected a table predicts: a claim that predicts nothing cannot fail", path);
  return 0;
}

// ---- inputs ----

const experiment_input *experiment_find_input(const experiment *e, const char *name) {
  for (size_t i = 0; i < e->n_inputs; i++)
    if (!strcmp(e->inputs[i].name, name)) return &e->inputs[i];
  return NULL;
}

status experiment_check_inputs(const experiment *e, const char *const *names, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (!experiment_find_input(e, names[i]))
      return REFUSE("experiment %d: expected input.%s, found none", e->id, names[i]);
  for (size_t i = 0; i < e->n_inputs; i++) {
    bool known = false;
    for (size_t k = 0; k < n; k++) known = known || !strcmp(names[k], e->inputs[i].name);
    if (!known)
      return REFUSE("experiment %d: input.%s: its method reads no such input", e->id, e->inputs[i].name);
  }
  return 0;
}

double experiment_real(const experiment *e, const char *name) {
  const experiment_input *in = experiment_find_input(e, name);
  return in && in->count ? in->value[0] : (double)NAN;
}

int64_t experiment_integer(const experiment *e, const char *name) {
  double x = experiment_real(e, name);
  return x >= 0 && x < 0x1p53 ? (int64_t)x : 0;
}

const char *experiment_text(const experiment *e, const char *name) {
  const experiment_input *in = experiment_find_input(e, name);
  return in ? in->text : "";
}

double experiment_known(const experiment *e, const char *figure) {
  for (size_t i = 0; i < e->n_known; i++)
    if (!strcmp(e->known[i].name, figure)) return e->known[i].value;
  return (double)NAN;
}

// ---- what was found ----

const char *experiment_verdict_name(experiment_verdict v) {
  switch (v) {
  case VERDICT_NONE:
    return "none";
  case VERDICT_REFUTED:
    return "refuted";
  case VERDICT_SUPPORTED:
    return "supported";
  }
  __builtin_unreachable();
}

void experiment_result_close(experiment_result *r) {
  if (!r) return;
  free(r->expert_error);
  free(r->expert_hits);
  r->expert_error = NULL;
  r->expert_hits = NULL;
}

void experiment_add(experiment_result *r, double value, const char *format, ...) {
  va_list args;
  if (r->n_figures < EXPERIMENT_FIGURES) {
    experiment_figure *f = &r->figures[r->n_figures];
    va_start(args, format);
    vsnprintf(f->name, sizeof f->name, format, args);
    va_end(args);
    f->value = value;
    f->of_draws = false;
  }
  r->n_figures++;
}

void experiment_add_of_draws(experiment_result *r, double value, const char *name, const char *end) {
  experiment_add(r, value, "%s_%s", name, end);
  if (r->n_figures <= EXPERIMENT_FIGURES) r->figures[r->n_figures - 1].of_draws = true;
}

double experiment_of_draws(const experiment_result *r, const char *name, const char *end) {
  char whole[2 * EXPERIMENT_NAME];
  snprintf(whole, sizeof whole, "%s_%s", name, end);
  return experiment_figure_of(r, whole);
}

void experiment_note(experiment_result *r, const char *format, ...) {
  va_list args;
  if (r->n_notes == EXPERIMENT_NOTES) return;
  va_start(args, format);
  vsnprintf(r->notes[r->n_notes++], EXPERIMENT_TEXT, format, args);
  va_end(args);
}

double experiment_figure_of(const experiment_result *r, const char *name) {
  size_t n = r->n_figures < EXPERIMENT_FIGURES ? r->n_figures : EXPERIMENT_FIGURES;
  for (size_t i = 0; i < n; i++)
    if (!strcmp(r->figures[i].name, name)) return r->figures[i].value;
  return (double)NAN;
}

bool experiment_bound_holds(const experiment_bound *b, double figure) {
  return figure >= b->low && figure <= b->high;
}

status experiment_judge(experiment_result *r) {
  const experiment *e = r->settings;
  if (r->n_figures > EXPERIMENT_FIGURES)
    return REFUSE("experiment %d: %zu figures, expected at most %d: give it shorter lists", e->id,
                  r->n_figures, EXPERIMENT_FIGURES);
  for (size_t i = 0; i < e->n_known; i++)
    if (isnan(experiment_figure_of(r, e->known[i].name)))
      return REFUSE("experiment %d: known.%s: expected a figure that it measures", e->id, e->known[i].name);
  r->verdict = VERDICT_SUPPORTED;
  for (size_t i = 0; i < e->n_bounds; i++) {
    double figure = experiment_figure_of(r, e->bounds[i].figure);
    if (isnan(figure))
      return REFUSE("experiment %d: predicts.%s: expected a figure that it measures, found none or NaN",
                    e->id, e->bounds[i].figure);
    if (!experiment_bound_holds(&e->bounds[i], figure)) r->verdict = VERDICT_REFUTED;
  }
  return 0;
}

void experiment_bound_text(char *out, size_t size, const experiment *e) {
  size_t at = 0;
  out[0] = 0;
  for (size_t i = 0; i < e->n_bounds && at < size; i++) {
    const experiment_bound *b = &e->bounds[i];
    const char *between = i ? ", " : "";
    if (isfinite(b->low) && isfinite(b->high))
      at += (size_t)snprintf(out + at, size - at, "%s%g <= %s <= %g", between, b->low, b->figure, b->high);
    else if (isfinite(b->low))
      at += (size_t)snprintf(out + at, size - at, "%s%s >= %g", between, b->figure, b->low);
    else
      at += (size_t)snprintf(out + at, size - at, "%s%s <= %g", between, b->figure, b->high);
  }
}
