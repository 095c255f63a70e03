// gguf_file: one file of a model: maps it, reads its header and tensor table.
//
// Owns: the map; the checks that make every tensor's bytes lie inside its file, apart from all others.
// Independent of: the meaning of keys (except general.alignment) and of tensors; split files.
// Invariant: only header bytes are read; no tensor byte is touched. The memory allocated is bounded by the
// size of the file, whatever its counts say.
#pragma once
#include "base/name_table.h"
#include "base/message_list.h"
#include "src/model/gguf_value.h"
#include <time.h>

typedef struct {
  char *path;
  int descriptor; // kept open: it shows a change of this file, even if the path names another one by now
  const uint8_t *map;
  size_t bytes;
  struct timespec written; // modification time when the file was mapped
  size_t header_bytes;     // up to the end of the tensor table
  gguf_key *keys;
  size_t n_keys;
  name_table key_names;
  gguf_tensor *tensors; // taken over by the set once all its files are open
  size_t n_tensors;
  char *names; // every key's and tensor's name, NUL-terminated
  message_list
      *refusals; // takes the errors after which the rest can still be shown; NULL: each ends the opening
} gguf_file;

// FILE is zeroed before but for `refusals`; after an error too, gguf_file_close releases what there is. With
// `refusals` a tensor may have no type that is known, no bytes and no data.
status gguf_file_open(gguf_file *file, const char *path);
void gguf_file_close(gguf_file *file);
bool gguf_file_changed(const gguf_file *file); // since it was mapped

const gguf_key *gguf_file_key(const gguf_file *file, const char *name); // NULL: none of that name
status gguf_file_u64(uint64_t *out, const gguf_file *file, const char *name, uint64_t fallback);
