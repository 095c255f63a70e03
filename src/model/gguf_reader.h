// gguf_reader: reads numbers, texts and names from the bytes of a GGUF's header, one after another.
//
// Independent of: what is read, and where the bytes come from.
// Invariant: it never reads or points beyond its bytes, whatever a length in them says.
#pragma once
#include "base/status.h"
#include "src/model/gguf_types.h"

typedef struct {
  const char *path;
  const uint8_t *at;
  const uint8_t *map; // the file's first byte
  size_t left;
  char where[160]; // the part of the header that is being read, for errors
} gguf_reader;

// *out: a view of the next `bytes` bytes. `what` stands in the error, with file, part, and how many are left.
status gguf_read_bytes(const uint8_t **out, gguf_reader *r, uint64_t bytes, const char *what);
status gguf_read_u32(uint32_t *out, gguf_reader *r, const char *what);
status gguf_read_u64(uint64_t *out, gguf_reader *r, const char *what);
status gguf_read_string(gguf_string *out, gguf_reader *r, const char *what);
// A key's or tensor's name: 1 to `limit` bytes of printable ASCII. Sets r->where to `kind "name"`.
status gguf_read_name(gguf_string *out, gguf_reader *r, const char *kind, size_t limit);
