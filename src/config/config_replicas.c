// config_replicas: experts.replicas: how many experts a rank holds beyond its own in each layer, or the bytes
// that these may take on it.
#include "src/config/config_types.h"
#include "src/config/config_value.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const struct {
  const char *name;
  uint64_t bytes;
} UNITS[] = {{"TiB", (uint64_t)1 << 40},
             {"GiB", (uint64_t)1 << 30},
             {"MiB", (uint64_t)1 << 20},
             {"KiB", (uint64_t)1 << 10},
             {"B", 1}}; // largest first
enum { N_UNITS = sizeof UNITS / sizeof UNITS[0] };

// "2 GiB", "1.5GiB": at least one byte. False: it is no such text.
static bool read_bytes(uint64_t *out, const char *text, size_t length) {
  char copy[32];
  if (length >= sizeof copy || memchr(text, 0, length)) return false;
  memcpy(copy, text, length);
  copy[length] = 0;
  size_t digits = strspn(copy, "0123456789."); // no sign, exponent, hexadecimal or "inf"
  char *end;
  double number = strtod(copy, &end);
  if (!digits || end != copy + digits) return false;
  end += strspn(end, " ");
  for (int i = 0; i < N_UNITS; i++) {
    if (strcmp(end, UNITS[i].name)) continue;
    double bytes = number * (double)UNITS[i].bytes;
    if (!(bytes >= 1 && bytes < 0x1p62)) return false;
    *out = (uint64_t)bytes;
    return true;
  }
  return false;
}

status value_read_replicas(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  replica_limit limit = {0, 0};
  bool good = v->kind == TOML_INTEGER && (double)v->integer >= k->low && (double)v->integer <= k->high;
  if (good) limit.experts = v->integer;
  if (v->kind == TOML_STRING) good = read_bytes(&limit.bytes, v->text, v->length);
  if (!good) return value_refuse(k, v, from, k->type);
  *(replica_limit *)field = limit;
  return 0;
}

void value_write_replicas(FILE *out, const void *field) {
  const replica_limit *limit = field;
  int i = 0;
  if (!limit->bytes) {
    fprintf(out, "%" PRId64, limit->experts);
    return;
  }
  while (limit->bytes % UNITS[i].bytes) i++;
  fprintf(out, "\"%" PRIu64 " %s\"", limit->bytes / UNITS[i].bytes, UNITS[i].name);
}
