// The readers and writers of the section `bisect`.
#include "src/config/config_value.h"
#include <string.h>

status value_read_activations(void *field, const value_key *k, const toml_value *v,
                              const value_origin *from) {
  char name[VALUE_SHOWN + 8];
  probe_point point;
  if (v->kind != TOML_STRING) return value_refuse(k, v, from, k->type);
  value_shorten(name, sizeof name, v->text, v->length);
  if (strcmp(name, "uniform") && !probe_find(&point, name)) return value_refuse_probe(k, v, from, name);
  return value_read_text(field, k, v, from);
}

static const char *const KV_CHOICES[] = {
    [KV_CHOICE_F16] = "f16", [KV_CHOICE_F32] = "f32", [KV_CHOICE_SAME] = ""};

status value_read_kv_choice(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  for (int i = 0; v->kind == TOML_STRING && i <= KV_CHOICE_SAME; i++)
    if (v->length == strlen(KV_CHOICES[i]) && !memcmp(v->text, KV_CHOICES[i], v->length)) {
      *(kv_choice *)field = (kv_choice)i;
      return 0;
    }
  return value_refuse(k, v, from, k->type);
}

void value_write_kv_choice(FILE *out, const void *field) {
  fprintf(out, "\"%s\"", KV_CHOICES[*(const kv_choice *)field]);
}

status value_read_any_arm_or_empty(void *field, const value_key *k, const toml_value *v,
                                   const value_origin *from) {
  arm_choice arm;
  bool mixed = v->kind == TOML_STRING && arm_choice_parse(&arm, v->text, v->length) == ARM_NAME_GOOD &&
               arm.kind == ARM_MIXED;
  if (!mixed) return value_read_arm_or_empty(field, k, v, from);
  *(arm_choice *)field = arm;
  return 0;
}
