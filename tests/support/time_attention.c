// time_attention ROW [HEAD_DIM [HEADS]]: seconds of one thread for the attention of query heads that share a
// cache, in integers (q8k) and in floats with an f16 cache (f32; q8k before version 2), one after the other
// in pairs, so that other work on the machine meets both alike. Prints the least of several pairs. Not a
// test.
#include "kernels/cpu/row.h"
#include "tests/support/timing.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POSITIONS = 16384 + 512, PAIRS = 15 };

typedef struct {
  const cpu_row *row;
  int64_t head_dim, heads;
  kv_head half;
  exact_cache limbs;
  exact_factors factors;
  float *q, *out;
  void *scratch;
} timing;

static float random_number(void) { // of variance 1
  float sum = 0;
  for (int i = 0; i < 12; i++) sum += (float)rand() / (float)RAND_MAX;
  return sum - 6;
}

static void fill(timing *t) {
  int64_t n = t->head_dim;
  float *k = room((size_t)n * sizeof *k), *v = room((size_t)n * sizeof *v);
  for (int64_t p = 0; p < POSITIONS; p++) {
    for (int64_t d = 0; d < n; d++) k[d] = random_number(), v[d] = random_number();
    t->row->f32->kv_store(&t->half, p, k, v, n);
    t->row->exact->store(&t->limbs, p, k, v, &t->factors, n);
  }
  for (int64_t i = 0; i < ATTEND_TOKENS * t->heads * n; i++) t->q[i] = random_number() / 11;
  free(k), free(v);
}

static void open_timing(timing *t) {
  int64_t n = t->head_dim, width = exact_width(n);
  size_t numbers = (size_t)(POSITIONS + ATTENTION_CHUNK) * (size_t)n;
  size_t reals = (size_t)attention_scratch_reals(n) * sizeof(float), exact = exact_scratch_bytes(n);
  float *ones = room((size_t)n * sizeof *ones);
  for (int64_t d = 0; d < n; d++) ones[d] = 1;
  t->factors = (exact_factors){ones, ones, ones};
  t->half = (kv_head){room(2 * numbers), room(2 * numbers), KV_HALF};
  t->limbs = (exact_cache){room((POSITIONS / EXACT_CHUNK + 1) * exact_chunk_bytes(width)), width};
  t->q = room((size_t)(ATTEND_TOKENS * t->heads * n) * sizeof *t->q);
  t->out = room((size_t)(ATTEND_TOKENS * t->heads * n) * sizeof *t->out);
  t->scratch = room(reals > exact ? reals : exact);
  fill(t);
}

static void attend_floats(const timing *t, const attention_span *s) {
  const real_ops *ops = t->row->f32;
  if (ops->attend_span) {
    ops->attend_span(s, t->head_dim, t->scratch);
    return;
  }
  for (int64_t i = 0; i < s->n; i++)
    for (int64_t h = 0; h < s->heads; h++)
      ops->attend((float *)s->out[i] + h * t->head_dim, (const float *)s->q[i] + h * t->head_dim, &s->kv,
                  s->n_keys[i], t->head_dim, t->scratch);
}

static void time_span(const timing *t, int64_t tokens, int64_t depth, int pairs) {
  void *out[ATTEND_TOKENS];
  const void *q[ATTEND_TOKENS];
  int64_t n_keys[ATTEND_TOKENS];
  double least[2] = {1e9, 1e9};
  for (int64_t i = 0; i < tokens; i++) {
    out[i] = t->out + i * t->heads * t->head_dim;
    q[i] = t->q + i * t->heads * t->head_dim;
    n_keys[i] = depth + 256 + i;
  }
  const attention_span floats = {out, q, n_keys, tokens, t->heads, t->half};
  const exact_span exact = {out, q, n_keys, tokens, t->heads, t->factors, t->limbs};
  for (int i = 0; i < pairs; i++) {
    double a = thread_seconds();
    attend_floats(t, &floats);
    double b = thread_seconds();
    t->row->exact->attend(t->row->exact, &exact, t->head_dim, t->scratch);
    double c = thread_seconds();
    least[0] = b - a < least[0] ? b - a : least[0];
    least[1] = c - b < least[1] ? c - b : least[1];
  }
  printf("| %s | %lld | %lld | %.1f | %.1f | %.2f |\n", t->row->name, (long long)tokens, (long long)depth,
         1e6 * least[0], 1e6 * least[1], least[0] / least[1]);
  fflush(stdout);
}

int main(int argc, char **argv) {
  timing t = {.row = cpu_row_find(argc > 1 ? argv[1] : "auto"),
              .head_dim = argc > 2 ? atoi(argv[2]) : 128,
              .heads = argc > 3 ? atoi(argv[3]) : 8};
  if (!t.row || t.head_dim < 2 || t.head_dim > 4096 || t.heads < 1 || t.heads > ATTEND_HEADS) return 2;
  const int64_t depths[] = {0, 4096, 16384};
  bool is_slow = !strcmp(t.row->name, "portable"); // seconds a span
  open_timing(&t);
  printf("| row | tokens | depth | in floats, us | in integers, us | ratio |\n|---|---|---|---|---|---|\n");
  for (int many = 0; many < 2; many++)
    for (size_t i = 0; i < sizeof depths / sizeof *depths; i++)
      time_span(&t, many ? ATTEND_TOKENS : 1, depths[i], is_slow ? 1 : PAIRS);
  return 0;
}
