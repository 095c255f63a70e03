// A product with packed tokens (packed_ops), packed here: as product_q8k or product_q8_0 of a row.
#pragma once
#include "base/memory.h"
#include "kernels/cpu/row.h"
#include <stdlib.h>

static inline void product_packing(const packed_ops *ops, float *const *out, const matrix *m,
                                   const block_q8_K *const *x, int64_t n) {
  size_t bytes = ops->group_bytes(m->cols);
  char *groups;
  if (memory_take((void **)&groups, (size_t)((n + PACKED_TOKENS - 1) / PACKED_TOKENS), bytes,
                  "packed tokens"))
    abort();
  for (int64_t t = 0; t < n; t += PACKED_TOKENS)
    for (int64_t b = 0; b < m->cols / ops->block; b++)
      ops->pack(groups + (size_t)(t / PACKED_TOKENS) * bytes, x + t, m->cols,
                n - t < PACKED_TOKENS ? n - t : PACKED_TOKENS, b);
  ops->product(out, m, groups, n);
  free(groups);
}
