// Tests of src/run/placement.c: each placement over many sizes, and lists that are wrong.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "base/status.h"
#include "kernels/formats/numerics.h"
#include "src/run/placement.h"
#include "src/run/placement_counted.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

// The plans of all ranks are one plan: the same owners, every expert local to its owner alone, own ones
// ascending.
static void check_plans(placement_kind kind, const int32_t *list, int n, int ranks, int64_t *owned) {
  int32_t owner[64];
  int64_t total = 0;
  for (int rank = 0; rank < ranks; rank++) {
    placement p;
    assert_int_equal(placement_open(&p, kind, list, list ? (size_t)n : 0, NULL, n, ranks, rank), 0);
    int32_t next = 0;
    for (int e = 0; e < n; e++) {
      assert_in_range(p.rank_of_expert[e], 0, ranks - 1);
      if (rank) assert_int_equal(p.rank_of_expert[e], owner[e]);
      owner[e] = p.rank_of_expert[e];
      assert_int_equal(p.local[e].index, owner[e] == rank ? next++ : -1);
    }
    assert_int_equal(p.n_owned, next);
    assert_true(next > 0);
    owned[rank] = next;
    total += next;
    placement_close(&p);
  }
  assert_int_equal(total, n);
}

static void placements_divide_evenly(void **state) {
  (void)state;
  for (int n = 1; n <= 40; n++)
    for (int ranks = 1; ranks <= n; ranks++)
      for (placement_kind kind = PLACEMENT_CONTIGUOUS; kind <= PLACEMENT_STRIDED; kind++) {
        int64_t owned[64];
        check_plans(kind, NULL, n, ranks, owned);
        for (int r = 1; r < ranks; r++) { // the first ranks own one more
          assert_true(owned[r] <= owned[r - 1]);
          assert_true(owned[0] - owned[r] <= 1);
        }
      }
}

static void contiguous_and_strided_are_what_they_say(void **state) {
  (void)state;
  placement a, b;
  assert_int_equal(placement_open(&a, PLACEMENT_CONTIGUOUS, NULL, 0, NULL, 7, 3, 0), 0);
  assert_int_equal(placement_open(&b, PLACEMENT_STRIDED, NULL, 0, NULL, 7, 3, 0), 0);
  const int32_t contiguous[] = {0, 0, 0, 1, 1, 2, 2}, strided[] = {0, 1, 2, 0, 1, 2, 0};
  assert_memory_equal(a.rank_of_expert, contiguous, sizeof contiguous);
  assert_memory_equal(b.rank_of_expert, strided, sizeof strided);
  placement_close(&a);
  placement_close(&b);
}

static void lists_are_taken_as_they_are(void **state) {
  (void)state;
  const int32_t list[] = {2, 0, 2, 2, 1, 0};
  int64_t owned[64];
  check_plans(PLACEMENT_LIST, list, 6, 3, owned);
  assert_int_equal(owned[0], 2);
  assert_int_equal(owned[1], 1);
  assert_int_equal(owned[2], 3);
  placement p;
  assert_int_equal(placement_open(&p, PLACEMENT_LIST, list, 6, NULL, 6, 3, 1), 0);
  assert_memory_equal(p.rank_of_expert, list, sizeof list);
  placement_close(&p);
}

// ---- by speed ----

static void balanced(const double *speed, int n, int ranks, const int64_t *wanted) {
  placement p;
  int next = 0;
  assert_int_equal(placement_open(&p, PLACEMENT_BALANCED, NULL, 0, speed, n, ranks, ranks - 1), 0);
  for (int r = 0; r < ranks; r++)
    for (int64_t i = 0; i < wanted[r]; i++) assert_int_equal(p.rank_of_expert[next++], r);
  assert_int_equal(next, n);
  assert_int_equal(p.n_owned, wanted[ranks - 1]);
  placement_close(&p);
}

static void speeds_are_shares(void **state) {
  (void)state;
  balanced((const double[]){1, 1, 1}, 8, 3, (const int64_t[]){3, 3, 2});
  balanced((const double[]){1, 3}, 16, 2, (const int64_t[]){4, 12});
  balanced((const double[]){0.3, 0.1, 0.2}, 10, 3, (const int64_t[]){5, 2, 3});
  balanced((const double[]){2, 9, 9}, 10, 3, (const int64_t[]){1, 5, 4}); // 1, 4.5, 4.5: ties to the lower
  balanced((const double[]){1e-9, 1, 1e9}, 128, 3, (const int64_t[]){1, 1, 126}); // at least one each
  balanced((const double[]){1e-9, 1, 1.01}, 3, 3, (const int64_t[]){1, 1, 1});
  balanced((const double[]){7}, 5, 1, (const int64_t[]){5});
}

static void every_expert_has_an_owner(void **state) {
  (void)state;
  for (uint64_t seed = 0; seed < 3000; seed++) {
    double speed[20], sum = 0;
    int ranks = (int)(num_mix64(seed) % 20) + 1, n = ranks + (int)(num_mix64(seed + 7) % 130);
    for (int r = 0; r < ranks; r++) sum += speed[r] = 1 + (double)(num_mix64(seed << 8 | (uint64_t)r) % 1000);
    placement p;
    assert_int_equal(placement_open(&p, PLACEMENT_BALANCED, NULL, 0, speed, n, ranks, 0), 0);
    for (int e = 1; e < n; e++) // contiguous, and no rank is left out
      assert_in_range(p.rank_of_expert[e] - p.rank_of_expert[e - 1], 0, 1);
    assert_int_equal(p.rank_of_expert[0], 0);
    assert_int_equal(p.rank_of_expert[n - 1], ranks - 1);
    for (int r = 0; r < ranks; r++) {
      int count = 0;
      for (int e = 0; e < n; e++) count += p.rank_of_expert[e] == r;
      assert_true(count <= 1 || (double)count < (double)n * speed[r] / sum + 1);
    }
    placement_close(&p);
  }
}

// ---- by counts ----

enum { LAYERS = 3, COUNTED = 12 };

static double load_of(const int32_t *owner, const int64_t *counts, int n, int ranks) {
  double load;
  assert_int_equal(placement_load(&load, owner, counts, LAYERS, n, ranks), 0);
  return load;
}

static void an_even_placement_is_found(void **state) {
  (void)state;
  // two hot experts in each layer, that lie together contiguously: 4 and 5 of layer 0, 0 and 3 of 1, 6 and 7
  // of 2
  static const int hot[LAYERS][2] = {{4, 5}, {0, 3}, {6, 7}};
  int64_t counts[LAYERS * 8];
  int32_t owner[8];
  for (int i = 0; i < LAYERS * 8; i++) counts[i] = 10;
  for (int l = 0; l < LAYERS; l++)
    for (int i = 0; i < 2; i++) counts[l * 8 + hot[l][i]] = 100;
  assert_int_equal(placement_count(owner, counts, LAYERS, 8, 2), 0);
  for (int l = 0; l < LAYERS; l++) assert_int_not_equal(owner[hot[l][0]], owner[hot[l][1]]);
  assert_true(load_of(owner, counts, 8, 2) == 1);
  const int32_t contiguous[] = {0, 0, 0, 0, 1, 1, 1, 1};
  assert_true(load_of(contiguous, counts, 8, 2) == 3 * 220.0 * 2 / (3 * 260));
}

// As many experts as contiguously, never a higher load than by the first swap of two, whatever the counts.
static void counted_placements_cannot_be_bettered_by_a_swap(void **state) {
  (void)state;
  for (uint64_t seed = 0; seed < 200; seed++) {
    int ranks = (int)(num_mix64(seed) % 5) + 1, n = ranks + (int)(num_mix64(seed + 9) % (COUNTED - 4));
    int64_t counts[LAYERS * COUNTED], owned[8] = {0};
    int32_t owner[COUNTED];
    for (int i = 0; i < LAYERS * n; i++) counts[i] = (int64_t)(num_mix64(seed << 9 | (uint64_t)i) % 50);
    assert_int_equal(placement_count(owner, counts, LAYERS, n, ranks), 0);
    for (int e = 0; e < n; e++) owned[owner[e]]++;
    for (int r = 0; r < ranks; r++) assert_int_equal(owned[r], n / ranks + (r < n % ranks));
    double load = load_of(owner, counts, n, ranks);
    assert_true(load >= 1);
    for (int a = 0; a < n; a++)
      for (int b = a + 1; b < n; b++) {
        int32_t of_a = owner[a];
        owner[a] = owner[b];
        owner[b] = of_a;
        assert_true(load_of(owner, counts, n, ranks) >= load);
        owner[b] = owner[a];
        owner[a] = of_a;
      }
  }
}

static void refused(placement_kind kind, const int32_t *list, size_t length, int64_t n, int ranks,
                    const char *what) {
  placement p;
  assert_int_not_equal(placement_open(&p, kind, list, length, NULL, n, ranks, 0), 0);
  if (!strstr(status_text(), what)) fail_msg("\"%s\" does not say \"%s\"", status_text(), what);
  status_reset();
  placement_close(&p);
}

static void bad_plans_are_refused(void **state) {
  (void)state;
  const int32_t list[] = {0, 1, 0, 2}, beyond[] = {0, 1, 3, 2}, negative[] = {0, -1, 1, 2},
                idle[] = {0, 2, 0, 2};
  refused(PLACEMENT_CONTIGUOUS, NULL, 0, 4, 5, "5 ranks for 4 experts");
  refused(PLACEMENT_STRIDED, NULL, 0, 1, 2, "2 ranks for 1 expert");
  refused(PLACEMENT_LIST, list, 4, 3, 3, "expected 3 ranks");
  refused(PLACEMENT_LIST, list, 3, 4, 3, "found 3");
  refused(PLACEMENT_LIST, NULL, 0, 4, 3, "found 0");
  refused(PLACEMENT_LIST, beyond, 4, 4, 3, "expert 2: expected a rank from 0 to 2, found 3");
  refused(PLACEMENT_LIST, negative, 4, 4, 3, "expert 1");
  refused(PLACEMENT_LIST, idle, 4, 4, 3, "rank 1 owns no expert");
  const double slow[] = {1, 0}, unknown[] = {(double)NAN, 1};
  placement p;
  assert_int_not_equal(placement_open(&p, PLACEMENT_BALANCED, NULL, 0, slow, 4, 2, 0), 0);
  assert_non_null(strstr(status_text(), "rank 1"));
  status_reset();
  placement_close(&p);
  assert_int_not_equal(placement_open(&p, PLACEMENT_BALANCED, NULL, 0, unknown, 4, 2, 0), 0);
  assert_non_null(strstr(status_text(), "rank 0"));
  status_reset();
  placement_close(&p);
}

static void names(void **state) {
  (void)state;
  assert_string_equal(placement_name(PLACEMENT_CONTIGUOUS), "contiguous");
  assert_string_equal(placement_name(PLACEMENT_STRIDED), "strided");
  assert_string_equal(placement_name(PLACEMENT_BALANCED), "balanced");
  assert_string_equal(placement_name(PLACEMENT_LIST), "list");
  placement_close(NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(placements_divide_evenly),
      cmocka_unit_test(contiguous_and_strided_are_what_they_say),
      cmocka_unit_test(lists_are_taken_as_they_are),
      cmocka_unit_test(speeds_are_shares),
      cmocka_unit_test(every_expert_has_an_owner),
      cmocka_unit_test(an_even_placement_is_found),
      cmocka_unit_test(counted_placements_cannot_be_bettered_by_a_swap),
      cmocka_unit_test(bad_plans_are_refused),
      cmocka_unit_test(names),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
