// Tests of report_read and report_diff: each value that is wrong is refused by file and key; two reports
// side by side.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "src/report/report_diff.h"
#include "tests/support/good_report.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

// The node at "arms.0.digest" takes `value` (a JSON text), or goes where that is NULL; an array's end is
// ".+".
static json_t *edited(const char *path, const char *value) {
  json_t *root = json_loads(GOOD_REPORT, 0, NULL), *node = root;
  char parts[8][32], *text = strdup(path);
  int n = 0;
  assert_non_null(root);
  for (char *part = strtok(text, "."); part; part = strtok(NULL, ".")) strcpy(parts[n++], part);
  free(text);
  for (int i = 0; i < n - 1; i++)
    node =
        json_is_array(node) ? json_array_get(node, (size_t)atoi(parts[i])) : json_object_get(node, parts[i]);
  assert_non_null(node);
  json_t *put = value ? json_loads(value, JSON_DECODE_ANY, NULL) : NULL;
  assert_true(!value || put);
  const char *last = parts[n - 1];
  int bad;
  if (json_is_array(node) && *last == '+')
    bad = json_array_append_new(node, put);
  else if (json_is_array(node))
    bad =
        put ? json_array_set_new(node, (size_t)atoi(last), put) : json_array_remove(node, (size_t)atoi(last));
  else
    bad = put ? json_object_set_new(node, last, put) : json_object_del(node, last);
  assert_int_equal(bad, 0);
  return root;
}

static status read_tree(recorded_report *out, json_t *root) {
  char *text = json_dumps(root, 0);
  json_decref(root);
  status_reset();
  status result = report_read_text(out, "r.json", text, strlen(text));
  free(text);
  return result;
}

static void read_good(recorded_report *out) {
  if (report_read_text(out, "r.json", GOOD_REPORT, strlen(GOOD_REPORT))) fail_msg("%s", status_text());
}

static void test_good(void **state) {
  (void)state;
  recorded_report r;
  read_good(&r);
  assert_int_equal(r.n_arms, 2);
  assert_int_equal(r.n_ranks, 2);
  assert_int_equal(r.n_layers, 2);
  assert_true(r.fingerprint == 0xaa && r.input == 0xbb && r.arms[0].expert_paths == 0xcc);
  assert_true(r.arms[1].layer_digests[1] == 6 && r.arms[0].sequences[0].digest == UINT64_MAX);
  assert_int_equal(r.arms[0].texts[0].tokens[1], 6);
  assert_int_equal(r.arms[0].texts[1].n_tokens, 0);
  report_read_close(&r);
  assert_null(r.arms);
}

static void test_every_key_is_needed(void **state) {
  (void)state;
  static const char *const KEYS[] = {"schema",
                                     "command",
                                     "model",
                                     "model.name",
                                     "model.fingerprint",
                                     "model.n_layers",
                                     "machine.cpu",
                                     "machine",
                                     "build.row",
                                     "machine.hosts",
                                     "build.version",
                                     "build",
                                     "run",
                                     "run.config",
                                     "run.kv",
                                     "run.input",
                                     "run.context",
                                     "ranks",
                                     "arms",
                                     "arms.1.name",
                                     "arms.1.path",
                                     "arms.1.path_version",
                                     "arms.1.expert_paths",
                                     "arms.1.digest",
                                     "arms.1.ranks",
                                     "arms.1.layer_digests",
                                     "arms.1.sequences",
                                     "arms.1.sequences.0.tokens",
                                     "arms.1.sequences.1.digest",
                                     "arms.1.generated",
                                     "arms.0.generated.0.tokens",
                                     "arms.0.generated.0.digest",
                                     "arms.0.generated.1.sequence",
                                     "complete"};
  for (size_t i = 0; i < sizeof KEYS / sizeof *KEYS; i++) {
    recorded_report r;
    const char *last = strrchr(KEYS[i], '.') ? strrchr(KEYS[i], '.') + 1 : KEYS[i];
    assert_int_not_equal(read_tree(&r, edited(KEYS[i], NULL)), 0);
    if (!strstr(status_text(), "r.json: ") || !strstr(status_text(), last) ||
        !strstr(status_text(), "no such key"))
      fail_msg("%s missing: %s", KEYS[i], status_text());
    assert_null(r.arms);
    assert_null(r.tree);
    assert_int_not_equal(read_tree(&r, edited(KEYS[i], "null")), 0);
    if (!strstr(status_text(), "found null")) fail_msg("%s null: %s", KEYS[i], status_text());
  }
}

static void test_values_that_lie(void **state) {
  (void)state;
  static const struct {
    const char *path, *value, *told;
  } LIES[] = {
      {"schema", "1", "schema: expected 4"},
      {"schema", "4.0", "schema: expected an integer, found a real"},
      {"command", "\"tell\"", "command: expected a command of moe_run, found \"tell\""},
      {"run.skip", NULL, "run.skip: expected an integer, found no such key"},
      {"run.routes", NULL, "run.routes: expected a string, found no such key"},
      {"run.routes", "\"\"", "run.routes: expected 16 hexadecimal digits"},
      {"run.skip", "-1", "run.skip: expected 0 to"},
      {"run.skip", "\"\"", "run.skip: expected an integer, found a string"},
      {"arms.1.name", "\"f64@auto\"", "arms[1].name: expected path@backend"},
      {"complete", "false", "complete: expected true, found false"},
      {"complete", "1", "complete: expected true, found an integer"},
      {"model", "[]", "model: expected an object, found an array"},
      {"model.fingerprint", "\"aa\"", "model.fingerprint: expected 16 hexadecimal"},
      {"model.fingerprint", "\"00000000000000AA\"", "model.fingerprint: expected 16"},
      {"model.fingerprint", "\"00000000000000aa0\"", "model.fingerprint: expected 16"},
      {"model.n_layers", "0", "model.n_layers: expected 1 to"},
      {"model.n_layers", "3",
       "arms[0].layer_digests: expected one for each of the model's 3 layers, found 2"},
      {"model.n_layers", "9223372036854775807", "model.n_layers: expected 1 to"},
      {"machine.hosts", "-1", "machine.hosts: expected 1 to"},
      {"run.kv", "\"f8\"", "run.kv: expected \"f16\" or \"f32\""},
      {"ranks", "[]", "ranks: expected at least one"},
      {"arms", "[]", "arms: expected at least one"},
      {"arms.+", "3", "arms[2]: expected an object, found an integer"},
      {"arms.1.name", "\"q8k@cpu\"", "arms[1].path: expected the path of q8k@cpu"},
      {"arms.1.name", "\"f64\"", "arms[1].name: expected path@backend"},
      {"arms.1.name", "\"f64@tpu\"", "arms[1].name: expected path@backend"},
      {"arms.1.path", "\"f6\"", "arms[1].path: expected the path of f64@cpu"},
      {"arms.1.path_version", "0", "arms[1].path_version: expected 1 to"},
      {"arms.1.ranks", "3", "arms[1].ranks: expected 2 to 2"},
      {"arms.1.digest", "\"0000000000000008\"", "arms[1].digest: expected the sum of its sequences"},
      {"arms.1.layer_digests.+", "\"0000000000000008\"", "arms[1].layer_digests: expected one for each"},
      {"arms.1.layer_digests.1", "\"\"", "arms[1].layer_digests[1]: expected 16"},
      {"arms.1.layer_digests.1", "7", "arms[1].layer_digests[1]: expected a string, found an integer"},
      {"arms.1.sequences", "[]", "arms[1].sequences: expected at least one"},
      {"arms.1.sequences.0.tokens", "0", "arms[1].sequences[0].tokens: expected 1 to"},
      {"arms.1.sequences.0.digest", "\"0000000000000008\"", "arms[1].digest: expected the sum"},
      {"arms.1.sequences.+", "{\"tokens\": 1, \"digest\": \"0000000000000000\"}",
       "arms[1].sequences: expected as many"},
      {"arms.0.generated.1", NULL, "arms[0].generated: expected one for each of 2 sequences, found 1"},
      {"arms.0.generated.1.sequence", "0", "arms[0].generated[1].sequence: expected 1 to 1"},
      {"arms.0.generated.0.tokens.1", "-1", "arms[0].generated[0].tokens[1]: expected a token's id"},
      {"arms.0.generated.0.tokens.1", "2147483648", "arms[0].generated[0].tokens[1]: expected a token's id"},
      {"arms.0.generated.0.tokens.1", "1.5",
       "arms[0].generated[0].tokens[1]: expected an integer, found a real"},
  };
  for (size_t i = 0; i < sizeof LIES / sizeof *LIES; i++) {
    recorded_report r;
    assert_int_not_equal(read_tree(&r, edited(LIES[i].path, LIES[i].value)), 0);
    if (!strstr(status_text(), LIES[i].told) || !strstr(status_text(), "r.json: "))
      fail_msg("%s = %s: %s", LIES[i].path, LIES[i].value, status_text());
  }
}

static void test_two_arms_of_one_name(void **state) {
  (void)state;
  recorded_report r;
  json_t *root = json_loads(GOOD_REPORT, 0, NULL), *arms = json_object_get(root, "arms");
  json_array_append(arms, json_array_get(arms, 0));
  assert_int_not_equal(read_tree(&r, root), 0);
  assert_non_null(strstr(status_text(), "arms[2].name: \"q8k@cpu\" is arms[0] already"));
}

static void test_cut_short_anywhere(void **state) {
  (void)state;
  recorded_report r;
  for (size_t n = 0; n < strlen(GOOD_REPORT); n++) {
    char *exact = malloc(n ? n : 1); // so that a sanitizer sees a byte too many
    memcpy(exact, GOOD_REPORT, n);
    status_reset();
    assert_int_not_equal(report_read_text(&r, "r.json", exact, n), 0);
    assert_non_null(strstr(status_text(), "r.json:"));
    free(exact);
  }
  char twice[sizeof GOOD_REPORT + 32];
  snprintf(twice, sizeof twice, "%s {}", GOOD_REPORT);
  assert_int_not_equal(report_read_text(&r, "r.json", twice, strlen(twice)), 0);
  snprintf(twice, sizeof twice, "{\"schema\": 4, %s", GOOD_REPORT + 1); // a key that stands twice
  assert_int_not_equal(report_read_text(&r, "r.json", twice, strlen(twice)), 0);
}

// ---- two reports ----

// Compares GOOD_REPORT with GOOD_REPORT edited; *out: what was printed, caller frees.
static status compare_with(bool *same, char **out, const char *path, const char *value) {
  recorded_report a, b;
  size_t size;
  FILE *f = open_memstream(out, &size);
  read_good(&a);
  if (path && read_tree(&b, edited(path, value))) fail_msg("%s", status_text());
  if (!path) read_good(&b);
  status_reset();
  status result = report_diff(same, f, &a, &b);
  fclose(f);
  report_read_close(&a);
  report_read_close(&b);
  return result;
}

static void test_same(void **state) {
  (void)state;
  bool same;
  char *out;
  assert_int_equal(compare_with(&same, &out, NULL, NULL), 0);
  assert_true(same);
  assert_non_null(strstr(out, "same bits: 2 of 2"));
  free(out);
  // what is no part of the law: where, and how many
  assert_int_equal(compare_with(&same, &out, "machine.cpu", "\"\\u001b[2Janother\""), 0);
  assert_true(same && !strchr(out, '\x1b'));
  free(out);
  assert_int_equal(compare_with(&same, &out, "arms.0.name", "\"q8k@cuda\""), 0);
  assert_true(same && strstr(out, "q8k@cpu   q8k@cuda"));
  free(out);
}

static void test_different(void **state) {
  (void)state;
  static const struct {
    const char *path, *value, *told;
  } CASES[] = {
      {"arms.0.layer_digests.1", "\"0000000000000009\"", "differ from layer 1 on, not in the logits"},
      {"arms.0.layer_digests.0", "\"0000000000000009\"", "differ from layer 0 on, not in the logits"},
      {"arms.0.sequences",
       "[{\"tokens\": 3, \"digest\": \"fffffffffffffffe\"}, {\"tokens\": 4, \"digest\": "
       "\"0000000000000002\"}]",
       "differ in the logits, in no layer; 2 of 2 sequences, the first is 0"},
      {"arms.0.generated.0.tokens.1", "7", "differ in what they wrote: sequence 0, token 1"},
      {"arms.0.generated.0.tokens.1", NULL, "differ in the logits of what they wrote: sequence 0"},
      {"arms.0.generated.1.digest", "\"0000000000000009\"",
       "differ in the logits of what they wrote: sequence 1"},
  };
  for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
    bool same = true;
    char *out;
    assert_int_equal(compare_with(&same, &out, CASES[i].path, CASES[i].value), 0);
    if (same || !strstr(out, CASES[i].told) || !strstr(out, "OTHER BITS: 1 of 2")) fail_msg("%s", out);
    free(out);
  }
}

static void test_not_comparable(void **state) {
  (void)state;
  static const struct {
    const char *path, *value, *told;
  } CASES[] = {{"model.fingerprint", "\"00000000000000ab\"",
                "the model's fingerprint is 00000000000000aa (2 layers) and 00000000000000ab"},
               {"run.input", "\"00000000000000ab\"", "tokens is 00000000000000bb and 00000000000000ab"},
               {"command", "\"perplexity\"", "perplexity computes windows"}};
  for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
    bool same;
    char *out;
    assert_int_not_equal(compare_with(&same, &out, CASES[i].path, CASES[i].value), 0);
    if (!strstr(status_text(), CASES[i].told) || *out) fail_msg("%s", status_text());
    free(out);
  }
}

static void test_what_makes_another_path(void **state) {
  (void)state;
  static const struct {
    const char *path, *value;
  } CASES[] = {
      {"run.kv", "\"f32\""}, {"arms.0.path_version", "2"}, {"arms.0.expert_paths", "\"00000000000000ce\""}};
  for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
    bool same = false;
    char *out;
    assert_int_equal(compare_with(&same, &out, CASES[i].path, CASES[i].value), 0);
    if (!same || !strstr(out, "only in A") || !strstr(out, "only in B") || !strstr(out, "1 of 1"))
      fail_msg("%s", out);
    free(out);
  }
}

// Tokens that another seed chose are no difference of bits.
static void test_other_settings_of_writing(void **state) {
  (void)state;
  recorded_report a, b;
  bool same = false;
  char *out;
  size_t size;
  json_t *root = edited("arms.0.generated.0.tokens.1", "7");
  json_object_set_new(json_object_get(root, "run"), "config",
                      json_string("run.generate = 2\nrun.seed = 2\n"));
  read_good(&a);
  assert_int_equal(read_tree(&b, root), 0);
  FILE *f = open_memstream(&out, &size);
  assert_int_equal(report_diff(&same, f, &a, &b), 0);
  fclose(f);
  assert_true(same);
  free(out);
  report_read_close(&a);
  report_read_close(&b);
}

// A fingerprint that lies must not lead beyond the shorter list of layers.
static void test_other_layers(void **state) {
  (void)state;
  recorded_report a, b;
  bool same;
  json_t *root = edited("model.n_layers", "1"), *arms = json_object_get(root, "arms");
  for (size_t i = 0; i < json_array_size(arms); i++)
    json_array_remove(json_object_get(json_array_get(arms, i), "layer_digests"), 1);
  read_good(&a);
  assert_int_equal(read_tree(&b, root), 0);
  status_reset();
  assert_int_not_equal(report_diff(&same, stdout, &a, &b), 0);
  assert_non_null(strstr(status_text(), "(2 layers) and 00000000000000aa (1 layers)"));
  report_read_close(&a);
  report_read_close(&b);
}

static void test_no_arm_in_common(void **state) {
  (void)state;
  recorded_report a, b;
  bool same;
  json_t *root = edited("arms.1", NULL);
  json_object_set_new(json_object_get(root, "run"), "kv", json_string("f32"));
  read_good(&a);
  assert_int_equal(read_tree(&b, root), 0);
  status_reset();
  assert_int_not_equal(report_diff(&same, stdout, &a, &b), 0);
  assert_non_null(strstr(status_text(), "no arm of one path"));
  report_read_close(&a);
  report_read_close(&b);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_good),
      cmocka_unit_test(test_every_key_is_needed),
      cmocka_unit_test(test_values_that_lie),
      cmocka_unit_test(test_two_arms_of_one_name),
      cmocka_unit_test(test_cut_short_anywhere),
      cmocka_unit_test(test_same),
      cmocka_unit_test(test_different),
      cmocka_unit_test(test_not_comparable),
      cmocka_unit_test(test_what_makes_another_path),
      cmocka_unit_test(test_other_settings_of_writing),
      cmocka_unit_test(test_other_layers),
      cmocka_unit_test(test_no_arm_in_common),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
