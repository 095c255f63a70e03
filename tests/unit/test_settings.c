// Tests of src/model/settings.h on the table of qwen3moe: what is obeyed, what is the same model by its
// value, what is refused by name with the value, and what is warned of.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include "src/model/settings.h"
#include "tests/support/gguf_keys.h"

static void put_plain(gguf_keys *k) { // all but head_count_kv
  static const struct {
    const char *name;
    double value;
  } sizes[] = {{"block_count", 3},
               {"context_length", 64},
               {"embedding_length", 256},
               {"feed_forward_length", 512},
               {"expert_feed_forward_length", 256},
               {"expert_count", 8},
               {"expert_used_count", 2},
               {"attention.head_count", 4}};
  gguf_keys_begin(k);
  gguf_keys_string(k, "general.architecture", "qwen3moe");
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    char name[96];
    snprintf(name, sizeof name, "qwen3moe.%s", sizes[i].name);
    gguf_keys_number(k, name, VALUE_U32, sizes[i].value);
  }
  gguf_keys_number(k, "qwen3moe.attention.layer_norm_rms_epsilon", VALUE_F32, 1e-6);
  gguf_keys_number(k, "qwen3moe.rope.freq_base", VALUE_F32, 1e6);
}

typedef struct {
  model_settings settings;
  status result;
  message_list warnings, refusals;
} reading;

// Reads what was put, strictly, and then with every reason.
static reading read_all(gguf_keys *k) {
  reading r = {.result = 0};
  const architecture *a;
  model_settings again;
  gguf *g;
  assert_int_equal(gguf_keys_open(&g, k), 0);
  status_reset();
  r.result = settings_read(&a, &r.settings, g, &r.warnings, NULL);
  char first[2048];
  snprintf(first, sizeof first, "%s", status_text());
  status_reset();
  message_list ignored = {.count = 0};
  assert_int_equal(settings_read(&a, &again, g, &ignored, &r.refusals), 0);
  assert_int_equal(r.refusals.count > 0, r.result != 0);
  if (r.result) assert_non_null(strstr(first, r.refusals.text[0])); // the first reason is the error
  message_list_close(&ignored);
  gguf_close(g);
  return r;
}

static void close_reading(reading *r) {
  message_list_close(&r->warnings);
  message_list_close(&r->refusals);
}

static void accepted(gguf_keys *k, size_t warnings) {
  reading r = read_all(k);
  if (r.result) fail_msg("refused: %s", r.refusals.text[0]);
  assert_int_equal(r.warnings.count, warnings);
  assert_int_equal(r.settings.shape.hidden, 256);
  close_reading(&r);
}

static void refused(gguf_keys *k, const char *key, const char *found) {
  reading r = read_all(k);
  assert_int_not_equal(r.result, 0);
  assert_int_equal(r.refusals.count, 1);
  if (!strstr(r.refusals.text[0], key) || !strstr(r.refusals.text[0], found))
    fail_msg("\"%s\" does not name %s and %s", r.refusals.text[0], key, found);
  close_reading(&r);
}

typedef struct {
  const char *name;
  uint32_t type;
  double value;
} number;

static void put_whole(gguf_keys *k) {
  put_plain(k);
  gguf_keys_number(k, "qwen3moe.attention.head_count_kv", VALUE_U32, 2);
}

static void put_one(gguf_keys *k, const number *n) {
  char name[96];
  put_whole(k);
  snprintf(name, sizeof name, "qwen3moe.%s", n->name);
  gguf_keys_number(k, name, n->type, n->value);
}

static void test_values_that_are_the_same_model(void **state) {
  (void)state;
  const number same[] = {{"rope.scale_linear", VALUE_F32, 1},
                         {"rope.scale_linear", VALUE_F32, 0},
                         {"rope.scaling.factor", VALUE_F64, 0},
                         {"rope.scaling.attn_factor", VALUE_F32, 1},
                         {"rope.scaling.yarn_ext_factor", VALUE_F32, -1},
                         {"rope.scaling.yarn_beta_fast", VALUE_F32, 17},
                         {"expert_group_count", VALUE_U32, 1},
                         {"expert_weights_scale", VALUE_F32, 0},
                         {"expert_weights_norm", VALUE_BOOL, 1},
                         {"expert_gating_func", VALUE_U32, 0},
                         {"attention.sliding_window", VALUE_U32, 0},
                         {"attention.causal", VALUE_BOOL, 1},
                         {"attention.scale", VALUE_F32, 0},
                         {"attention.scale", VALUE_F32, 0.125}, // 1 / sqrt(64)
                         {"attn_logit_softcapping", VALUE_F32, 50},
                         {"final_logit_softcapping", VALUE_F32, 0},
                         {"logit_scale", VALUE_F32, 1},
                         {"embedding_length_out", VALUE_U32, 256},
                         {"pooling_type", VALUE_U32, -1},
                         {"decoder_start_token_id", VALUE_I32, -1},
                         {"use_parallel_residual", VALUE_BOOL, 0},
                         {"ssm.inner_size", VALUE_U32, 0},
                         {"nextn_predict_layers", VALUE_U32, 0}};
  for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
    gguf_keys k;
    put_one(&k, &same[i]);
    accepted(&k, 0);
  }
}

static void test_values_that_ask_for_another_model(void **state) {
  (void)state;
  const struct {
    number n;
    const char *found;
  } other[] = {{{"rope.scale_linear", VALUE_F32, 2.5}, "found 2.5"},
               {{"rope.scaling.attn_factor", VALUE_F32, 0.5}, "found 0.5"},
               {{"rope.scaling.yarn_ext_factor", VALUE_F32, 1}, "found 1"},
               {{"rope.scaling.alpha", VALUE_F32, 1000}, "found 1000"},
               {{"expert_group_count", VALUE_U32, 4}, "found 4"},
               {{"expert_weights_norm", VALUE_BOOL, 0}, "found 0"},
               {{"attention.sliding_window", VALUE_U32, 4096}, "found 4096"},
               {{"attention.causal", VALUE_BOOL, 0}, "found 0"},
               {{"attention.scale", VALUE_F32, 0.25}, "found 0.25"},
               {{"attention.clamp_kqv", VALUE_F32, 8}, "found 8"},
               {{"attention.max_alibi_bias", VALUE_F32, 8}, "found 8"},
               {{"attn_logit_softcapping", VALUE_F32, 30}, "found 30"},
               {{"final_logit_softcapping", VALUE_F32, 15}, "found 15"},
               {{"logit_scale", VALUE_F32, 0.0625}, "found 0.0625"},
               {{"residual_scale", VALUE_F32, 0.22}, "found 0.22"},
               {{"embedding_scale", VALUE_F32, 12}, "found 12"},
               {{"embedding_length_out", VALUE_U32, 128}, "found 128"},
               {{"attention.q_lora_rank", VALUE_U32, 512}, "found 512"},
               {{"ssm.state_size", VALUE_U32, 128}, "found 128"},
               {{"nextn_predict_layers", VALUE_U32, 1}, "found 1"},
               {{"hyper_connection.count", VALUE_U32, 4}, "found 4"}};
  for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
    gguf_keys k;
    put_one(&k, &other[i].n);
    refused(&k, other[i].n.name, other[i].found);
  }
}

static void test_texts(void **state) {
  (void)state;
  const struct {
    const char *name, *text;
    bool same;
  } cases[] = {
      {"rope.scaling.type", "linear", true},     {"rope.scaling.type", "none", true},
      {"rope.scaling.type", "yarn", false},      {"rope.scaling.type", "longrope", false},
      {"hidden_activation", "silu", true},       {"hidden_activation", "gelu", false},
      {"tensor_data_layout", "reference", true}, {"tensor_data_layout", "Meta AI original pth", false}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    gguf_keys k;
    char name[96];
    put_whole(&k);
    snprintf(name, sizeof name, "qwen3moe.%s", cases[i].name);
    gguf_keys_string(&k, name, cases[i].text);
    if (cases[i].same)
      accepted(&k, 0);
    else
      refused(&k, cases[i].name, cases[i].text);
  }
}

// What is the same for all layers may be an array.
static void test_arrays(void **state) {
  (void)state;
  gguf_keys k;
  const int32_t two[] = {2, 2, 2}, mixed[] = {2, 2, 1}, none[] = {-1, -1, -1, -1}, one[] = {-1, 5};
  const float zeros[] = {0, 0, 0}, clamped[] = {0, 7, 0};
  put_plain(&k);
  gguf_keys_ints(&k, "qwen3moe.attention.head_count_kv", two, 3);
  gguf_keys_ints(&k, "qwen3moe.deepstack_mapping", none, 4);
  gguf_keys_floats(&k, "qwen3moe.swiglu_clamp_exp", zeros, 3);
  gguf_keys_ints(&k, "qwen3moe.classifier.output_labels", none, 0);
  reading r = read_all(&k);
  assert_int_equal(r.result, 0);
  assert_int_equal(r.settings.shape.n_kv_heads, 2);
  close_reading(&r);
  put_plain(&k);
  gguf_keys_ints(&k, "qwen3moe.attention.head_count_kv", mixed, 3);
  refused(&k, "attention.head_count_kv", "1 for layer 2");
  put_whole(&k);
  gguf_keys_ints(&k, "qwen3moe.deepstack_mapping", one, 2);
  refused(&k, "deepstack_mapping", "found 5");
  put_whole(&k);
  gguf_keys_floats(&k, "qwen3moe.swiglu_clamp_exp", clamped, 3);
  refused(&k, "swiglu_clamp_exp", "found 7");
}

// llama.cpp's saver has false for weights that are normalised, and 0 for the gate.
static void test_not_set_by_another_key(void **state) {
  (void)state;
  gguf_keys k;
  const number norm = {"expert_weights_norm", VALUE_BOOL, 0};
  put_one(&k, &norm);
  gguf_keys_number(&k, "qwen3moe.expert_gating_func", VALUE_U32, 0);
  accepted(&k, 0);
  put_one(&k, &norm);
  gguf_keys_number(&k, "qwen3moe.expert_gating_func", VALUE_U32, 1);
  refused(&k, "expert_weights_norm", "found 0");
}

static void test_unknown_keys_are_warned_of(void **state) {
  (void)state;
  gguf_keys k;
  put_whole(&k);
  gguf_keys_number(&k, "qwen3moe.rope.scale_cubic", VALUE_F32, 3);
  gguf_keys_string(&k, "qwen3moe.router.noise", "gumbel");
  gguf_keys_number(&k, "qwen3.rope.scale_linear", VALUE_F32, 4); // another architecture's
  reading r = read_all(&k);
  assert_int_equal(r.result, 0);
  assert_int_equal(r.warnings.count, 2);
  assert_non_null(strstr(r.warnings.text[0], "rope.scale_cubic = 3"));
  assert_non_null(strstr(r.warnings.text[1], "router.noise = \"gumbel\""));
  close_reading(&r);
}

static void test_all_reasons(void **state) {
  (void)state;
  gguf_keys k;
  put_plain(&k);
  gguf_keys_number(&k, "qwen3moe.attention.sliding_window", VALUE_U32, 128);
  gguf_keys_number(&k, "qwen3moe.logit_scale", VALUE_F32, 3);
  gguf_keys_string(&k, "qwen3moe.rope.scaling.type", "yarn");
  gguf_keys_number(&k, "qwen3moe.wkv.head_size", VALUE_U32, 64);
  reading r = read_all(&k); // head_count_kv is missing as well
  assert_int_equal(r.refusals.count, 5);
  close_reading(&r);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_values_that_are_the_same_model),
      cmocka_unit_test(test_values_that_ask_for_another_model),
      cmocka_unit_test(test_texts),
      cmocka_unit_test(test_arrays),
      cmocka_unit_test(test_not_set_by_another_key),
      cmocka_unit_test(test_unknown_keys_are_warned_of),
      cmocka_unit_test(test_all_reasons),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
