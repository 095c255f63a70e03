// Tests of kernels/self_check.c: one digest over the rows of this machine and over threads, another for each
// row that is wrong in one thing (support/planted_rows.c, whose table is linked here), for other paths and
// types.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "kernels/cpu/row.h"
#include "kernels/self_check.h"
#include <stdlib.h>
#include <string.h>

static layer_weights layers[2] = {
    {.q = {.type = TYPE_Q4_K},
     .k = {.type = TYPE_Q4_K},
     .v = {.type = TYPE_Q6_K},
     .o = {.type = TYPE_Q5_K},
     .router = {.type = TYPE_F32},
     .gate = {.type = TYPE_Q4_K},
     .up = {.type = TYPE_Q5_K},
     .down = {.type = TYPE_Q6_K}},
};

static model_weights like(void) {
  return (model_weights){
      .shape = {.n_layers = 1,
                .hidden = 768,
                .n_heads = 4,
                .n_kv_heads = 2,
                .head_dim = 64,
                .n_experts = 128,
                .top_k = 8,
                .expert_width = 768,
                .vocabulary = 151936,
                .rms_epsilon = 1e-6,
                .rope_base = 1e6},
      .embedding = {.type = TYPE_Q4_K},
      .output = {.type = TYPE_Q6_K},
      .layers = layers,
  };
}

static uint64_t digest_of(const model_weights *m, path_kind path, check_part part, const char *row,
                          int threads) {
  self_check_params p = {backend_get(BACKEND_CPU), path, part, m, true, threads, 0, row};
  uint64_t digest = 0;
  char name[64];
  if (self_check_run(&digest, name, sizeof name, &p)) fail_msg("%s", status_text());
  if (strcmp(row, "auto")) assert_string_equal(name, row);
  assert_true(digest);
  return digest;
}

static uint64_t right[PATH_COUNT][CHECK_PARTS];

// f64 is left out, for time: no planted row changes it alone.
static bool differs(const model_weights *m, const char *row) {
  static const path_kind orders[][3] = {{PATH_Q8K, PATH_Q8K_SPLIT, PATH_F32},
                                        {PATH_F32, PATH_Q8K, PATH_Q8K_SPLIT}};
  bool of_integers =
      strstr(row, "exact") || strstr(row, "block") || strstr(row, "outlier") || strstr(row, "q8k");
  const path_kind *order = orders[!of_integers]; // soon where the row's fault shows
  for (size_t i = 0; i < 3; i++)
    for (int part = 0; part < CHECK_PARTS; part++)
      if (digest_of(m, order[i], (check_part)part, row, 2) != right[order[i]][part]) return true;
  return false;
}

// What the self-check does not see: a sign that quants and scale share, a half and a limit that are met
// exactly, the order of a row's few outliers.
static bool is_never_seen(const char *row) {
  return strstr(row, "q8k_sign") || strstr(row, "q8k_rounding") || strstr(row, "outlier_limit") ||
         strstr(row, "outlier_order");
}

static void each_row_gives_one_digest_but_planted_ones(void **state) {
  (void)state;
  model_weights m = like();
  int n_planted = 0;
  for (int path = 0; path < PATH_COUNT; path++)
    for (int part = 0; part < CHECK_PARTS; part++)
      right[path][part] = digest_of(&m, (path_kind)path, (check_part)part, "auto", 1);
  for (const cpu_row *const *at = cpu_row_table(); *at; at++) {
    const char *row = (*at)->name;
    if (!(*at)->usable()) continue;
    bool planted = !strncmp(row, "planted_", strlen("planted_"));
    n_planted += planted;
    if ((planted && is_never_seen(row)) || differs(&m, row) == planted) continue;
    fail_msg("row %s: %s", row, planted ? "not seen" : "the self-check has another digest than the best row");
  }
  assert_true(n_planted > 10);
}

static void another_type_gives_another_digest(void **state) {
  (void)state;
  model_weights m = like();
  uint64_t before = digest_of(&m, PATH_Q8K, CHECK_WHOLE, "auto", 1);
  layers[1] = layers[0];
  layers[1].down.type = TYPE_Q4_K;
  m.shape.n_layers = 2;
  assert_true(digest_of(&m, PATH_Q8K, CHECK_WHOLE, "auto", 1) != before);
  layers[1] = layers[0]; // a layer of the same types adds nothing
  assert_true(digest_of(&m, PATH_Q8K, CHECK_WHOLE, "auto", 1) == before);
  m.embedding.type = TYPE_F16;
  assert_true(digest_of(&m, PATH_Q8K, CHECK_WHOLE, "auto", 1) != before);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(each_row_gives_one_digest_but_planted_ones),
      cmocka_unit_test(another_type_gives_another_digest),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
