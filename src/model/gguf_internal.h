// gguf_internal: what gguf.c (the set of files), gguf_file.c (one file) and gguf_keys.c (values) share.
//
// Owns: the reader over a header's bytes, and how a file and its keys are held.
// Refuses to know: anything that src/model/gguf.h does not promise; only those three sources include it.
// Invariant: a reader never points beyond its file, and each number from the file is checked before use.
#pragma once
#include "src/model/gguf.h"
#include <time.h>

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
  const char *name; // NUL-terminated, in the file's `names`
  gguf_string raw_name;
  uint32_t type;        // a value_type; checked
  uint32_t element;     // of an array; otherwise equal to type
  uint64_t count;       // elements of an array; otherwise 1
  const uint8_t *value; // first element, in the map, not aligned; a string begins with its 8-byte length
} gguf_key;

typedef struct { // open addressing, at most half full
  struct name_slot {
    const char *name; // NULL: free
    size_t index;
  } * slot;
  size_t mask;
} name_table;

typedef struct {
  char *path;
  int descriptor; // kept open: it tells of a change, whatever the path leads to by then
  const uint8_t *map;
  size_t bytes;
  struct timespec written; // the last time, when the file was mapped
  size_t header_bytes;     // up to the end of the tensor table
  gguf_key *keys;
  size_t n_keys;
  name_table key_names;
  gguf_tensor *tensors; // moved into the model's one array once all files are open
  size_t n_tensors;
  char *names; // every key's and tensor's name, NUL-terminated
} gguf_file;

struct gguf {
  char *path;
  gguf_file *files;
  size_t n_files;
  gguf_tensor *tensors;
  size_t n_tensors;
  name_table tensor_names;
  uint64_t header_hash;
};

typedef struct {
  const char *path;
  const uint8_t *at;
  const uint8_t *map;
  size_t left;
  char where[160]; // the part of the header that is being read: for faults
} gguf_reader;

// Takes `bytes` bytes, of `what`, off the reader. Faults name file, place, what was wanted and what is left.
status gguf_read_bytes(const uint8_t **out, gguf_reader *r, uint64_t bytes, const char *what);
status gguf_read_u32(uint32_t *out, gguf_reader *r, const char *what);
status gguf_read_u64(uint64_t *out, gguf_reader *r, const char *what);
status gguf_read_string(gguf_string *out, gguf_reader *r, const char *what);
// A key's or tensor's name: 1 to `limit` bytes of printable ASCII. Sets r->where to `kind "name"`.
status gguf_read_name(gguf_string *out, gguf_reader *r, const char *kind, size_t limit);

// FILE is zeroed; after a fault it still is to be closed.
status gguf_file_open(gguf_file *file, const char *path);
bool gguf_file_changed(const gguf_file *file);
void gguf_file_close(gguf_file *file);

status name_table_open(name_table *t, size_t count);
void name_table_close(name_table *t);
bool name_table_find(size_t *index, const name_table *t, const char *name);
// Adds the name, or gives false and the index of the one that is there already.
bool name_table_add(size_t *index_there, name_table *t, const char *name, size_t index);

status gguf_read_key(gguf_key *out, gguf_reader *r); // all but its `name`
// As gguf_key_u64 for any file of a set; FALLBACK where the key is missing.
status gguf_file_u64(uint64_t *out, const gguf_file *file, const char *key, uint64_t fallback);
