#include "src/report/json_tree.h"
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

json_t *json_tree_repair(const char *text) {
  static const char REPLACEMENT[] = "\xef\xbf\xbd";
  char *fixed;
  size_t size, length = strlen(text);
  FILE *f = open_memstream(&fixed, &size);
  if (!f) return NULL;
  for (size_t i = 0; i < length;) {
    utf8proc_int32_t code;
    utf8proc_ssize_t n =
        utf8proc_iterate((const utf8proc_uint8_t *)text + i, (utf8proc_ssize_t)(length - i), &code);
    fwrite(n > 0 ? text + i : REPLACEMENT, 1, n > 0 ? (size_t)n : 3, f);
    i += n > 0 ? (size_t)n : 1;
  }
  json_t *result = fclose(f) ? NULL : json_stringn(fixed, size);
  free(fixed);
  return result;
}
