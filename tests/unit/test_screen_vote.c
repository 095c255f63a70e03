// Which answer a vote takes for right.
#include "src/lab/screen_vote.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
// after those that it needs
#include <cmocka.h>

enum { VOTERS = 5, ENTRIES = 2, FIRST = 1 };

static const screen_voter ROW = {true, true, true}, DEVICE = {true, true, false}, SOME = {true, false, true},
                          NONE = {false, false, false};

static void expect(const screen_voter voters[VOTERS], const uint64_t votes[VOTERS], uint64_t wanted,
                   bool sure) {
  uint64_t expected[ENTRIES], all[VOTERS * ENTRIES];
  bool decided[ENTRIES];
  for (int v = 0; v < VOTERS; v++) all[v * ENTRIES] = all[v * ENTRIES + 1] = votes[v];
  screen_vote(expected, decided, all, voters, VOTERS, ENTRIES, FIRST);
  assert_int_equal(expected[1], wanted); // of the entry that SOME does not have
  assert_int_equal(decided[1], sure);
}

static void most_are_right(void **state) {
  (void)state;
  expect((screen_voter[]){ROW, ROW, ROW, NONE, NONE}, (uint64_t[]){7, 8, 8, 7, 7}, 8, true);
  expect((screen_voter[]){DEVICE, DEVICE, ROW, NONE, NONE}, (uint64_t[]){7, 7, 8, 0, 0}, 7, true);
  expect((screen_voter[]){ROW, SOME, SOME, SOME, DEVICE}, (uint64_t[]){7, 8, 8, 8, 7}, 7, true);
}

static void a_tie_goes_to_the_rows(void **state) {
  (void)state;
  expect((screen_voter[]){DEVICE, ROW, NONE, NONE, NONE}, (uint64_t[]){7, 8, 0, 0, 0}, 8, true);
  expect((screen_voter[]){ROW, DEVICE, NONE, NONE, NONE}, (uint64_t[]){7, 8, 0, 0, 0}, 7, true);
  expect((screen_voter[]){ROW, ROW, NONE, NONE, NONE}, (uint64_t[]){7, 8, 0, 0, 0}, 7, false);
  expect((screen_voter[]){ROW, ROW, ROW, ROW, ROW}, (uint64_t[]){9, 7, 7, 8, 8}, 7, false);
}

static void entries_are_apart(void **state) {
  (void)state;
  const screen_voter voters[2] = {ROW, SOME};
  const uint64_t votes[4] = {1, 2, 3, 4};
  uint64_t expected[2];
  bool decided[2];
  screen_vote(expected, decided, votes, voters, 2, 2, 1);
  assert_int_equal(expected[0], 1);
  assert_false(decided[0]);
  assert_int_equal(expected[1], 2); // one voter alone
  assert_true(decided[1]);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(most_are_right),
                                     cmocka_unit_test(a_tie_goes_to_the_rows),
                                     cmocka_unit_test(entries_are_apart)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
