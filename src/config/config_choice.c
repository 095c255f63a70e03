// Readers and writers of keys that take one of a few names (how something is printed), and of run.stop.
#include "src/config/config_value.h"
#include "base/memory.h"
#include <stdlib.h>
#include <string.h>

static const char *const FORMATS[] = {[BENCH_MD] = "md", [BENCH_CSV] = "csv", [BENCH_JSON] = "json"};
static const char *const OUTPUTS[] = {[OUTPUT_TEXT] = "text", [OUTPUT_JSON] = "json"};
static const char *const ATTENTIONS[] = {
    [ATTENTION_AUTO] = "auto", [ATTENTION_REPLICATED] = "replicated", [ATTENTION_SHARDED] = "sharded"};
#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

static status read_choice(int *out, const value_key *k, const toml_value *v, const value_origin *from,
                          const char *const *names, int n) {
  for (*out = 0; v->kind == TOML_STRING && *out < n; ++*out)
    if (v->length == strlen(names[*out]) && !memcmp(v->text, names[*out], v->length)) return 0;
  return value_refuse(k, v, from, k->type);
}

status value_read_format(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  int choice;
  TRY(read_choice(&choice, k, v, from, FORMATS, COUNT(FORMATS)));
  *(bench_format *)field = (bench_format)choice;
  return 0;
}

void value_write_format(FILE *out, const void *field) {
  value_write_string(out, FORMATS[*(const bench_format *)field]);
}

status value_read_output(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  int choice;
  TRY(read_choice(&choice, k, v, from, OUTPUTS, COUNT(OUTPUTS)));
  *(output_format *)field = (output_format)choice;
  return 0;
}

void value_write_output(FILE *out, const void *field) {
  value_write_string(out, OUTPUTS[*(const output_format *)field]);
}

status value_read_attention(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  int choice;
  TRY(read_choice(&choice, k, v, from, ATTENTIONS, COUNT(ATTENTIONS)));
  *(attention_placement *)field = (attention_placement)choice;
  return 0;
}

void value_write_attention(FILE *out, const void *field) {
  value_write_string(out, ATTENTIONS[*(const attention_placement *)field]);
}

// ---- run.stop ----

void value_clear_stop(void *field) {
  struct config_stop *stop = field;
  for (size_t i = 0; i < stop->n_texts; i++) free(stop->texts[i]);
  free(stop->texts);
  free(stop->ids);
  *stop = (struct config_stop){.n_ids = 0};
}

static status read_stop(struct config_stop *stop, const value_key *k, const toml_value *v,
                        const value_origin *from) {
  if (v->kind == TOML_STRING) {
    TRY(value_copy_string(&stop->texts[stop->n_texts], k, v, from, false));
    stop->n_texts++;
    return 0;
  }
  if (v->kind != TOML_INTEGER || v->integer < 0 || v->integer > INT32_MAX)
    return value_refuse(k, v, from, "a token id or a string");
  stop->ids[stop->n_ids++] = (int32_t)v->integer;
  return 0;
}

status value_read_stop(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  struct config_stop stop = {.n_ids = 0};
  size_t n = config_toml_elements(v);
  status result;
  TRY_DONE(result, TAKE(&stop.ids, n, k->name));
  TRY_DONE(result, TAKE(&stop.texts, n, k->name));
  for (size_t i = 0; i < n; i++) {
    toml_value element;
    config_toml_element(&element, v, i);
    TRY_DONE(result, read_stop(&stop, k, &element, from));
  }
  value_clear_stop(field);
  *(struct config_stop *)field = stop;
  return 0;
done:
  value_clear_stop(&stop);
  return result;
}

void value_write_stop(FILE *out, const void *field) {
  const struct config_stop *stop = field;
  const char *between = "";
  fputc('[', out);
  for (size_t i = 0; i < stop->n_ids; i++, between = ", ") fprintf(out, "%s%d", between, stop->ids[i]);
  for (size_t i = 0; i < stop->n_texts; i++, between = ", ") {
    fputs(between, out);
    value_write_string(out, stop->texts[i]);
  }
  fputc(']', out);
}
