// Every input that tests/fuzz/corpus/ keeps, through the target that it is for. The targets end the program
// where a promise is broken; what a sanitizer sees is seen in the sanitized build. docs/fuzzing.md has the
// rest.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tests/fuzz/fuzz.c"
#include "tests/fuzz/fuzz_golden.c"
#include "tests/fuzz/fuzz_blocks.c"
#include "tests/fuzz/fuzz_bpe.c"
#include "tests/fuzz/fuzz_config.c"
#include "tests/fuzz/fuzz_gguf.c"
#include "tests/fuzz/fuzz_model.c"
#include "tests/fuzz/fuzz_npy.c"
#include "tests/fuzz/fuzz_placement.c"
#include "tests/fuzz/fuzz_report.c"
#include "tests/fuzz/fuzz_text.c"
#include "tests/fuzz/fuzz_tokenizer.c"
#include "tests/fuzz/fuzz_tokens.c"
#include "tests/fuzz/fuzz_toml.c"
#include "tests/fuzz/fuzz_vocabulary.c"

#define CORPUS MOE_SOURCE_DIR "/tests/fuzz/corpus/"

enum { MOST_BYTES = 1 << 16, LEAST_INPUTS = 3 };

typedef struct {
  const char *name;
  int (*run)(const uint8_t *data, size_t size);
} target;

// The input lies in memory of its own size, as libFuzzer gives it.
static void run_file(const target *t, const char *path) {
  static uint8_t bytes[MOST_BYTES];
  FILE *f = fopen(path, "rb");
  assert_non_null(f);
  size_t size = fread(bytes, 1, sizeof bytes, f);
  assert_true(size < sizeof bytes);
  fclose(f);
  uint8_t *exact = malloc(size ? size : 1);
  assert_non_null(exact);
  memcpy(exact, bytes, size);
  assert_int_equal(t->run(exact, size), 0);
  free(exact);
}

static void test_corpus(void **state) {
  const target *t = *state;
  char path[1024];
  int count = 0;
  snprintf(path, sizeof path, CORPUS "%s", t->name);
  DIR *folder = opendir(path);
  assert_non_null(folder);
  for (const struct dirent *entry; (entry = readdir(folder));) {
    if (*entry->d_name == '.') continue;
    count++;
    snprintf(path, sizeof path, CORPUS "%s/%.255s", t->name, entry->d_name);
    fprintf(stderr, "%s/%s\n", t->name, entry->d_name); // the last line names the input that ends the program
    run_file(t, path);
  }
  closedir(folder);
  assert_true(count >= LEAST_INPUTS);
}

int main(void) {
  static target targets[] = {
      {"blocks", target_blocks},
      {"bpe", target_bpe},
      {"config", target_config},
      {"gguf", target_gguf},
      {"model", target_model},
      {"npy", target_npy},
      {"placement", target_placement},
      {"report", target_report},
      {"text", target_text},
      {"toml", target_toml},
      {"tokenizer", target_tokenizer},
      {"tokens", target_tokens},
      {"vocabulary", target_vocabulary},
  };
  enum { TARGETS = sizeof targets / sizeof *targets };
  struct CMUnitTest tests[TARGETS];
  for (size_t i = 0; i < TARGETS; i++)
    tests[i] = (struct CMUnitTest){targets[i].name, test_corpus, NULL, NULL, &targets[i]};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
