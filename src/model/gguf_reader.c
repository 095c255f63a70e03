#include "src/model/gguf_reader.h"
#include <stdio.h>
#include <string.h>

status gguf_read_bytes(const uint8_t **out, gguf_reader *r, uint64_t bytes, const char *what) {
  *out = r->at;
  if (bytes > r->left)
    return FAIL(
        "%s: %s: %s: expected %llu bytes at byte %zu of the file, found %zu (truncated file or false length)",
        r->path, r->where, what, (unsigned long long)bytes, (size_t)(r->at - r->map), r->left);
  r->at += bytes;
  r->left -= (size_t)bytes;
  return 0;
}

status gguf_read_u32(uint32_t *out, gguf_reader *r, const char *what) {
  const uint8_t *at;
  TRY(gguf_read_bytes(&at, r, sizeof *out, what));
  memcpy(out, at, sizeof *out);
  return 0;
}

status gguf_read_u64(uint64_t *out, gguf_reader *r, const char *what) {
  const uint8_t *at;
  TRY(gguf_read_bytes(&at, r, sizeof *out, what));
  memcpy(out, at, sizeof *out);
  return 0;
}

status gguf_read_string(gguf_string *out, gguf_reader *r, const char *what) {
  uint64_t length;
  const uint8_t *text;
  TRY(gguf_read_u64(&length, r, what));
  TRY(gguf_read_bytes(&text, r, length, what));
  *out = (gguf_string){(const char *)text, (size_t)length};
  return 0;
}

status gguf_read_name(gguf_string *out, gguf_reader *r, const char *kind, size_t limit) {
  gguf_string name;
  TRY(gguf_read_string(&name, r, "name"));
  if (name.length < 1 || name.length > limit)
    return FAIL("%s: %s: name of %zu bytes, expected 1 to %zu", r->path, r->where, name.length, limit);
  for (size_t i = 0; i < name.length; i++) {
    unsigned byte = (unsigned char)name.text[i];
    if (byte < 0x20 || byte > 0x7e)
      return FAIL("%s: %s: byte %zu of its name is 0x%02x, expected printable ASCII", r->path, r->where, i,
                  byte);
  }
  snprintf(r->where, sizeof r->where, "%s \"%.*s\"", kind, (int)(name.length < 100 ? name.length : 100),
           name.text);
  *out = name;
  return 0;
}
