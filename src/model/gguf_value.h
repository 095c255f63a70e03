// gguf_value: the value of a GGUF's key: its extent in the file, and its conversion to C types.
//
// Owns: the value types of the format and the conversions that lose nothing.
// Independent of: what a key means, and where a file keeps its keys.
// Invariant: gguf_value_read has walked every value to its end before any other function reads it, so these
// cannot leave the map.
#pragma once
#include "src/model/gguf_reader.h"

typedef enum { // numbers of the GGUF specification
  VALUE_U8 = 0,
  VALUE_I8 = 1,
  VALUE_U16 = 2,
  VALUE_I16 = 3,
  VALUE_U32 = 4,
  VALUE_I32 = 5,
  VALUE_F32 = 6,
  VALUE_BOOL = 7,
  VALUE_STRING = 8,
  VALUE_ARRAY = 9,
  VALUE_U64 = 10,
  VALUE_I64 = 11,
  VALUE_F64 = 12,
} value_type;

typedef struct {
  const char *file; // its path
  const char *name; // NUL-terminated; given by the file that holds the key
  gguf_string raw_name;
  uint32_t type;        // a value_type; checked
  uint32_t element;     // of an array; otherwise equal to type
  uint64_t count;       // elements of an array; otherwise 1
  const uint8_t *value; // first element, in the map, not aligned; a string starts with its 8-byte length
} gguf_key;

status gguf_value_read(gguf_key *out, gguf_reader *r); // all but its `name`

// As gguf_key_* of gguf.h, of a key that is there.
status gguf_value_u64(uint64_t *out, const gguf_key *key);
status gguf_value_f64(double *out, const gguf_key *key);
status gguf_value_bool(bool *out, const gguf_key *key);
status gguf_value_string(gguf_string *out, const gguf_key *key);
status gguf_value_strings(gguf_string **out, size_t *count, const gguf_key *key);
status gguf_value_i32s(int32_t **out, size_t *count, const gguf_key *key);
// Element i of it, or of an array, as a double; false: beyond its end, or no number.
bool gguf_value_number(double *out, const gguf_key *key, size_t i);
void gguf_value_describe(char *out, size_t size, const gguf_key *key);
