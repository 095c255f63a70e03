// A model as its files make it: one file or a split set, whose order and split.* keys must agree with their
// names, with one index of tensors over all of it. The keys are those of the first file.
#include "src/model/gguf.h"
#include "base/memory.h"
#include "src/model/gguf_file.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

enum {
  SPLIT_SUFFIX_BYTES = 20, // "-00001-of-00002.gguf"
  SPLIT_MOST_FILES = 99999,
};

struct gguf {
  char *path;
  gguf_file *files;
  size_t n_files;
  gguf_tensor *tensors;
  size_t n_tensors;
  name_table tensor_names;
  uint64_t header_hash;
  message_list *refusals; // as of its files; NULL once it is open
};

// ---- the set of files ----

typedef struct {
  uint64_t no, count; // what the keys say; a whole file (also a merged one, whose count is 0) is 0 of 1
  size_t prefix;      // bytes of the path before "-00001-of-00002.gguf"; the whole path if it has no such end
  unsigned name_no, name_count; // what the name says, no from 1; 1 of 1 without such an end
} split_place;

static bool all_digits(const char *text, size_t length) {
  for (size_t i = 0; i < length; i++)
    if (text[i] < '0' || text[i] > '9') return false;
  return true;
}

static void split_read_name(split_place *place, const char *path) {
  size_t length = strlen(path);
  *place = (split_place){.prefix = length, .name_no = 1, .name_count = 1};
  if (length < SPLIT_SUFFIX_BYTES) return;
  const char *end = path + length - SPLIT_SUFFIX_BYTES;
  if (end[0] != '-' || memcmp(end + 6, "-of-", 4) != 0 || strcmp(end + 15, ".gguf") != 0) return;
  if (!all_digits(end + 1, 5) || !all_digits(end + 10, 5)) return;
  place->name_no = (unsigned)strtoul(end + 1, NULL, 10);
  place->name_count = (unsigned)strtoul(end + 10, NULL, 10);
  place->prefix = length - SPLIT_SUFFIX_BYTES;
}

// Where the file stands in its set, by its keys, which its name must confirm.
static status split_read(split_place *place, const gguf_file *file) {
  split_read_name(place, file->path);
  TRY(gguf_file_u64(&place->no, file, "split.no", 0));
  TRY(gguf_file_u64(&place->count, file, "split.count", 0));
  if (place->count == 0) place->count = 1;
  if (place->count > SPLIT_MOST_FILES || place->no >= place->count)
    return FAIL(
        "%s: keys \"split.no\" %llu and \"split.count\" %llu: expected no below count, count at most %d",
        file->path, (unsigned long long)place->no, (unsigned long long)place->count, SPLIT_MOST_FILES);
  if (place->name_no != place->no + 1 || place->name_count != place->count)
    return FAIL("%s: its keys make it file %llu of %llu (split.no %llu), its name %u of %u; "
                "expected a name that ends in -%05llu-of-%05llu.gguf",
                file->path, (unsigned long long)place->no + 1, (unsigned long long)place->count,
                (unsigned long long)place->no, place->name_no, place->name_count,
                (unsigned long long)place->no + 1, (unsigned long long)place->count);
  return 0;
}

static status split_open_sibling(gguf_file *file, const gguf_file *from, const split_place *place,
                                 size_t no) {
  char *path;
  split_place found;
  size_t room = place->prefix + SPLIT_SUFFIX_BYTES + 1;
  TRY(TAKE(&path, room, "path of a split file"));
  memcpy(path, from->path, place->prefix);
  snprintf(path + place->prefix, room - place->prefix, "-%05zu-of-%05zu.gguf", no + 1, (size_t)place->count);
  status result = 0;
  if (access(path, F_OK) != 0)
    TRY_DONE(result, FAIL("%s: is file %llu of %llu, and file %zu is missing: expected it as %s: %s",
                          from->path, (unsigned long long)place->no + 1, (unsigned long long)place->count,
                          no + 1, path, strerror(errno)));
  result = gguf_file_open(file, path);
  if (result) gguf_file_close(file); // half of a table of tensors is none
  if (!result) result = split_read(&found, file);
done:
  free(path);
  return result;
}

// Opens the file and its siblings; what was opened is in g->files also after an error. To be shown, siblings
// but the first may be absent: zeroed.
static status open_files(gguf *g) {
  gguf_file first = {.refusals = g->refusals};
  split_place place;
  status result = gguf_file_open(&first, g->path), place_known = 0;
  if (!result) place_known = split_read(&place, &first);
  if (place_known) place = (split_place){.count = 1};
  if (!result) result = message_list_take_error(g->refusals, place_known);
  if (!result) result = TAKE(&g->files, place.count, "files");
  if (result) {
    gguf_file_close(&first);
    return result;
  }
  g->n_files = (size_t)place.count;
  g->files[place.no] = first;
  for (size_t i = 0; i < g->n_files; i++) {
    g->files[i].refusals = g->refusals;
    if (i == place.no) continue;
    status opened = split_open_sibling(&g->files[i], &g->files[place.no], &place, i);
    if (!i && !g->files[0].map)
      TRY(opened); // without the first, which has the keys, there is nothing to show
    TRY(message_list_take_error(g->refusals, opened));
  }
  return 0;
}

static status check_tensor_total(const gguf *g) {
  for (size_t i = 0; i < g->n_files; i++) {
    uint64_t total;
    TRY(gguf_file_u64(&total, &g->files[i], "split.tensors.count", g->n_tensors));
    if (total != g->n_tensors)
      return FAIL("%s: key \"split.tensors.count\": expected %zu, the tensors of all %zu files, found %llu",
                  g->files[i].path, g->n_tensors, g->n_files, (unsigned long long)total);
  }
  return 0;
}

static status gather_tensors(gguf *g) {
  size_t total = 0, there;
  for (size_t i = 0; i < g->n_files; i++) total += g->files[i].n_tensors;
  TRY(TAKE(&g->tensors, total, "tensors"));
  TRY(name_table_open(&g->tensor_names, total));
  for (size_t i = 0; i < g->n_files; i++) {
    gguf_file *file = &g->files[i];
    for (size_t k = 0; k < file->n_tensors; k++) {
      const gguf_tensor *t = &file->tensors[k];
      if (!name_table_add(&there, &g->tensor_names, t->name, strlen(t->name), g->n_tensors))
        TRY(message_list_take_error(g->refusals, FAIL("%s: tensor \"%s\" appears twice, also in %s",
                                                      file->path, t->name, g->tensors[there].file)));
      g->tensors[g->n_tensors++] = *t;
    }
    free(file->tensors);
    file->tensors = NULL;
  }
  return message_list_take_error(g->refusals, check_tensor_total(g));
}

// Each hash is the seed of the next, so that the order of the files counts too.
static uint64_t hash_headers(const gguf *g) {
  uint64_t hash = 0;
  for (size_t i = 0; i < g->n_files; i++) {
    uint64_t bytes = g->files[i].bytes;
    if (!g->files[i].map) continue; // only where it was opened to be shown
    hash = XXH3_64bits_withSeed(g->files[i].map, g->files[i].header_bytes, hash);
    hash = XXH3_64bits_withSeed(&bytes, sizeof bytes, hash);
  }
  return hash;
}

status gguf_open(gguf **out, const char *path) {
  return gguf_open_to_show(out, path, NULL);
}

status gguf_open_to_show(gguf **out, const char *path, message_list *refusals) {
  gguf *g;
  status result;
  *out = NULL;
  TRY(TAKE(&g, 1, "model file"));
  g->refusals = refusals;
  TRY_DONE(result, TAKE(&g->path, strlen(path) + 1, "path"));
  strcpy(g->path, path);
  TRY_DONE(result, open_files(g));
  TRY_DONE(result, gather_tensors(g));
  g->header_hash = hash_headers(g);
  g->refusals = NULL;
  for (size_t i = 0; i < g->n_files; i++) g->files[i].refusals = NULL;
  *out = g;
  return 0;
done:
  gguf_close(g);
  return result;
}

void gguf_close(gguf *g) {
  if (!g) return;
  for (size_t i = 0; i < g->n_files; i++) gguf_file_close(&g->files[i]);
  name_table_close(&g->tensor_names);
  free(g->files);
  free(g->tensors);
  free(g->path);
  free(g);
}

const char *gguf_path(const gguf *g) {
  return g->path;
}

uint64_t gguf_header_hash(const gguf *g) {
  return g->header_hash;
}

size_t gguf_file_count(const gguf *g) {
  return g->n_files;
}

const char *gguf_file_path(const gguf *g, size_t file) {
  return g->files[file].path;
}

size_t gguf_file_bytes(const gguf *g, size_t file) {
  return g->files[file].bytes;
}

const char *gguf_changed_file(const gguf *g) {
  for (size_t i = 0; i < g->n_files; i++)
    if (g->files[i].map && gguf_file_changed(&g->files[i])) return g->files[i].path;
  return NULL;
}

size_t gguf_tensor_count(const gguf *g) {
  return g->n_tensors;
}

const gguf_tensor *gguf_tensor_at(const gguf *g, size_t i) {
  return &g->tensors[i];
}

const gguf_tensor *gguf_tensor_find(const gguf *g, const char *name) {
  size_t index;
  return name_table_find(&index, &g->tensor_names, name, strlen(name)) ? &g->tensors[index] : NULL;
}

// ---- keys ----

static status require_key(const gguf_key **out, const gguf *g, const char *name) {
  *out = gguf_file_key(g->files, name);
  return *out ? 0 : FAIL("%s: key \"%s\" is missing", g->files->path, name);
}

bool gguf_key_exists(const gguf *g, const char *key) {
  return gguf_file_key(g->files, key) != NULL;
}

bool gguf_key_is_array(const gguf *g, const char *key) {
  const gguf_key *found = gguf_file_key(g->files, key);
  return found && found->type == VALUE_ARRAY;
}

status gguf_key_u64(const gguf *g, const char *key, uint64_t *out) {
  const gguf_key *found;
  TRY(require_key(&found, g, key));
  return gguf_value_u64(out, found);
}

status gguf_key_f64(const gguf *g, const char *key, double *out) {
  const gguf_key *found;
  TRY(require_key(&found, g, key));
  return gguf_value_f64(out, found);
}

status gguf_key_bool(const gguf *g, const char *key, bool *out) {
  const gguf_key *found;
  TRY(require_key(&found, g, key));
  return gguf_value_bool(out, found);
}

status gguf_key_string(const gguf *g, const char *key, gguf_string *out) {
  const gguf_key *found;
  TRY(require_key(&found, g, key));
  return gguf_value_string(out, found);
}

status gguf_key_array_strings(const gguf *g, const char *key, gguf_string **out, size_t *count) {
  const gguf_key *found;
  *out = NULL;
  *count = 0;
  TRY(require_key(&found, g, key));
  return gguf_value_strings(out, count, found);
}

status gguf_key_array_i32(const gguf *g, const char *key, int32_t **out, size_t *count) {
  const gguf_key *found;
  *out = NULL;
  *count = 0;
  TRY(require_key(&found, g, key));
  return gguf_value_i32s(out, count, found);
}

bool gguf_key_number(const gguf *g, const char *key, size_t i, double *out) {
  const gguf_key *found = gguf_file_key(g->files, key);
  return found && gguf_value_number(out, found, i);
}

size_t gguf_key_elements(const gguf *g, const char *key) {
  const gguf_key *found = gguf_file_key(g->files, key);
  return found ? (size_t)found->count : 0;
}

size_t gguf_key_count(const gguf *g) {
  return g->files->n_keys;
}

const char *gguf_key_name(const gguf *g, size_t i) {
  return g->files->keys[i].name;
}

void gguf_key_describe(const gguf *g, size_t i, char *out, size_t size) {
  gguf_value_describe(out, size, &g->files->keys[i]);
}
