#include "src/model/gguf_file.h"
#include "base/mapped_files.h"
#include "base/memory.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "GGUF values are read as they lie in the file");

enum {
  MAGIC_BYTES = 4,
  TENSOR_NAME_LIMIT = 65535,                  // the specification says 64, files need not
  KEY_LEAST_BYTES = 8 + 1 + 4 + 1,            // name length, name, type, value
  TENSOR_LEAST_BYTES = 8 + 1 + 4 + 8 + 4 + 8, // name length, name, n_dims, one dimension, type, offset
  DEFAULT_ALIGNMENT = 32,
  LEAST_ALIGNMENT = 8, // the specification asks for a multiple of 8, which every block type can live with
  MOST_ALIGNMENT = 1 << 20,
  GGML_TYPE_NUMBERS = 128, // ggml's numbers of types lie far below
};

static status file_map(gguf_file *file) {
  // O_NONBLOCK: a named pipe without a writer must be refused, not waited for.
  file->descriptor = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file->descriptor < 0) return FAIL("%s: cannot be opened: %s", file->path, strerror(errno));
  struct stat info;
  if (fstat(file->descriptor, &info)) return FAIL("%s: cannot be examined: %s", file->path, strerror(errno));
  if (S_ISDIR(info.st_mode)) return FAIL("%s: expected a GGUF file, found a directory", file->path);
  if (!S_ISREG(info.st_mode))
    return FAIL("%s: expected a GGUF file, found something that is not a regular file", file->path);
  if (info.st_size == 0) return FAIL("%s: expected a GGUF file, found an empty file", file->path);
  void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, file->descriptor, 0);
  if (map == MAP_FAILED)
    return FAIL("%s: cannot be mapped (%zu bytes): %s", file->path, (size_t)info.st_size, strerror(errno));
  mapped_files_add(map, (size_t)info.st_size, file->path);
  file->map = map;
  file->bytes = (size_t)info.st_size;
  file->written = info.st_mtim;
  return 0;
}

const gguf_key *gguf_file_key(const gguf_file *file, const char *name) {
  size_t index;
  return name_table_find(&index, &file->key_names, name, strlen(name)) ? &file->keys[index] : NULL;
}

status gguf_file_u64(uint64_t *out, const gguf_file *file, const char *name, uint64_t fallback) {
  const gguf_key *key = gguf_file_key(file, name);
  *out = fallback;
  return key ? gguf_value_u64(out, key) : 0;
}

bool gguf_file_changed(const gguf_file *file) {
  struct stat now;
  return fstat(file->descriptor, &now) || (size_t)now.st_size != file->bytes ||
         now.st_mtim.tv_sec != file->written.tv_sec || now.st_mtim.tv_nsec != file->written.tv_nsec;
}

static status read_version(gguf_reader *r) {
  const uint8_t *magic;
  uint32_t version;
  TRY(gguf_read_bytes(&magic, r, MAGIC_BYTES, "magic"));
  if (memcmp(magic, "GGUF", MAGIC_BYTES) != 0)
    return FAIL("%s: expected the magic bytes 47 47 55 46 (\"GGUF\"), found %02x %02x %02x %02x", r->path,
                magic[0], magic[1], magic[2], magic[3]);
  TRY(gguf_read_u32(&version, r, "version"));
  if (version == 2 || version == 3) return 0;
  if (version && !(version & 0xffff))
    return FAIL("%s: a big-endian GGUF file (its version reads 0x%08x); expected little-endian", r->path,
                version);
  return FAIL("%s: expected GGUF version 2 or 3, found %u", r->path, version);
}

static status read_count(size_t *out, gguf_reader *r, const char *what, size_t least_bytes) {
  uint64_t count;
  TRY(gguf_read_u64(&count, r, what));
  if (count > r->left / least_bytes)
    return FAIL("%s: header: %s %llu is too large: the %zu bytes left hold at most %zu", r->path, what,
                (unsigned long long)count, r->left, r->left / least_bytes);
  *out = (size_t)count;
  return 0;
}

// The arrays grow with what was read, because a count in a file may be wrong by billions.
static status read_keys(gguf_file *file, gguf_reader *r, size_t count) {
  size_t capacity = 0;
  for (size_t i = 0; i < count; i++) {
    TRY(memory_grow((void **)&file->keys, &capacity, i, sizeof *file->keys, "keys"));
    snprintf(r->where, sizeof r->where, "key %zu of %zu", i + 1, count);
    TRY(gguf_value_read(&file->keys[i], r));
    file->n_keys = i + 1;
  }
  return 0;
}

static status read_dims(gguf_tensor *t, gguf_reader *r) {
  uint32_t n_dims;
  TRY(gguf_read_u32(&n_dims, r, "number of dimensions"));
  if (n_dims < 1 || n_dims > GGUF_MAX_DIMS)
    return FAIL("%s: %s: expected 1 to %d dimensions, found %u", r->path, r->where, GGUF_MAX_DIMS, n_dims);
  t->n_dims = (int)n_dims;
  for (int i = 0; i < GGUF_MAX_DIMS; i++) t->dim[i] = 1;
  for (int i = 0; i < t->n_dims; i++) {
    uint64_t dim;
    TRY(gguf_read_u64(&dim, r, "dimension"));
    if (dim < 1 || dim > INT64_MAX)
      return FAIL("%s: %s: dimension %d is %lld, expected at least 1", r->path, r->where, i, (long long)dim);
    t->dim[i] = (int64_t)dim;
  }
  return 0;
}

static status size_tensor(gguf_tensor *t, const gguf_reader *r) {
  if ((uint64_t)t->dim[0] % t->type->elements)
    return FAIL("%s: %s: expected rows of a multiple of %zu elements (%s), found %lld", r->path, r->where,
                t->type->elements, t->type->name, (long long)t->dim[0]);
  size_t bytes = (size_t)t->dim[0] / t->type->elements;
  bool fits = size_mul(&bytes, bytes, t->type->bytes);
  for (int i = 1; i < GGUF_MAX_DIMS; i++) fits = fits && size_mul(&bytes, bytes, (size_t)t->dim[i]);
  if (!fits)
    return FAIL("%s: %s: its shape %lld x %lld x %lld x %lld overflows", r->path, r->where,
                (long long)t->dim[0], (long long)t->dim[1], (long long)t->dim[2], (long long)t->dim[3]);
  t->bytes = bytes;
  return 0;
}

// Every type that the program computes with, as the table of types has them.
static status refuse_type(const gguf_reader *r, uint32_t type) {
  char known[256] = "";
  for (uint32_t i = 0; i < GGML_TYPE_NUMBERS; i++) {
    const type_info *t = type_find(i);
    size_t used = strlen(known);
    if (t) snprintf(known + used, sizeof known - used, "%s%s", used ? ", " : "", t->name);
  }
  return FAIL("%s: %s: expected one of %s, found %s", r->path, r->where, known, type_name_any(type));
}

// All but what needs the end of the table: name, data, and the offset is still relative to the data section.
static status read_tensor(gguf_tensor *t, gguf_string *name, gguf_reader *r, message_list *refusals) {
  TRY(gguf_read_name(name, r, "tensor", TENSOR_NAME_LIMIT));
  TRY(read_dims(t, r));
  TRY(gguf_read_u32(&t->type_number, r, "type"));
  t->type = type_find(t->type_number);
  status usable = t->type ? size_tensor(t, r) : refuse_type(r, t->type_number);
  if (usable) t->type = NULL;
  TRY(message_list_take_error(refusals, usable));
  return gguf_read_u64(&t->offset, r, "offset");
}

static status read_tensors(gguf_file *file, gguf_string **names, gguf_reader *r, size_t count) {
  size_t capacity = 0, name_capacity = 0;
  for (size_t i = 0; i < count; i++) {
    TRY(memory_grow((void **)&file->tensors, &capacity, i, sizeof *file->tensors, "tensors"));
    TRY(memory_grow((void **)names, &name_capacity, i, sizeof **names, "tensor names"));
    snprintf(r->where, sizeof r->where, "tensor %zu of %zu", i + 1, count);
    TRY(read_tensor(&file->tensors[i], &(*names)[i], r, file->refusals));
    file->tensors[i].file = file->path;
    file->n_tensors = i + 1;
  }
  return 0;
}

static const char *name_store(char **at, gguf_string name) {
  char *stored = *at; // the byte after the name is 0 from memory_take
  memcpy(stored, name.text, name.length);
  *at += name.length + 1;
  return stored;
}

// NUL-terminated copies of all names in one piece, and the table of keys.
static status file_name_all(gguf_file *file, const gguf_string *tensor_names) {
  size_t bytes = 0, there;
  for (size_t i = 0; i < file->n_keys; i++) bytes += file->keys[i].raw_name.length + 1;
  for (size_t i = 0; i < file->n_tensors; i++) bytes += tensor_names[i].length + 1;
  TRY(TAKE(&file->names, bytes, "names"));
  char *at = file->names;
  for (size_t i = 0; i < file->n_tensors; i++) file->tensors[i].name = name_store(&at, tensor_names[i]);
  TRY(name_table_open(&file->key_names, file->n_keys));
  for (size_t i = 0; i < file->n_keys; i++) {
    file->keys[i].name = name_store(&at, file->keys[i].raw_name);
    if (!name_table_add(&there, &file->key_names, file->keys[i].name, file->keys[i].raw_name.length, i))
      TRY(message_list_take_error(file->refusals, FAIL("%s: key \"%s\" appears twice, as key %zu and key %zu",
                                                       file->path, file->keys[i].name, there + 1, i + 1)));
  }
  return 0;
}

static status file_alignment(uint64_t *out, const gguf_file *file) {
  TRY(gguf_file_u64(out, file, "general.alignment", DEFAULT_ALIGNMENT));
  if (*out < LEAST_ALIGNMENT || *out > MOST_ALIGNMENT || (*out & (*out - 1)))
    return FAIL("%s: key \"general.alignment\": expected a power of two from %d to %d, found %llu",
                file->path, LEAST_ALIGNMENT, MOST_ALIGNMENT, (unsigned long long)*out);
  return 0;
}

static status place_tensor(gguf_tensor *t, const gguf_file *file, uint64_t data, uint64_t alignment) {
  uint64_t end;
  if (t->offset % alignment)
    return FAIL("%s: tensor \"%s\": expected an offset that is a multiple of %llu, found %llu", file->path,
                t->name, (unsigned long long)alignment, (unsigned long long)t->offset);
  bool fits = !__builtin_add_overflow(t->offset, data, &t->offset) &&
              !__builtin_add_overflow(t->offset, t->bytes, &end);
  if (!fits) return FAIL("%s: tensor \"%s\": its offset overflows", file->path, t->name);
  if (end > file->bytes)
    return FAIL("%s: file is %zu bytes, tensor \"%s\" needs %llu (%zu bytes from byte %llu)", file->path,
                file->bytes, t->name, (unsigned long long)end, t->bytes, (unsigned long long)t->offset);
  t->data = file->map + t->offset;
  return 0;
}

static status file_place_tensors(gguf_file *file) {
  uint64_t alignment;
  TRY(file_alignment(&alignment, file));
  uint64_t data = (file->header_bytes + alignment - 1) / alignment * alignment;
  for (size_t i = 0; i < file->n_tensors; i++)
    TRY(message_list_take_error(file->refusals, place_tensor(&file->tensors[i], file, data, alignment)));
  return 0;
}

static int compare_offsets(const void *a, const void *b) {
  const gguf_tensor *x = *(const gguf_tensor *const *)a, *y = *(const gguf_tensor *const *)b;
  return (x->offset > y->offset) - (x->offset < y->offset);
}

static status file_refuse_overlaps(const gguf_file *file) {
  const gguf_tensor **sorted;
  status result = 0;
  TRY(TAKE(&sorted, file->n_tensors, "tensor order"));
  for (size_t i = 0; i < file->n_tensors; i++) sorted[i] = &file->tensors[i];
  qsort(sorted, file->n_tensors, sizeof *sorted, compare_offsets);
  for (size_t i = 1; i < file->n_tensors; i++) {
    const gguf_tensor *a = sorted[i - 1], *b = sorted[i];
    if (b->offset - a->offset < a->bytes)
      TRY_DONE(result,
               FAIL("%s: tensor \"%s\" (%zu bytes from byte %llu) and tensor \"%s\" (from byte %llu) overlap",
                    file->path, a->name, a->bytes, (unsigned long long)a->offset, b->name,
                    (unsigned long long)b->offset));
  }
done:
  free(sorted);
  return result;
}

static status file_read(gguf_file *file, gguf_string **tensor_names) {
  gguf_reader r = {
      .path = file->path, .at = file->map, .map = file->map, .left = file->bytes, .where = "header"};
  size_t n_tensors, n_keys;
  TRY(read_version(&r));
  TRY(read_count(&n_tensors, &r, "tensor count", TENSOR_LEAST_BYTES));
  TRY(read_count(&n_keys, &r, "key count", KEY_LEAST_BYTES));
  TRY(read_keys(file, &r, n_keys));
  TRY(read_tensors(file, tensor_names, &r, n_tensors));
  file->header_bytes = (size_t)(r.at - r.map);
  TRY(file_name_all(file, *tensor_names));
  TRY(message_list_take_error(file->refusals, file_place_tensors(file)));
  return message_list_take_error(file->refusals, file_refuse_overlaps(file));
}

void gguf_file_close(gguf_file *file) {
  if (file->map) {
    mapped_files_remove(file->map);
    munmap((void *)(uintptr_t)file->map, file->bytes);
  }
  if (file->path && file->descriptor >= 0) close(file->descriptor);
  name_table_close(&file->key_names);
  free(file->keys);
  free(file->tensors);
  free(file->names);
  free(file->path);
  *file = (gguf_file){0};
}

status gguf_file_open(gguf_file *file, const char *path) {
  gguf_string *tensor_names = NULL;
  file->descriptor = -1;
  TRY(TAKE(&file->path, strlen(path) + 1, "path"));
  strcpy(file->path, path);
  TRY(file_map(file));
  status result = file_read(file, &tensor_names);
  free(tensor_names);
  return result;
}
