// Tests of kernels/cpu/team.c and team_choice.c: every thread of a run runs once, barriers keep phases apart
// whether threads spin or sleep, thread 0 is alone between arrival and release; and the choice of a size.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "kernels/cpu/team.h"
#include "kernels/cpu/team_choice.h"
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

enum { MOST = 21, PHASES = 20 }; // threads: a tree of four to a thread has three levels then

typedef struct {
  team *t;
  _Atomic int here; // threads that are in a phase's first half
  int alone;        // written by thread 0 between arrival and release, read by all after it
  int ran[MOST];    // runs of each thread
  _Atomic int wrong;
  bool rests;
} room;

static void rest(void) { // longer than a waiting thread spins
  struct timespec t = {.tv_nsec = 3000000};
  nanosleep(&t, NULL);
}

static void run_phases(void *context) {
  room *r = (room *)context;
  int thread = team_thread(), n = team_size(r->t);
  r->ran[thread]++;
  for (int p = 0; p < PHASES; p++) {
    atomic_fetch_add(&r->here, 1);
    if (r->rests && (p + thread) % n == 0) rest();
    team_arrive(r->t);
    if (!thread) {
      if (atomic_load(&r->here) != n) r->wrong++; // somebody had not arrived
      atomic_store(&r->here, 0);
      if (r->rests) rest();
      r->alone = p;
    }
    team_release(r->t);
    if (r->alone != p) r->wrong++;
    team_barrier(r->t);
  }
}

static void check_runs(int threads, bool rests, int runs) {
  room r = {.rests = rests};
  assert_int_equal(team_open(&r.t, threads), 0);
  int expected[MOST] = {0};
  for (int i = 0; i < runs; i++) {
    int n = 1 + i * 5 % threads; // smaller and larger in turn: threads miss some runs
    team_run(r.t, n, run_phases, &r);
    for (int k = 0; k < n; k++) expected[k]++;
    assert_int_equal(team_size(r.t), 1);
    assert_int_equal(memcmp(expected, r.ran, sizeof expected), 0);
  }
  assert_int_equal(r.wrong, 0);
  team_close(r.t);
}

static void test_runs(void **state) {
  (void)state;
  check_runs(1, false, 3);
  check_runs(2, false, 40);
  check_runs(5, false, 20);
  check_runs(MOST, false, 8);
}

static void test_sleepers(void **state) {
  (void)state;
  check_runs(3, true, 3);
}

static void test_close_unused(void **state) {
  team *t;
  (void)state;
  assert_int_equal(team_open(&t, 4), 0);
  team_close(t);
  team_close(NULL);
}

static void share_all(void *context) {
  room *r = (room *)context;
  team_range part = team_share(r->t, 23);
  for (int64_t i = part.first; i < part.end; i++) atomic_fetch_add(&r->here, 1 << (i == 0 || i == 22));
}

static void test_shares(void **state) {
  room r = {0};
  (void)state;
  assert_int_equal(team_open(&r.t, 4), 0);
  team_run(r.t, 4, share_all, &r);
  assert_int_equal(r.here, 23 + 2); // each once, first and last among them
  team_close(r.t);
}

// ---- how many threads decode ----

static bool is_open(const team_choice *c) {
  return !c->chosen;
}

// Runs batches until a size is chosen; `fast` threads are the fastest. Returns the batches that it took.
static int settle(team_choice *c, int fast, int64_t tokens) {
  int batches = 0;
  while (is_open(c) && batches < 100) {
    team_choice_turn(c, tokens, true);
    int n = team_choice_threads(c), off = n > fast ? n - fast : fast - n;
    if (!is_open(c)) break;
    team_choice_add(c, 1 + off);
    team_choice_add(c, batches ? 0 : 1000); // weights that are still on a disk
    batches++;
  }
  return batches;
}

static void test_choice(void **state) {
  static const int FAST[] = {64, 48, 32, 24, 16};
  (void)state;
  for (int i = 0; i < 5; i++) {
    team_choice c;
    team_choice_init(&c, 64, true, TEAM_CANDIDATES);
    int batches = settle(&c, FAST[i], 1);
    assert_true(batches < 32); // within bench's own warm-up
    assert_int_equal(team_choice_threads(&c), FAST[i]);
  }
}

// All the cores of a virtual machine may be the fastest, but for turns in which one of them stands still; of
// the others a single turn may.
static void test_choice_of_what_stalls(void **state) {
  team_choice c;
  (void)state;
  team_choice_init(&c, 64, true, TEAM_CANDIDATES);
  for (int i = 0; i < 100 && is_open(&c); i++) {
    team_choice_turn(&c, 1, true);
    int n = team_choice_threads(&c);
    team_choice_add(&c, n == 64 ? (i / 5 % 2 ? 30 : 15) : n == 48 ? (i / 5 == 3 ? 99 : 16) : 20);
  }
  assert_int_equal(team_choice_threads(&c), 48);
}

static void test_choice_starts_again(void **state) {
  team_choice c;
  (void)state;
  team_choice_init(&c, 16, true, TEAM_CANDIDATES);
  for (int i = 0; i < 6; i++) { // another number of tokens: nothing of it counts
    team_choice_turn(&c, 2, true);
    team_choice_add(&c, team_choice_threads(&c) == 16 ? 0.001 : 1);
  }
  settle(&c, 8, 1);
  assert_int_equal(team_choice_threads(&c), 8);
}

// Layers of other types are not compared: the faster ones would win for the team that has them.
static void test_turns_that_do_not_count(void **state) {
  team_choice c;
  (void)state;
  team_choice_init(&c, 16, true, TEAM_CANDIDATES_MANY);
  for (int i = 0; i < 60 && is_open(&c); i++) {
    bool counts = i % 3 == 0;
    team_choice_turn(&c, 512, counts);
    team_choice_add(&c, counts                         ? (team_choice_threads(&c) == 12 ? 1 : 2)
                        : team_choice_threads(&c) == 8 ? 0.1
                                                       : 9);
  }
  assert_false(is_open(&c));
  assert_int_equal(team_choice_threads(&c), 12);
}

static void run_turns(team_choice *c, int n, double seconds) {
  for (int i = 0; i < n && !is_open(c); i++) {
    team_choice_turn(c, 1, true);
    if (!is_open(c)) team_choice_add(c, seconds);
  }
}

// The host took cores: what was chosen has become slower, and now fewer are the fastest.
static void test_choice_made_again(void **state) {
  team_choice c;
  (void)state;
  team_choice_init(&c, 64, true, TEAM_CANDIDATES);
  settle(&c, 48, 1);
  assert_int_equal(team_choice_threads(&c), 48);
  run_turns(&c, 2 * TEAM_HOLDS, 1.1); // about as then
  assert_false(is_open(&c));
  for (int i = 0; i < TEAM_HOLDS; i++) { // one slow turn of four, and slow turns of other batches
    run_turns(&c, 1, i % 4 ? 1 : 50);
    team_choice_turn(&c, 2, true);
    team_choice_add(&c, 50);
  }
  assert_false(is_open(&c));
  run_turns(&c, TEAM_TURNS, 1.5);
  assert_true(is_open(&c));
  settle(&c, 24, 1);
  assert_int_equal(team_choice_threads(&c), 24);
  run_turns(&c, TEAM_HOLDS - 1, 50); // it stays for a while, whatever comes
  assert_false(is_open(&c));
  run_turns(&c, 2, 50);
  assert_true(is_open(&c));
}

static void test_no_choice(void **state) {
  team_choice c;
  (void)state;
  team_choice_init(&c, 64, false, TEAM_CANDIDATES); // run.threads is given
  assert_false(is_open(&c));
  assert_false(team_choice_is_timed(&c));
  assert_int_equal(team_choice_threads(&c), 64);
  team_choice_init(&c, 2, true, TEAM_CANDIDATES); // too few to spare one
  assert_false(is_open(&c));
  assert_int_equal(team_choice_threads(&c), 2);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_runs),
      cmocka_unit_test(test_sleepers),
      cmocka_unit_test(test_close_unused),
      cmocka_unit_test(test_shares),
      cmocka_unit_test(test_choice),
      cmocka_unit_test(test_choice_of_what_stalls),
      cmocka_unit_test(test_choice_starts_again),
      cmocka_unit_test(test_turns_that_do_not_count),
      cmocka_unit_test(test_choice_made_again),
      cmocka_unit_test(test_no_choice),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
