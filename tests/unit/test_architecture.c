// Tests of src/model/architecture.h on the table of qwen3moe: names, shapes and places of the tensors of a
// 48-layer file, and the rules of the settings.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include "src/model/qwen3moe.h"

enum { LAYERS = 48, TENSORS = 579 }; // of Qwen3-30B-A3B

static const model_shape shape = {LAYERS, 2048, 32, 4, 128, 128, 8, 768, 151936, 1e-6, 1e6};

static void test_tensors_by_number_and_name(void **state) {
  (void)state;
  int64_t layer, found_layer;
  char name[TENSOR_NAME_BYTES];
  assert_int_equal(architecture_tensor_count(&qwen3moe, LAYERS), TENSORS);
  for (size_t i = 0; i < TENSORS; i++) {
    const tensor_row *row = architecture_tensor_at(&layer, &qwen3moe, LAYERS, i);
    assert_int_equal(row->per_layer, layer >= 0);
    tensor_row_name(name, row, layer);
    assert_ptr_equal(architecture_tensor_find(&found_layer, &qwen3moe, LAYERS, name), row);
    assert_int_equal(found_layer, layer);
  }
  tensor_row_name(name, architecture_tensor_at(&layer, &qwen3moe, LAYERS, 0), -1);
  assert_string_equal(name, "token_embd.weight");
  tensor_row_name(name, architecture_tensor_at(&layer, &qwen3moe, LAYERS, 12 * 7 + 1), 7);
  assert_int_equal(layer, 7);
  assert_string_equal(name, "blk.7.attn_norm.weight");
  tensor_row_name(name, architecture_tensor_at(&layer, &qwen3moe, LAYERS, TENSORS - 1), -1);
  assert_string_equal(name, "output.weight");
}

static void test_names_of_no_tensor(void **state) {
  (void)state;
  int64_t layer;
  const char *names[] = {"",
                         "output",
                         "attn_q.weight",
                         "blk.0.output.weight",
                         "blk.01.attn_q.weight",
                         "blk.48.attn_q.weight",
                         "blk.-1.attn_q.weight",
                         "blk.0.attn_q.bias",
                         "blk.0.attn_q.weight.",
                         "blk.0.attn_qkv.weight"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    assert_null(architecture_tensor_find(&layer, &qwen3moe, LAYERS, names[i]));
}

static void test_fused(void **state) {
  (void)state;
  int64_t layer, rows;
  assert_true(architecture_fused_find(&layer, &rows, &qwen3moe, &shape, "blk.7.attn_qkv.weight"));
  assert_int_equal(layer, 7);
  assert_int_equal(rows, 4096 + 2 * 512);
  const char *none[] = {"blk.48.attn_qkv.weight", "attn_qkv.weight", "blk.0.attn_qkv.bias",
                        "blk.0.attn_q.weight"};
  for (size_t i = 0; i < sizeof none / sizeof *none; i++)
    assert_false(architecture_fused_find(&layer, &rows, &qwen3moe, &shape, none[i]));
  assert_int_equal(architecture_fused_rows(&qwen3moe, &shape, architecture_tensor(&qwen3moe, TENSOR_ATTN_Q)),
                   0);
  assert_int_equal(architecture_fused_rows(&qwen3moe, &shape, architecture_tensor(&qwen3moe, TENSOR_ATTN_V)),
                   4096 + 512);
}

static void expect_shape(tensor_id id, int n, int64_t a, int64_t b, int64_t c) {
  const tensor_row *row = architecture_tensor(&qwen3moe, id);
  assert_non_null(row);
  assert_int_equal(tensor_row_dims(row), n);
  assert_int_equal(tensor_row_dim(row, 0, &shape), a);
  assert_int_equal(tensor_row_dim(row, 1, &shape), b);
  assert_int_equal(tensor_row_dim(row, 2, &shape), c);
  assert_int_equal(tensor_row_dim(row, 3, &shape), 1);
}

static void test_shapes(void **state) {
  (void)state;
  expect_shape(TENSOR_TOKEN_EMBD, 2, 2048, 151936, 1);
  expect_shape(TENSOR_ATTN_Q, 2, 2048, 4096, 1);
  expect_shape(TENSOR_ATTN_V, 2, 2048, 512, 1);
  expect_shape(TENSOR_ATTN_K_NORM, 1, 128, 1, 1);
  expect_shape(TENSOR_ATTN_OUTPUT, 2, 4096, 2048, 1);
  expect_shape(TENSOR_FFN_GATE_INP, 2, 2048, 128, 1);
  expect_shape(TENSOR_FFN_UP_EXPS, 3, 2048, 768, 128);
  expect_shape(TENSOR_FFN_DOWN_EXPS, 3, 768, 2048, 128);
}

// Two rows that led to one place, or one that led out of its struct, would be a model with weights exchanged.
static void test_places(void **state) {
  (void)state;
  for (size_t i = 0; i < qwen3moe.n_tensors; i++) {
    const tensor_row *a = &qwen3moe.tensors[i];
    size_t bytes = a->kind == TENSOR_VECTOR ? sizeof(float *) : sizeof(matrix);
    assert_true(a->to + bytes <= (a->per_layer ? sizeof(layer_weights) : sizeof(model_weights)));
    for (size_t k = 0; k < i; k++) {
      const tensor_row *b = &qwen3moe.tensors[k];
      assert_true(a->id != b->id && strcmp(a->name, b->name));
      assert_true(a->to != b->to || a->per_layer != b->per_layer);
    }
  }
}

static void test_settings(void **state) {
  (void)state;
  bool ours;
  for (size_t i = 0; i < qwen3moe.n_settings; i++) {
    const setting_row *row = &qwen3moe.settings[i];
    char key[96];
    snprintf(key, sizeof key, "qwen3moe.%s", row->name);
    assert_ptr_equal(architecture_setting(&ours, &qwen3moe, key), row); // so no name stands twice
    assert_true(ours);
    bool obeyed = row->kind == SETTING_SIZE || row->kind == SETTING_REAL;
    assert_true(obeyed || row->why); // what is ignored or refused has its reason
    assert_true(!row->written || row->to < sizeof(model_settings));
    assert_true(row->kind != SETTING_ONLY_TEXT || row->only_text[0]);
    assert_true(row->kind != SETTING_ONLY || (row->n_only >= 1 && row->n_only <= SETTING_VALUES));
    if (row->unset_by) assert_int_equal(row->kind, SETTING_ONLY);
    assert_true(!obeyed || row->low < row->high);
  }
  assert_null(architecture_setting(&ours, &qwen3moe, "qwen3moe.rope.scale_cubic"));
  assert_true(ours);
  assert_string_equal(architecture_setting(&ours, &qwen3moe, "qwen3moe.ssm.inner_size")->name, "ssm.");
  assert_string_equal(architecture_setting(&ours, &qwen3moe, "qwen3moe.kda.gate_lower_bound")->name,
                      "kda.gate_lower_bound");
  assert_null(architecture_setting(&ours, &qwen3moe, "qwen3moe.ssmx"));
  assert_null(architecture_setting(&ours, &qwen3moe, "qwen3moex.block_count"));
  assert_false(ours);
  assert_null(architecture_setting(&ours, &qwen3moe, "block_count"));
  assert_false(ours);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_tensors_by_number_and_name),
      cmocka_unit_test(test_names_of_no_tensor),
      cmocka_unit_test(test_shapes),
      cmocka_unit_test(test_fused),
      cmocka_unit_test(test_places),
      cmocka_unit_test(test_settings),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
