// The readers and writers of the section `parity`.
#include "src/config/config_value.h"
#include "src/config/parity_mode.h"
#include <stdlib.h>
#include <string.h>

static const char *const MODES[] = {
    [MODE_FREE] = "free", [MODE_FORCED] = "forced", [MODE_TEACHER] = "teacher", [MODE_LOCAL] = "local"};
_Static_assert(sizeof MODES / sizeof *MODES == MODE_COUNT, "a name for each mode");

const char *parity_mode_name(parity_mode mode) {
  return MODES[mode];
}

bool parity_mode_imposes_stream(parity_mode mode) {
  switch (mode) {
  case MODE_FREE:
  case MODE_FORCED:
    return false;
  case MODE_TEACHER:
  case MODE_LOCAL:
    return true;
  }
  __builtin_unreachable();
}

bool parity_mode_imposes_routing(parity_mode mode) {
  switch (mode) {
  case MODE_FREE:
  case MODE_TEACHER:
    return false;
  case MODE_FORCED:
  case MODE_LOCAL:
    return true;
  }
  __builtin_unreachable();
}

// ---- parity.mode ----

static status read_mode(unsigned *modes, const value_key *k, const toml_value *v, const value_origin *from) {
  for (int m = 0; v->kind == TOML_STRING && m < MODE_COUNT; m++)
    if (v->length == strlen(MODES[m]) && !memcmp(v->text, MODES[m], v->length)) {
      if (*modes >> m & 1) return value_refuse(k, v, from, "each mode once");
      *modes |= 1u << m;
      return 0;
    }
  return value_refuse(k, v, from, k->type);
}

status value_read_modes(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  unsigned modes = 0;
  for (size_t i = 0; i < config_toml_elements(v); i++) {
    toml_value element;
    config_toml_element(&element, v, i);
    TRY(read_mode(&modes, k, &element, from));
  }
  if (!modes) return value_refuse(k, v, from, k->type);
  *(unsigned *)field = modes | 1u << MODE_FREE; // digests, rates and texts are those of the free run
  return 0;
}

void value_write_modes(FILE *out, const void *field) {
  unsigned modes = *(const unsigned *)field;
  const char *between = "";
  fputc('[', out);
  for (int m = 0; m < MODE_COUNT; m++) {
    if (!(modes >> m & 1)) continue;
    fprintf(out, "%s\"%s\"", between, MODES[m]);
    between = ", ";
  }
  fputc(']', out);
}

// ---- parity.probes ----

// Vectors of a layer: ids have no distance, and router flips are counted always.
static bool is_compared(probe_point point) {
  const probe_info *info = probe_get(point);
  return info->scope == PROBE_OF_LAYER && !info->is_ids;
}

status value_read_layer_probes(void *field, const value_key *k, const toml_value *v,
                               const value_origin *from) {
  uint32_t points = 0;
  TRY(value_read_probes(&points, k, v, from));
  for (int p = 0; p < PROBE_COUNT; p++) {
    if (!(points >> p & 1) || is_compared((probe_point)p)) continue;
    char place[VALUE_PLACE_BYTES];
    value_place(place, from, v->line);
    return REFUSE("%s: %s: expected probes of a layer that hold numbers, found \"%s\"", place, k->name,
                  probe_get((probe_point)p)->name);
  }
  *(uint32_t *)field = points;
  return 0;
}

// ---- parity.bound ----

static status read_number(double *out, const value_key *k, const toml_value *v, const value_origin *from) {
  if (v->kind != TOML_FLOAT && v->kind != TOML_INTEGER)
    return value_refuse(k, v, from, "number >= 0 as a bound");
  double x = v->kind == TOML_FLOAT ? v->real : (double)v->integer;
  if (!(x >= 0 && x <= 1e300)) return value_refuse(k, v, from, "number >= 0 as a bound");
  *out = x == 0 ? 0 : x;
  return 0;
}

// "ffn_inp-12": the digits after the last hyphen are a layer; no probe's name has a hyphen.
static status read_place(config_bound *out, const value_key *k, const toml_value *v,
                         const value_origin *from) {
  char name[VALUE_SHOWN + 8];
  probe_point point;
  if (v->kind != TOML_STRING) return value_refuse(k, v, from, "string as \"PROBE\" or \"PROBE-LAYER\"");
  value_shorten(name, sizeof name, v->text, v->length);
  *out = (config_bound){BOUND_ANY, BOUND_ANY, 0};
  if (!strcmp(name, "default")) return 0;
  char *hyphen = strrchr(name, '-');
  if (hyphen) {
    size_t digits = strspn(hyphen + 1, "0123456789");
    if (!digits || digits > 9 || hyphen[1 + digits])
      return value_refuse(k, v, from, "a layer's number after \"PROBE-\"");
    out->layer = atol(hyphen + 1);
    *hyphen = 0;
  }
  if (!probe_find(&point, name)) return value_refuse_probe(k, v, from, name);
  if (!is_compared(point)) return value_refuse(k, v, from, "a probe of a layer that holds numbers");
  out->point = (int)point;
  return 0;
}

static status read_bound(bound_list *list, const value_key *k, const toml_value *v,
                         const value_origin *from) {
  toml_value place, number;
  config_bound b;
  if (v->kind != TOML_ARRAY || v->count != 2) return value_refuse(k, v, from, "[\"PROBE\", number]");
  config_toml_element(&place, v, 0);
  config_toml_element(&number, v, 1);
  TRY(read_place(&b, k, &place, from));
  TRY(read_number(&b.bound, k, &number, from));
  for (size_t i = 0; i < list->count; i++)
    if (list->bound[i].point == b.point && list->bound[i].layer == b.layer)
      return value_refuse(k, &place, from, "each probe and layer once");
  list->bound[list->count++] = b;
  return 0;
}

status value_read_bounds(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  bound_list found = {.count = 0};
  if (v->kind != TOML_ARRAY) {
    found.count = 1;
    found.bound[0] = (config_bound){BOUND_ANY, BOUND_ANY, 0};
    if (v->kind != TOML_FLOAT && v->kind != TOML_INTEGER) return value_refuse(k, v, from, k->type);
    TRY(read_number(&found.bound[0].bound, k, v, from));
  } else if (v->count > CONFIG_MAX_BOUNDS)
    return value_refuse(k, v, from, k->type);
  for (size_t i = 0; v->kind == TOML_ARRAY && i < v->count; i++) {
    toml_value element;
    config_toml_element(&element, v, i);
    TRY(read_bound(&found, k, &element, from));
  }
  *(bound_list *)field = found;
  return 0;
}

void value_write_bounds(FILE *out, const void *field) {
  const bound_list *list = field;
  fputc('[', out);
  for (size_t i = 0; i < list->count; i++) {
    const config_bound *b = &list->bound[i];
    fprintf(out, "%s[\"%s", i ? ", " : "",
            b->point == BOUND_ANY ? "default" : probe_get((probe_point)b->point)->name);
    if (b->layer != BOUND_ANY) fprintf(out, "-%lld", (long long)b->layer);
    fprintf(out, "\", %.17g]", b->bound);
  }
  fputc(']', out);
}
