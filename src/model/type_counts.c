#include "src/model/type_counts.h"
#include <stdio.h>
#include <string.h>

void type_counts_add(type_counts *c, const type_info *type) {
  int i = 0;
  while (i < c->n && c->type[i] != type) i++;
  if (i == c->n) c->type[c->n++] = type;
  c->count[i]++;
}

void type_counts_text(char *out, size_t size, const type_counts *c) {
  out[0] = 0;
  for (int i = 0; i < c->n; i++) {
    size_t used = strlen(out);
    snprintf(out + used, size - used, "%s%s %d", i ? ", " : "", c->type[i]->name, c->count[i]);
  }
}
