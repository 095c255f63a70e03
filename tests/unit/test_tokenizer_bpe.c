// Tests of byte-pair encoding: random merges and words against the plain definition.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "src/text/tokenizer_bpe.h"
#include "tests/support/seed.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t random_state;

static uint64_t random_below(uint64_t n) { // SplitMix64
  uint64_t z = random_state += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return (z ^ z >> 31) % n;
}

// ---- merges against the plain definition: again and again, merge the leftmost pair of the lowest rank ----

enum { SYMBOLS = 4, RANDOM_MERGES = 60, MAX_IDS = SYMBOLS + RANDOM_MERGES };

typedef struct {
  int32_t left, right;
} pair;

static size_t plain_merge(int32_t *id, size_t count, const pair *merge, const int32_t *joined,
                          size_t merges) {
  for (size_t rank = 0; rank < merges;) {
    size_t i = 0;
    while (i + 1 < count && (id[i] != merge[rank].left || id[i + 1] != merge[rank].right)) i++;
    if (i + 1 >= count) {
      rank++;
      continue;
    }
    id[i] = joined[rank];
    memmove(id + i + 1, id + i + 2, (count - i - 2) * sizeof *id);
    count--;
    rank = 0;
  }
  return count;
}

static void test_merges(void **state) {
  (void)state;
  for (int round = 0; round < 300; round++) {
    bpe *b;
    bpe_work *w;
    pair merge[RANDOM_MERGES];
    int32_t joined[RANDOM_MERGES];
    size_t merges = 0;
    assert_int_equal(bpe_open(&b, RANDOM_MERGES), 0);
    assert_int_equal(bpe_work_open(&w), 0);
    for (int i = 0; i < RANDOM_MERGES;
         i++) { // parts of any earlier rank or, as no true vocabulary, of a later one
      uint64_t known_ids = random_below(4) ? SYMBOLS + merges : MAX_IDS;
      pair p = {(int32_t)random_below(known_ids), (int32_t)random_below(known_ids)};
      uint32_t known;
      bpe_add(&known, b, p.left, p.right, (int32_t)(SYMBOLS + merges), (uint32_t)merges);
      if (known != merges) continue;
      joined[merges] = (int32_t)(SYMBOLS + merges);
      merge[merges++] = p;
    }
    for (int i = 0; i < 20; i++) {
      int32_t word[200], plain[200];
      size_t count = 1 + random_below(200), alphabet = 1 + random_below(SYMBOLS);
      id_list out = {0};
      for (size_t k = 0; k < count; k++) plain[k] = word[k] = (int32_t)random_below(alphabet);
      assert_int_equal(bpe_encode(&out, b, w, word, count), 0);
      count = plain_merge(plain, count, merge, joined, merges);
      assert_int_equal(out.count, count);
      assert_memory_equal(out.id, plain, count * sizeof *plain);
      free(out.id);
    }
    bpe_work_close(w);
    bpe_close(b);
  }
}

static void test_limits(void **state) {
  (void)state;
  bpe *b;
  bpe_work *w;
  id_list out = {0};
  int32_t one = 3;
  assert_int_equal(bpe_open(&b, 0), 0);
  assert_int_equal(bpe_work_open(&w), 0);
  assert_int_equal(bpe_encode(&out, b, w, NULL, 0), 0);
  assert_int_equal(out.count, 0);
  assert_int_equal(bpe_encode(&out, b, w, &one, 1), 0);
  assert_int_equal(out.count, 1);
  assert_int_equal(out.id[0], 3);
  assert_int_not_equal(bpe_encode(&out, b, w, NULL, (size_t)BPE_MAX_WORD + 1), 0);
  status_reset();
  free(out.id);
  bpe_work_close(w);
  bpe_close(b);
  bpe_work_close(NULL);
  bpe_close(NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_merges), cmocka_unit_test(test_limits)};
  random_state = test_seed_bits();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
