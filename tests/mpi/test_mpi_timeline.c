// Tests of dist/clock_skew.c and dist/timeline.c over the ranks that they are started with (1 to 4 by ctest).
// Every rank's clock is another one: __wrap_clock_gettime adds a second for each rank, and a drift.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "base/clock.h"
#include "dist/timeline.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { ROUNDS = 40, MOST_RANKS = 16, LATE = 1, FEW = 5 };
static const double DRIFT = 1e-3; // of a rank's clock, seconds in a second
static const double LATE_SECONDS = 2e-3;

static comm *ranks;
static int rank, size;
static bool shifted; // from when the rank is known

int __real_clock_gettime(clockid_t id, struct timespec *t);
int __wrap_clock_gettime(clockid_t id, struct timespec *t);

static double true_seconds(void) {
  struct timespec t;
  __real_clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double shift_of(int r) {
  static double first;
  if (first == 0) first = true_seconds();
  return r * (1 + DRIFT * (true_seconds() - first));
}

int __wrap_clock_gettime(clockid_t id, struct timespec *t) {
  int result = __real_clock_gettime(id, t);
  if (!shifted || id != CLOCK_MONOTONIC) return result;
  double now = (double)t->tv_sec + 1e-9 * (double)t->tv_nsec + shift_of(rank);
  t->tv_sec = (time_t)floor(now);
  t->tv_nsec = (long)((now - floor(now)) * 1e9);
  return result;
}

static void a_skew_is_measured_within_its_bound(void **state) {
  (void)state;
  clock_skew found[MOST_RANKS];
  for (int root = 0; root < size; root++) {
    assert_int_equal(clock_skew_measure(found, ranks, root), 0);
    for (int r = 0; r < size; r++) {
      // the drift of all these milliseconds is left in the expectation's error
      assert_true(fabs(found[r].seconds - (r - root)) <= found[r].bound + 20 * DRIFT * size);
      assert_true(found[r].bound >= 0 && found[r].bound < 0.5);
    }
    assert_true(found[root].seconds == 0 && found[root].bound == 0);
  }
}

// ---- a timeline ----

static struct {
  double start[MOST_RANKS][ROUNDS], end[MOST_RANKS][ROUNDS], bound;
  int ranks;
} seen;

// Every rank's spans: one batch around ROUNDS exchanges, each an all-gather, in which rank LATE comes last.
static status look(void *context, const rank_spans *r) {
  (void)context;
  assert_int_equal(r->rank, seen.ranks++);
  assert_int_equal(r->n_spans, ROUNDS + 1);
  assert_int_equal(r->lost, 0);
  assert_int_equal(r->spans[0].kind, SPAN_BATCH);
  assert_int_equal(r->spans[0].amount, 7);
  seen.bound = fmax(seen.bound, fmax(r->clock.start.bound, r->clock.end.bound));
  for (int k = 0; k < ROUNDS; k++) {
    const span *s = &r->spans[k + 1];
    assert_int_equal(s->kind, SPAN_EXCHANGE);
    assert_int_equal(s->layer, k);
    assert_int_equal(s->depth, 1);
    assert_true(s->start >= r->spans[0].start && s->end <= r->spans[0].end && s->start <= s->end);
    assert_true(s->wait >= 0 && s->wait <= s->end - s->start);
    if (size > 1 && 4 * seen.bound < LATE_SECONDS) { // the clocks are known well enough to tell
      assert_int_equal(s->last, LATE);
      assert_true(r->rank == LATE || s->wait > LATE_SECONDS / 2);
    }
    seen.start[r->rank][k] = s->start;
    seen.end[r->rank][k] = s->end;
  }
  return 0;
}

// Rank LATE starts its exchange when the others have started theirs, and somewhat later.
static void exchange_late(int k) {
  static comm_part part[MOST_RANKS * MOST_RANKS];
  const struct timespec pause = {0, (long)(LATE_SECONDS * 1e9)};
  int32_t all[MOST_RANKS] = {0};
  for (int r = 0; r < size && LATE < size; r++)
    part[r * size + LATE] = (comm_part){4 * (size_t)r, r != LATE ? 4 : 0};
  if (rank != LATE) span_start(SPAN_EXCHANGE, k);
  assert_int_equal(comm_exchange(ranks, (char *)all, part, "a test"), 0);
  if (rank == LATE) {
    nanosleep(&pause, NULL);
    span_start(SPAN_EXCHANGE, k);
  }
  assert_int_equal(comm_allgather(ranks, all, &rank, sizeof rank, "a test"), 0);
  span_end(0);
}

static void all_ranks_are_on_one_clock(void **state) {
  (void)state;
  timeline *t;
  assert_int_equal(timeline_open(&t, ranks, 0, 1000), 0);
  span_start(SPAN_BATCH, SPAN_NO_LAYER);
  for (int k = 0; k < ROUNDS; k++) {
    exchange_late(k);
  }
  span_end(7);
  assert_int_equal(timeline_merge(t, look, NULL), 0);
  // An all-gather ends nowhere before it has started everywhere: true on one clock only.
  for (int k = 0; k < ROUNDS && !rank; k++)
    for (int a = 0; a < size; a++)
      for (int b = 0; b < size; b++) assert_true(seen.end[a][k] >= seen.start[b][k] - 2 * seen.bound);
  if (!rank) assert_int_equal(seen.ranks, size);
  timeline_close(t);
  assert_null(timeline_running);
}

static status count_lost(void *context, const rank_spans *r) {
  (void)context;
  assert_int_equal(r->n_spans, FEW);
  assert_int_equal(r->lost, 2 * ROUNDS - FEW);
  return 0;
}

static status fail_on_the_last(void *context, const rank_spans *r) {
  (void)context;
  return r->rank == size - 1 ? FAIL("no room for rank %d", r->rank) : 0;
}

static void what_has_no_room_is_counted(void **state) {
  (void)state;
  timeline *t;
  assert_int_equal(timeline_open(&t, ranks, 0, FEW), 0);
  for (int k = 0; k < ROUNDS; k++) {
    span_start(SPAN_LAYER, k);
    span_start(SPAN_EXCHANGE, k);
    span_end(0);
    span_end(SPAN_NO_AMOUNT);
  }
  assert_int_equal(timeline_merge(t, count_lost, NULL), 0);
  timeline_close(t);
}

static void an_error_of_the_one_is_an_error_of_all(void **state) {
  (void)state;
  timeline *t;
  assert_int_equal(timeline_open(&t, ranks, 0, FEW), 0);
  span_start(SPAN_LAYER, 0);
  span_end(SPAN_NO_AMOUNT);
  assert_int_not_equal(timeline_merge(t, fail_on_the_last, NULL), 0);
  timeline_close(t);
  status_reset();
}

static void without_a_timeline_nothing_happens(void **state) {
  (void)state;
  span_start(SPAN_LAYER, 0);
  span_end(0);
  timeline_label("q8k@cpu");
  assert_null(timeline_running);
  assert_null(timeline_describe(NULL).profilers);
}

int main(int argc, char **argv) {
  if (comm_open(&ranks, &argc, &argv, COMM_DEADLINE)) {
    fprintf(stderr, "%s\n", status_text());
    return 1;
  }
  rank = comm_rank(ranks);
  size = comm_size(ranks);
  shifted = true;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_skew_is_measured_within_its_bound),
      cmocka_unit_test(all_ranks_are_on_one_clock),
      cmocka_unit_test(what_has_no_room_is_counted),
      cmocka_unit_test(an_error_of_the_one_is_an_error_of_all),
      cmocka_unit_test(without_a_timeline_nothing_happens),
  };
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  fflush(stdout);
  if (failed) comm_abort(ranks, 1); // the others may wait for this rank
  comm_close(ranks);
  return 0;
}
