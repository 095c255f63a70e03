#include "src/report/json_tree.h"
#include "base/whole_file.h"
#include <errno.h>
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

status json_tree_write(const char *dir, const char *name, branch root) {
  whole_file file = {.f = NULL};
  status result;
  if (*root.bad || !root.node) TRY_DONE(result, FAIL("%s/%s: cannot allocate it", dir, name));
  TRY_DONE(result, whole_file_open(&file, dir, name));
  if (json_dumpf(root.node, file.f, JSON_INDENT(1) | JSON_REAL_PRECISION(17)) || fputc('\n', file.f) == EOF)
    TRY_DONE(result, FAIL("%s/%s: cannot be written: %s", dir, name, strerror(errno)));
  TRY_DONE(result, whole_file_sync(&file));
  TRY_DONE(result, whole_file_name(&file));
  result = whole_file_sync_dir(dir);
done:
  whole_file_abandon(&file);
  json_decref(root.node);
  return result;
}
