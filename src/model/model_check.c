// Reads each weight once, checks that it is finite, hashes it and counts zeros.
#include "src/model/model.h"
#include "kernels/formats/numerics.h"
#include <string.h>
#include <xxhash.h>

enum {
  SLICE_BYTES = 4 << 20
}; // of a shared tensor, hashed at once; a constant, as the fingerprint depends on it

enum { PAGE_BYTES = 4096 }; // a hole in a file is of whole pages

typedef struct { // a tensor, cut into slices of `each` rows
  const gguf_tensor *tensor;
  size_t number; // of the tensor in the file
  bool experts;  // a slice is an expert's matrix, of `layer`
  int64_t layer;
  size_t row_bytes, rows, each;
} slices;

static slices cut_tensor(const model *m, size_t number) {
  const gguf_tensor *t = gguf_tensor_at(m->file, number);
  slices s = {.tensor = t, .number = number};
  s.experts = model_is_expert_stack(&s.layer, m, t);
  s.row_bytes = type_row_bytes(t->type, (size_t)t->dim[0]);
  s.rows = t->bytes / s.row_bytes;
  s.each = s.experts ? (size_t)t->dim[1] : SLICE_BYTES / s.row_bytes;
  if (!s.each) s.each = 1;
  return s;
}

// Fails for numbers that are not finite. The hash covers the slice's place too: the same bytes elsewhere have
// another hash.
static status check_slice(uint64_t *hash, const slices *s, size_t index) {
  size_t first = index * s->each, count = s->rows - first < s->each ? s->rows - first : s->each;
  const char *data = (const char *)s->tensor->data + first * s->row_bytes;
  uint64_t key = (uint64_t)s->number << 32 | index;
  *hash = num_mix64(XXH3_64bits(data, count * s->row_bytes) ^ num_mix64(key));
  for (size_t r = 0; r < count; r++) {
    int64_t block =
        row_first_not_finite(s->tensor->type->type, data + r * s->row_bytes, (size_t)s->tensor->dim[0]);
    if (block >= 0)
      return FAIL("%s: tensor %s: row %zu, block %lld: expected finite numbers, found a NaN or infinity",
                  s->tensor->file, s->tensor->name, first + r, (long long)block);
  }
  return 0;
}

static bool is_zero(const char *data, size_t bytes) {
  return !bytes || (!data[0] && !memcmp(data, data + 1, bytes - 1));
}

// Whole: the slice is nothing else. Else whole pages of the file, between its ends.
static zero_bytes count_zeros(const slices *s, size_t index) {
  size_t first = index * s->each, count = s->rows - first < s->each ? s->rows - first : s->each;
  size_t bytes = count * s->row_bytes, start = s->tensor->offset + first * s->row_bytes;
  const char *data = (const char *)s->tensor->data + first * s->row_bytes;
  zero_bytes zeros = {.bytes = 0};
  if (is_zero(data, bytes)) return (zero_bytes){bytes, start};
  for (size_t at = (PAGE_BYTES - start % PAGE_BYTES) % PAGE_BYTES; at + PAGE_BYTES <= bytes;
       at += PAGE_BYTES) {
    if (!is_zero(data + at, PAGE_BYTES)) continue;
    if (!zeros.bytes) zeros.first = start + at;
    zeros.bytes += PAGE_BYTES;
  }
  return zeros;
}

static void add_zeros(zero_bytes *to, zero_bytes more) {
  if (!more.bytes) return;
  if (!to->bytes || more.first < to->first) to->first = more.first;
  to->bytes += more.bytes;
}

status model_warn_of_zeros(model *m, const zero_bytes *zeros) {
  for (size_t i = 0; i < gguf_tensor_count(m->file); i++) {
    const gguf_tensor *t = gguf_tensor_at(m->file, i);
    if (zeros[i].bytes == t->bytes)
      TRY(message_list_add(&m->warnings, "%s: tensor %s is all zeros: no trained model has that", t->file,
                           t->name));
    else if (zeros[i].bytes)
      TRY(message_list_add(
          &m->warnings,
          "%s: tensor %s has %llu bytes of zeros in whole pages, the first at byte %llu: was the "
          "file copied whole?",
          t->file, t->name, (unsigned long long)zeros[i].bytes, (unsigned long long)zeros[i].first));
  }
  return 0;
}

// What is summed over ranks counts an expert once, at the first of its holders.
static bool is_counted(const expert_map *held, int64_t at, int rank) {
  return !held->has_replicas || held->holder[held->first[at]] == rank;
}

status model_check_weights(const model *m, const expert_map *held, int rank, int threads,
                           uint64_t *shared_hash, uint64_t *experts_hash, zero_bytes *zeros) {
  uint64_t shared = 0, experts = 0;
  int64_t n_experts = m->weights.shape.n_experts;
  status result = 0;
  for (size_t i = 0; i < gguf_tensor_count(m->file) && !result; i++) {
    slices s = cut_tensor(m, i);
    int64_t n = (int64_t)((s.rows + s.each - 1) / s.each);
    int64_t at = s.experts ? expert_map_at(held, s.layer, n_experts) : 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(+ : shared, experts) reduction(| : result)
    for (int64_t k = 0; k < n; k++) {
      uint64_t hash = 0;
      if (s.experts && held->local[at + k] < 0) continue;
      result |= check_slice(&hash, &s, (size_t)k);
      if (s.experts && !is_counted(held, at + k, rank)) continue;
      if (s.experts)
        experts += hash;
      else
        shared += hash;
      zero_bytes found = {0};
      if (zeros) found = count_zeros(&s, (size_t)k);
      if (!found.bytes) continue;
#pragma omp critical(zeros)
      add_zeros(&zeros[i], found);
    }
  }
  *shared_hash = shared;
  *experts_hash = experts;
  return result;
}
