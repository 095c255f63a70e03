// time_products: seconds of one thread for products of many tokens with weights in L2: kernels of the row
// avx512_vnni beside the packed ones of the best row, whose packing is timed by itself. Pairs, one after the
// other, so that other work on the machine meets both alike; prints the least of several, and says where bits
// differ. Not a test.
#include "kernels/cpu/row.h"
#include "kernels/formats/types.h"
#include "tests/support/timing.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_TOKENS = 512, PAIRS = 20 };

typedef struct {
  const char *name;
  weight_type type;
  int64_t rows, cols;
} shape;

static const shape SHAPES[] = {
    {"gate, up: Q4_K", TYPE_Q4_K, 768, 2048}, {"down: Q6_K", TYPE_Q6_K, 2048, 768},
    {"down: Q4_K", TYPE_Q4_K, 2048, 768},     {"o: Q4_K", TYPE_Q4_K, 512, 4096},
    {"gate, up: Q5_K", TYPE_Q5_K, 768, 2048}, {"gate, up: IQ4_XS", TYPE_IQ4_XS, 768, 2048},
    {"gate, up: Q3_K", TYPE_Q3_K, 768, 2048}, {"gate, up: Q8_0", TYPE_Q8_0, 768, 2048},
    {"down: Q8_0", TYPE_Q8_0, 2048, 768},     {"gate, up: Q4_0", TYPE_Q4_0, 768, 2048},
};

static void fill(char *data, size_t bytes) { // numbers below 2, so that no sum overflows
  for (size_t i = 0; i < bytes; i++) data[i] = (char)(rand() & 63);
}

// As a row's activations are: blocks of 32 before the pointer, of 256 from there on.
static const block_q8_K *rounded(const cpu_row *row, const float *x, int64_t cols) {
  block_q8_32 *of_32 =
      room((size_t)(cols / QK_32) * sizeof *of_32 + (size_t)(cols / QK_K) * sizeof(block_q8_K));
  block_q8_K *of_256 = (block_q8_K *)(void *)(of_32 + cols / QK_32);
  row->round_q8_0(of_32, NULL, x, cols);
  row->quantize_q8k(of_256, x, cols);
  return of_256;
}

static void time_tokens(const shape *s, const cpu_row *plain, const cpu_row *row, int64_t n) {
  bool is_of_32 = type_find(s->type)->elements == QK_32;
  const packed_ops *ops = is_of_32 ? row->packed_32 : row->packed;
  size_t blocks = (size_t)(s->cols / ops->block), groups = (size_t)(n + PACKED_TOKENS - 1) / PACKED_TOKENS;
  size_t bytes = (size_t)s->rows * type_row_bytes(type_find(s->type), (size_t)s->cols);
  size_t group_bytes = ops->group_bytes(s->cols);
  char *data = room(bytes + 65536), *packed = aligned_alloc(64, groups * group_bytes);
  float *x = room((size_t)s->cols * sizeof *x), *out[2][MOST_TOKENS];
  const block_q8_K *q[MOST_TOKENS];
  fill(data, bytes);
  const matrix m = {data, s->type, s->rows, s->cols};
  for (int64_t t = 0; t < n; t++) {
    for (int64_t i = 0; i < s->cols; i++) x[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    q[t] = rounded(plain, x, s->cols);
    for (int k = 0; k < 2; k++) out[k][t] = room((size_t)s->rows * sizeof(float));
  }
  double least[3] = {1e9, 1e9, 1e9};
  for (int i = 0; i < PAIRS; i++) {
    double at[4];
    at[0] = thread_seconds();
    (is_of_32                       ? plain->product_q8_0
     : type_has_q8k_kernels(m.type) ? plain->product_q8k
                                    : plain->product_unpacked)(out[0], &m, q, n);
    at[1] = thread_seconds();
    for (size_t g = 0; g < groups; g++)
      for (size_t b = 0; b < blocks; b++) {
        int64_t left = n - (int64_t)g * PACKED_TOKENS;
        ops->pack(packed + g * group_bytes, q + g * PACKED_TOKENS, s->cols,
                  left < PACKED_TOKENS ? left : PACKED_TOKENS, (int64_t)b);
      }
    at[2] = thread_seconds();
    ops->product(out[1], &m, packed, n);
    at[3] = thread_seconds();
    for (int k = 0; k < 3; k++) least[k] = at[k + 1] - at[k] < least[k] ? at[k + 1] - at[k] : least[k];
  }
  int64_t wrong = 0;
  for (int64_t t = 0; t < n; t++) wrong += memcmp(out[0][t], out[1][t], (size_t)s->rows * sizeof(float)) != 0;
  double work = (double)(s->rows * s->cols * n) * 1e-9;
  printf("| %s | %lld | %.1f | %.1f | %.1f | %.2f | %.0f | %.0f | %s |\n", s->name, (long long)n,
         1e6 * least[0], 1e6 * least[2], 1e6 * least[1], least[0] / least[2], work / least[0],
         work / least[2], wrong ? "DIFFER" : "equal");
  fflush(stdout);
  for (int64_t t = 0; t < n; t++)
    free((void *)(uintptr_t)blocks_32_of(q[t], s->cols)), free(out[0][t]), free(out[1][t]);
  free(data), free(packed), free(x);
}

int main(void) {
  const cpu_row *plain = cpu_row_find("avx512_vnni"), *row = cpu_row_find("auto");
  const int64_t tokens[] = {1, 4, 8, 16, 24, 32, 40, 64, 128, 512};
  if (!plain || !row->packed) return 2;
  printf("| product | tokens | plain, us | packed, us | packing, us | ratio | GMAC/s | packed | bits |\n"
         "|---|---|---|---|---|---|---|---|---|\n");
  for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++)
    for (size_t k = 0; k < sizeof tokens / sizeof *tokens; k++)
      time_tokens(&SHAPES[i], plain, row, tokens[k]);
  return 0;
}
