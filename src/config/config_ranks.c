// The lists of the section `ranks`, which have as many entries as there are ranks.
#include "base/memory.h"
#include "src/config/config_value.h"
#include <stdlib.h>

status value_read_rank_arms(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  rank_arm_list *list = field, found = {.count = 0};
  if (v->kind != TOML_ARRAY) return value_refuse(k, v, from, k->type);
  TRY(TAKE(&found.arm, v->count, k->name));
  for (; found.count < v->count; found.count++) {
    toml_value element;
    config_toml_element(&element, v, found.count);
    status result = value_read_auto_arm(&found.arm[found.count], k, &element, from);
    if (!result) continue;
    free(found.arm);
    return result;
  }
  free(list->arm);
  *list = found;
  return 0;
}

status value_read_ranks(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  rank_list *list = field, found = {.count = 0};
  if (v->kind != TOML_ARRAY) return value_refuse(k, v, from, k->type);
  if (v->count) TRY(value_read_ids(&found.id, &found.count, k, v, from));
  free(list->id);
  *list = found;
  return 0;
}

void value_write_ranks(FILE *out, const void *field) {
  const rank_list *list = field;
  value_write_ids(out, list->id, list->count);
}

void value_write_rank_arms(FILE *out, const void *field) {
  const rank_arm_list *list = field;
  value_write_arm_names(out, list->arm, list->count);
}
