// The readers and writers of the section `trace`.
#include "src/config/config_value.h"
#include "src/config/edit_distance.h"
#include <stdlib.h>

status value_refuse_probe(const value_key *k, const toml_value *v, const value_origin *from,
                          const char *name) {
  char place[VALUE_PLACE_BYTES];
  probe_point nearest = 0;
  for (int p = 1; p < PROBE_COUNT; p++)
    if (edit_distance(name, probe_get((probe_point)p)->name) < edit_distance(name, probe_get(nearest)->name))
      nearest = (probe_point)p;
  value_place(place, from, v->line);
  return REFUSE("%s: %s: unknown probe \"%s\": did you mean \"%s\"?", place, k->name, name,
                probe_get(nearest)->name);
}

static status read_probe(uint32_t *points, const value_key *k, const toml_value *v,
                         const value_origin *from) {
  char name[VALUE_SHOWN + 8];
  probe_point point;
  if (v->kind != TOML_STRING) return value_refuse(k, v, from, "string as the name of a probe");
  value_shorten(name, sizeof name, v->text, v->length);
  if (!probe_find(&point, name)) return value_refuse_probe(k, v, from, name);
  if (*points >> point & 1) return value_refuse(k, v, from, "each probe once");
  *points |= 1u << point;
  return 0;
}

status value_read_probes(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  uint32_t points = 0;
  for (size_t i = 0; i < config_toml_elements(v); i++) {
    toml_value element;
    config_toml_element(&element, v, i);
    TRY(read_probe(&points, k, &element, from));
  }
  *(uint32_t *)field = points;
  return 0;
}

void value_write_probes(FILE *out, const void *field) {
  uint32_t points = *(const uint32_t *)field;
  const char *between = "";
  fputc('[', out);
  for (int p = 0; p < PROBE_COUNT; p++) {
    if (!(points >> p & 1)) continue;
    fprintf(out, "%s\"%s\"", between, probe_get((probe_point)p)->name);
    between = ", ";
  }
  fputc(']', out);
}

status value_read_layers(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  struct config_trace *trace = field;
  int32_t *layers = NULL;
  size_t n = 0;
  if (config_toml_elements(v)) TRY(value_read_ids(&layers, &n, k, v, from));
  free(trace->layers);
  trace->layers = layers;
  trace->n_layers = n;
  return 0;
}

void value_write_layers(FILE *out, const void *field) {
  const struct config_trace *trace = field;
  value_write_ids(out, trace->layers, trace->n_layers);
}
