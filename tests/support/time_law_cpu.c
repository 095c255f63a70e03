// time_law_cpu: what the written order of float sums costs on the row avx512_vnni: one thread's time for the
// products that decode and prompts spend most in, and for attention, beside the same work whose float sums
// have no order at all (law_free.c; attention: chunks that are not folded). Pairs, one after the other, so
// that other work on the machine meets both alike. Prints the least of several pairs. Not a test.
#include "kernels/formats/types.h"
#include "tests/support/law_kernels.h"
#include "tests/support/timing.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAIRS = 40, MOST_TOKENS = 32, HEAD_DIM = 128, HEADS = 8, KEYS = 4096 };

typedef struct {
  const char *name;
  weight_type type;
  int64_t rows, cols, tokens;
} law_case;

// Rows that the L2 cache holds: a memory that waits would hide all else. Then what a decoded token reads.
static const law_case CASES[] = {
    {"gate, up, decode, in L2", TYPE_Q4_K, 768, 2048, 1},
    {"head, decode, in L2", TYPE_Q6_K, 512, 2048, 1},
    {"gate, up, decode, memory", TYPE_Q4_K, 98304, 2048, 1},
    {"head, decode, memory", TYPE_Q6_K, 65536, 2048, 1},
    {"gate, up, 32 tokens", TYPE_Q4_K, 768, 2048, 32},
    {"down, Q6_K, 32 tokens", TYPE_Q6_K, 2048, 768, 32},
};

// Numbers below 2, so that no sum overflows.
static void fill_weights(char *data, const matrix *m) {
  const type_info *type = type_find(m->type);
  size_t bytes = (size_t)m->rows * type_row_bytes(type, (size_t)m->cols);
  for (size_t i = 0; i < bytes; i++) data[i] = (char)(rand() & 63);
}

typedef struct {
  matrix m;
  const block_q8_K *x[MOST_TOKENS];
  float *out[MOST_TOKENS];
  int64_t tokens;
} law_product;

static void open_product(law_product *p, const law_case *c, const cpu_row *row) {
  size_t blocks = (size_t)(c->cols / QK_K);
  char *data = room((size_t)c->rows * type_row_bytes(type_find(c->type), (size_t)c->cols) + 65536);
  float *x = room((size_t)c->cols * sizeof *x);
  p->m = (matrix){data, c->type, c->rows, c->cols};
  p->tokens = c->tokens;
  fill_weights(data, &p->m);
  for (int64_t t = 0; t < c->tokens; t++) {
    block_q8_K *q = room(blocks * sizeof *q);
    for (int64_t i = 0; i < c->cols; i++) x[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    row->quantize_q8k(q, x, c->cols);
    p->x[t] = q;
    p->out[t] = room((size_t)c->rows * sizeof(float));
  }
  free(x);
}

static void close_product(law_product *p) {
  free((void *)p->m.data);
  for (int64_t t = 0; t < p->tokens; t++) free((void *)p->x[t]), free(p->out[t]);
}

static double time_product(const law_product *p, const law_kernels *k, int runs) {
  double start = thread_seconds();
  for (int i = 0; i < runs; i++)
    if (p->tokens == 1)
      k->vector(p->out[0], &p->m, p->x[0], NULL);
    else
      k->product(p->out, &p->m, p->x, p->tokens);
  return (thread_seconds() - start) / runs;
}

static void print(const char *name, double ordered, double unordered) {
  printf("| %-26s | %10.2f | %10.2f | %6.2f %% |\n", name, ordered * 1e6, unordered * 1e6,
         100 * (ordered / unordered - 1));
}

static double least(double a, double b) {
  return a < b ? a : b;
}

static void run_product(const law_case *c, const cpu_row *row) {
  law_product p;
  open_product(&p, c, row);
  int runs = 1 + (int)(4000000 / (c->rows * c->cols * c->tokens / 64 + 1));
  double ordered = 1e9, unordered = 1e9;
  for (int i = 0; i < PAIRS; i++) {
    ordered = least(ordered, time_product(&p, &law_ordered, runs));
    unordered = least(unordered, time_product(&p, &law_free, runs));
  }
  print(c->name, ordered, unordered);
  close_product(&p);
}

// ---- attention ----

static void fold_nothing(const exact_rows *run, const exact_rows *next, int64_t width) {
  (void)run, (void)next, (void)width;
}

static void run_attention(const cpu_row *row, int64_t tokens) {
  int64_t width = exact_width(HEAD_DIM);
  exact_cache kv = {room((size_t)(KEYS / EXACT_CHUNK) * exact_chunk_bytes(width)), width};
  float *ones = room(HEAD_DIM * sizeof *ones), *k = room(HEAD_DIM * sizeof *k);
  float *q = room(sizeof *q * ATTEND_TOKENS * HEADS * HEAD_DIM),
        *out = room(sizeof *out * ATTEND_TOKENS * HEADS * HEAD_DIM);
  void *scratch = room(exact_scratch_bytes(HEAD_DIM)), *outs[ATTEND_TOKENS];
  const void *qs[ATTEND_TOKENS];
  int64_t n_keys[ATTEND_TOKENS];
  exact_ops unfolded = *row->exact;
  unfolded.fold = fold_nothing;
  for (int64_t d = 0; d < HEAD_DIM; d++) ones[d] = 1;
  exact_factors factors = {ones, ones, ones};
  for (int64_t p = 0; p < KEYS; p++) {
    for (int64_t d = 0; d < HEAD_DIM; d++) k[d] = (float)rand() / (float)RAND_MAX - 0.5f;
    row->exact->store(&kv, p, k, k, &factors, HEAD_DIM);
  }
  for (int64_t i = 0; i < ATTEND_TOKENS * HEADS * HEAD_DIM; i++)
    q[i] = (float)rand() / (float)RAND_MAX - 0.5f;
  for (int64_t t = 0; t < tokens; t++) {
    outs[t] = out + t * HEADS * HEAD_DIM;
    qs[t] = q + t * HEADS * HEAD_DIM;
    n_keys[t] = KEYS - tokens + t + 1;
  }
  const exact_span span = {outs, qs, n_keys, tokens, HEADS, factors, kv};
  double ordered = 1e9, unordered = 1e9;
  for (int i = 0; i < PAIRS; i++) {
    double start = thread_seconds();
    row->exact->attend(row->exact, &span, HEAD_DIM, scratch);
    double middle = thread_seconds();
    row->exact->attend(&unfolded, &span, HEAD_DIM, scratch);
    ordered = least(ordered, middle - start);
    unordered = least(unordered, thread_seconds() - middle);
  }
  char name[64];
  snprintf(name, sizeof name, "attention, %d keys, %d token%s", KEYS, (int)tokens, tokens == 1 ? "" : "s");
  print(name, ordered, unordered);
  free(kv.chunks), free(ones), free(k), free(q), free(out), free(scratch);
}

int main(void) {
  const cpu_row *row = cpu_row_find("avx512_vnni");
  if (!row) {
    puts("the row avx512_vnni does not run here");
    return 1;
  }
  puts("| work                       | ordered us | without us |   more |");
  for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) run_product(&CASES[i], row);
  run_attention(row, 1);
  run_attention(row, ATTEND_TOKENS);
  return 0;
}
