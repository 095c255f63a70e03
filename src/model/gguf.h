// gguf: reads GGUF version 2 and 3 files, whole or split, without trusting one byte of them.
//
// Owns: the mapping of the files and the index of keys and tensors.
// Independent of: what the keys and tensors mean (architecture.h says that), ranks, paths.
// Invariant: every pointer that it hands out lies inside a mapped file, with the bytes that the shape needs.
// Source: the GGUF specification in ggml's docs/gguf.md.
#pragma once
#include "base/message_list.h"
#include "src/model/gguf_types.h"

typedef struct gguf gguf;

// Opens PATH, and where it is one of a split set (name-00001-of-0000N.gguf) all its siblings. After an
// error nothing stays open. The error names the file, the key or tensor, what was expected and what was
// found.
status gguf_open(gguf **out, const char *path);
// The same to look into the file: what would end gguf_open is added to `refusals` as long as keys and tensors
// can still be listed. Such a gguf may have tensors without type or data and lack files of its set.
status gguf_open_to_show(gguf **out, const char *path, message_list *refusals);
void gguf_close(gguf *g); // takes NULL

const char *gguf_path(const gguf *g);     // as given to gguf_open
uint64_t gguf_header_hash(const gguf *g); // XXH3 over every file's header bytes (keys, tensor table) and size
size_t gguf_file_count(const gguf *g);
const char *gguf_file_path(const gguf *g, size_t file); // NULL: missing, where it was opened to be shown
size_t gguf_file_bytes(const gguf *g, size_t file);
// The path of a file that was written to or truncated since it was opened; NULL: none was. A write through
// another process's mapping shows only once the system updates the file's time.
const char *gguf_changed_file(const gguf *g);
size_t gguf_tensor_count(const gguf *g);
const gguf_tensor *gguf_tensor_at(const gguf *g, size_t i);           // in file order
const gguf_tensor *gguf_tensor_find(const gguf *g, const char *name); // NULL: none; hashed, O(1)

// Values of keys. Each fails, naming file and key, where the key is missing or its type cannot be converted
// without loss (for u64 any integer type with a value of 0 or more; for f64 f32 or f64). Strings are views
// into the file.
bool gguf_key_exists(const gguf *g, const char *key);
bool gguf_key_is_array(const gguf *g, const char *key);
status gguf_key_u64(const gguf *g, const char *key, uint64_t *out);
status gguf_key_f64(const gguf *g, const char *key, double *out);
status gguf_key_bool(const gguf *g, const char *key, bool *out);
status gguf_key_string(const gguf *g, const char *key, gguf_string *out);
// Arrays of strings, and of i32 or u32 below 2^31. *out[*count]: the caller frees; NULL and 0 after an error.
status gguf_key_array_strings(const gguf *g, const char *key, gguf_string **out, size_t *count);
status gguf_key_array_i32(const gguf *g, const char *key, int32_t **out, size_t *count);

// Element i of a number or of an array of numbers (a bool is 0 or 1), as a double: false where there is none.
bool gguf_key_number(const gguf *g, const char *key, size_t i, double *out);
size_t gguf_key_elements(const gguf *g, const char *key); // of an array; 1 of another value; 0: no such key

// For `inspect`: every key in file order, its value as short readable text (arrays as "[string x 151936]").
size_t gguf_key_count(const gguf *g);
const char *gguf_key_name(const gguf *g, size_t i);
void gguf_key_describe(const gguf *g, size_t i, char *out, size_t size);
