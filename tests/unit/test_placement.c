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

static int32_t owner_of(const placement *p, int64_t expert) {
  return placement_first_holder(p, 3, expert); // of any layer
}

static void same_owners(const placement *p, const int32_t *owner) {
  for (int64_t e = 0; e < p->n_experts; e++) assert_int_equal(owner_of(p, e), owner[e]);
}

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
      assert_in_range(owner_of(&p, e), 0, ranks - 1);
      if (rank) assert_int_equal(owner_of(&p, e), owner[e]);
      owner[e] = owner_of(&p, e);
      assert_int_equal(p.local[e], owner[e] == rank ? next++ : -1);
    }
    assert_int_equal(p.n_held, next);
    assert_int_equal(placement_replicas(&p, 7), 0);
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
  same_owners(&a, contiguous);
  same_owners(&b, strided);
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
  same_owners(&p, list);
  placement_close(&p);
}

// ---- by speed ----

static void balanced(const double *speed, int n, int ranks, const int64_t *wanted) {
  placement p;
  int next = 0;
  assert_int_equal(placement_open(&p, PLACEMENT_BALANCED, NULL, 0, speed, n, ranks, ranks - 1), 0);
  for (int r = 0; r < ranks; r++)
    for (int64_t i = 0; i < wanted[r]; i++) assert_int_equal(owner_of(&p, next++), r);
  assert_int_equal(next, n);
  assert_int_equal(p.n_held, wanted[ranks - 1]);
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
      assert_in_range(owner_of(&p, e) - owner_of(&p, e - 1), 0, 1);
    assert_int_equal(owner_of(&p, 0), 0);
    assert_int_equal(owner_of(&p, n - 1), ranks - 1);
    for (int r = 0; r < ranks; r++) {
      int count = 0;
      for (int e = 0; e < n; e++) count += owner_of(&p, e) == r;
      assert_true(count <= 1 || (double)count < (double)n * speed[r] / sum + 1);
    }
    placement_close(&p);
  }
}

// ---- by counts ----

enum { LAYERS = 3, COUNTED = 12, MOST_RANKS = 5, PAIRS = LAYERS * COUNTED };

static double load_of(const bool *holds, const placement_question *q) {
  double load;
  assert_int_equal(placement_load(&load, holds, q), 0);
  return load;
}

// A question of top-2 tokens about random counts.
static placement_question random_question(int64_t *counts, uint64_t seed) {
  int ranks = (int)(num_mix64(seed) % MOST_RANKS) + 1, n = ranks + (int)(num_mix64(seed + 9) % (COUNTED - 4));
  int64_t most = 0;
  for (int l = 0; l < LAYERS; l++) {
    int64_t sum = 0;
    for (int e = 0; e < n; e++)
      sum += counts[l * n + e] = (int64_t)(num_mix64(seed << 9 | (uint64_t)(l * n + e)) % 50);
    most = sum > most ? sum : most;
  }
  return (placement_question){.counts = counts,
                              .n_tokens = most,
                              .n_layers = LAYERS,
                              .n_experts = n,
                              .n_ranks = ranks,
                              .bytes = UINT64_MAX};
}

static int owner_in(const bool *holds, const placement_question *q, int l, int e) {
  for (int r = 0; r < q->n_ranks; r++)
    if (holds[(l * q->n_experts + e) * q->n_ranks + r]) return r;
  return -1;
}

static void an_even_placement_is_found(void **state) {
  (void)state;
  // two hot experts in each layer, that lie together contiguously: 4 and 5 of layer 0, 0 and 3 of 1, 6 and 7
  // of 2
  static const int hot[LAYERS][2] = {{4, 5}, {0, 3}, {6, 7}};
  int64_t counts[LAYERS * 8];
  bool holds[LAYERS * 8 * 2], contiguous[LAYERS * 8 * 2] = {false};
  placement_question q = {.counts = counts,
                          .n_tokens = 260,
                          .n_layers = LAYERS,
                          .n_experts = 8,
                          .n_ranks = 2,
                          .bytes = UINT64_MAX};
  for (int i = 0; i < LAYERS * 8; i++) counts[i] = 10;
  for (int l = 0; l < LAYERS; l++)
    for (int i = 0; i < 2; i++) counts[l * 8 + hot[l][i]] = 100;
  assert_int_equal(placement_count(holds, &q), 0);
  for (int l = 0; l < LAYERS; l++)
    assert_int_not_equal(owner_in(holds, &q, l, hot[l][0]), owner_in(holds, &q, l, hot[l][1]));
  assert_true(load_of(holds, &q) == 1);
  for (int i = 0; i < LAYERS * 8; i++) contiguous[2 * i + (i % 8 >= 4)] = true;
  assert_true(load_of(contiguous, &q) == 3 * 220.0 * 2 / (3 * 260));
}

// As many experts as contiguously in each layer, never a higher load than by the first swap of two, whatever
// the counts.
static void counted_placements_cannot_be_bettered_by_a_swap(void **state) {
  (void)state;
  for (uint64_t seed = 0; seed < 200; seed++) {
    int64_t counts[PAIRS];
    bool holds[PAIRS * MOST_RANKS];
    placement_question q = random_question(counts, seed);
    int n = (int)q.n_experts, ranks = q.n_ranks;
    assert_int_equal(placement_count(holds, &q), 0);
    double load = load_of(holds, &q);
    assert_true(load >= 1);
    for (int l = 0; l < LAYERS; l++) {
      int64_t owned[MOST_RANKS] = {0};
      for (int e = 0; e < n; e++) owned[owner_in(holds, &q, l, e)]++;
      for (int r = 0; r < ranks; r++) assert_int_equal(owned[r], n / ranks + (r < n % ranks));
      for (int a = 0; a < n; a++)
        for (int b = a + 1; b < n; b++) {
          bool *of_a = holds + (l * n + a) * ranks, *of_b = holds + (l * n + b) * ranks, keep[MOST_RANKS];
          size_t bytes = (size_t)ranks * sizeof *keep;
          memcpy(keep, of_a, bytes);
          memmove(of_a, of_b, bytes);
          memcpy(of_b, keep, bytes);
          assert_true(load_of(holds, &q) >= load - 1e-12);
          memcpy(keep, of_a, bytes);
          memmove(of_a, of_b, bytes);
          memcpy(of_b, keep, bytes);
        }
    }
  }
}

// ---- replicas ----

// Each slot of a token goes to a holder of its expert; those with one holder aside, to the one with the
// fewest of the token's slots then; and a slot alone to its holders by turns.
static void check_slots(const bool *holds, const placement_question *q, uint64_t seed) {
  enum { TOP_K = 4 };
  placement p;
  int n = (int)q->n_experts, ranks = q->n_ranks, top_k = n < TOP_K ? n : TOP_K;
  assert_int_equal(placement_open_held(&p, holds, LAYERS, n, ranks, ranks - 1), 0);
  for (int l = 0; l < LAYERS; l++)
    for (int32_t t = 0; t < 20; t++) {
      expert_global expert[TOP_K];
      int32_t rank[TOP_K], alone;
      int has[MOST_RANKS] = {0};
      for (int k = 0; k < top_k; k++)
        expert[k].id = (int32_t)((num_mix64(seed + (uint64_t)t) + (uint64_t)k) % (uint64_t)n);
      placement_ranks(rank, &p, l, expert, top_k, t % 3, 2147483647 - t);
      for (int pass = 0; pass < 2; pass++)
        for (int k = 0; k < top_k; k++) {
          const bool *of = holds + (l * n + expert[k].id) * ranks;
          int holders = 0;
          assert_in_range(rank[k], 0, ranks - 1);
          assert_true(of[rank[k]]);
          for (int r = 0; r < ranks; r++) holders += of[r];
          if ((holders > 1) != pass) continue;
          for (int r = 0; r < ranks; r++) assert_true(!of[r] || has[r] >= has[rank[k]] || holders == 1);
          has[rank[k]]++;
          placement_ranks(&alone, &p, l, &expert[k], 1, 5, t);
          int32_t first = p.first[placement_index(&p, l, expert[k].id)];
          assert_int_equal(alone, p.holder[first + (5 + t) % holders]);
        }
    }
  placement_close(&p);
}

static void replicas_stay_within_their_limits(void **state) {
  (void)state;
  for (uint64_t seed = 0; seed < 120; seed++) {
    int64_t counts[PAIRS];
    bool without[PAIRS * MOST_RANKS], holds[PAIRS * MOST_RANKS];
    const uint64_t bytes[LAYERS] = {100, 70, 100};
    const int groups[MOST_RANKS] = {0, 1, 0, 1, 0};
    placement_question q = random_question(counts, seed);
    int n = (int)q.n_experts, ranks = q.n_ranks;
    assert_int_equal(placement_count(without, &q), 0);
    q.per_layer = seed % 3 == 2 ? REPLICAS_ANY : (int64_t)(num_mix64(seed + 1) % 4);
    if (seed % 3 == 2) q.bytes = 60 + num_mix64(seed + 2) % 400;
    q.expert_bytes = bytes;
    if (seed % 2) q.group = groups;
    assert_int_equal(placement_count(holds, &q), 0);
    uint64_t used[MOST_RANKS] = {0};
    for (int l = 0; l < LAYERS; l++)
      for (int r = 0; r < ranks; r++) {
        int64_t extra = 0;
        for (int e = 0; e < n; e++) {
          size_t at = (size_t)((l * n + e) * ranks + r);
          assert_true(holds[at] || !without[at]);
          extra += holds[at] && !without[at];
          if (holds[at] && q.group) assert_int_equal(groups[r], groups[owner_in(without, &q, l, e)]);
        }
        assert_true(extra <= q.per_layer);
        used[r] += (uint64_t)extra * bytes[l];
      }
    for (int r = 0; r < ranks; r++) assert_true(used[r] <= q.bytes);
    if (!q.per_layer) assert_memory_equal(holds, without, (size_t)(LAYERS * n * ranks) * sizeof *holds);
    check_slots(holds, &q, seed);
  }
}

// One expert that every token chooses and seven that few do, on four ranks: all ranks get it.
static void a_hot_expert_goes_to_all(void **state) {
  (void)state;
  const int64_t counts[8] = {1000, 30, 20, 30, 20, 30, 20, 30};
  bool holds[8 * 4];
  placement_question q = {
      .counts = counts, .n_tokens = 1000, .n_layers = 1, .n_experts = 8, .n_ranks = 4, .bytes = UINT64_MAX};
  assert_int_equal(placement_count(holds, &q), 0);
  double before = load_of(holds, &q);
  q.per_layer = 1;
  assert_int_equal(placement_count(holds, &q), 0);
  for (int r = 0; r < 4; r++) assert_true(holds[r]);
  assert_true(before > 3.3 && load_of(holds, &q) < 1.1);
}

static void maps_that_differ_have_other_hashes(void **state) {
  (void)state;
  bool holds[LAYERS * 4 * 2];
  uint64_t seen[LAYERS * 4 * 2 + 1];
  for (int i = 0; i < LAYERS * 4; i++) holds[2 * i + i % 2] = true, holds[2 * i + 1 - i % 2] = false;
  for (int i = 0; i <= LAYERS * 4 * 2; i++) {
    placement p;
    if (i) holds[i - 1] = true;
    assert_int_equal(placement_open_held(&p, holds, LAYERS, 4, 2, 0), 0);
    seen[i] = p.hash;
    assert_int_equal(p.first[LAYERS * 4], LAYERS * 4 + placement_replicas(&p, LAYERS));
    placement_close(&p);
    if (i && holds[i - 1] && (i - 1) % 2 != (i - 1) / 2 % 2)
      for (int k = 0; k < i; k++) assert_true(seen[k] != seen[i]);
    else if (i)
      assert_true(seen[i] == seen[i - 1]);
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
  placement held;
  const bool nobody[4] = {true, false, false, false}, idle_rank[4] = {true, false, true, false};
  assert_int_not_equal(placement_open_held(&held, nobody, 1, 2, 2, 0), 0);
  assert_non_null(strstr(status_text(), "rank 1 owns no expert"));
  status_reset();
  placement_close(&held);
  assert_int_not_equal(placement_open_held(&held, idle_rank, 1, 2, 2, 1), 0);
  status_reset();
  placement_close(&held);
  assert_int_not_equal(placement_open(&held, PLACEMENT_COUNTED, NULL, 0, NULL, 4, 2, 0), 0);
  assert_non_null(strstr(status_text(), "a map for each layer"));
  status_reset();
  placement_close(&held);
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
  assert_string_equal(placement_name(PLACEMENT_COUNTED), "counted");
  assert_string_equal(placement_name(PLACEMENT_AUTO), "auto");
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
      cmocka_unit_test(replicas_stay_within_their_limits),
      cmocka_unit_test(a_hot_expert_goes_to_all),
      cmocka_unit_test(maps_that_differ_have_other_hashes),
      cmocka_unit_test(bad_plans_are_refused),
      cmocka_unit_test(names),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
