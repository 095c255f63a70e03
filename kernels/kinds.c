// kinds: what is known of each path and of each kind of backend, whichever of them this build has, and the
// digest of a row.
#include "kernels/backend.h"
#include "kernels/formats/numerics.h"
#include "kernels/product_form.h"
#include <string.h>

// The tag's text is mixed into every digest: a new version of a path can never pass for the old one.
static const path_info paths[PATH_COUNT] = {
    {PATH_F64, "f64", 1, 0x6636340000000001u, 8, ATTENTION_REALS},
    {PATH_F32, "f32", 1, 0x6633320000000001u, 4, ATTENTION_RUN_KV},
    {PATH_Q8K, "q8k", 2, 0x71386b0000000002u, 4, ATTENTION_EXACT},
    {PATH_Q8K_SPLIT, "q8k_split", 4, 0x71386b7300000004u, 4, ATTENTION_REALS},
};

// Of a model that has weights in blocks of 32, where the path defines their products anew. What it does with
// all others is as above, so their models keep the version above and its digests.
static const path_info with_blocks_of_32[PATH_COUNT] = {
    [PATH_Q8K] = {PATH_Q8K, "q8k", 3, 0x71386b0000000003u, 4, ATTENTION_EXACT},
};

const path_info *path_get(path_kind kind) {
  return &paths[kind];
}

const path_info *path_newest(path_kind kind) {
  return with_blocks_of_32[kind].name ? &with_blocks_of_32[kind] : &paths[kind];
}

const path_info *path_for(path_kind kind, const model_weights *weights) {
  return model_reads(weights, ACTIVATION_Q8_0) ? path_newest(kind) : path_get(kind);
}

bool path_reads_kv(const path_info *path) {
  switch (path->attention) {
  case ATTENTION_RUN_KV:
    return true;
  case ATTENTION_REALS:
  case ATTENTION_EXACT:
    return false;
  }
  __builtin_unreachable();
}

uint64_t path_cache_bytes(const path_info *path, int64_t head_dim, bool kv_f16) {
  switch (path->attention) {
  case ATTENTION_REALS:
    return (uint64_t)head_dim * path->real_bytes;
  case ATTENTION_RUN_KV:
    return (uint64_t)head_dim * (kv_f16 ? 2 : 4);
  case ATTENTION_EXACT:
    return (uint64_t)head_dim * 2 + sizeof(float); // two limbs a number, and the unit
  }
  __builtin_unreachable();
}

const path_info *path_find(const char *name, size_t length) {
  for (int i = 0; i < PATH_COUNT; i++)
    if (strlen(paths[i].name) == length && !memcmp(paths[i].name, name, length)) return &paths[i];
  return NULL;
}

const char *backend_name(backend_kind kind) {
  switch (kind) {
  case BACKEND_CPU:
    return "cpu";
  case BACKEND_CUDA:
    return "cuda";
  }
  __builtin_unreachable();
}

bool backend_needs_device(backend_kind kind) {
  switch (kind) {
  case BACKEND_CPU:
    return false;
  case BACKEND_CUDA:
    return true;
  }
  __builtin_unreachable();
}

void digest_row(uint64_t *sum, const path_info *path, int64_t layer, int64_t token, const void *reals,
                size_t n) {
  digest_row_part(sum, path, layer, token, reals, 0, n);
}

void digest_row_part(uint64_t *sum, const path_info *path, int64_t layer, int64_t token, const void *reals,
                     int64_t first, size_t n) {
  uint64_t row = num_digest_row(path->tag, layer, token), total = 0;
  if (path->real_bytes == sizeof(double)) {
    const double *x = (const double *)reals;
    for (size_t i = 0; i < n; i++) total += num_digest_element(row, first + (int64_t)i, num_bits_f64(x[i]));
  } else {
    const float *x = (const float *)reals;
    for (size_t i = 0; i < n; i++) total += num_digest_element(row, first + (int64_t)i, num_bits_f32(x[i]));
  }
  *sum += total;
}
