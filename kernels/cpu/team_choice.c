#include "kernels/cpu/team_choice.h"
#include <stdlib.h>

enum {
  FEWEST_OPEN = 8,   // threads, below which all of them are always used
  SMALLEST_TEAM = 4, // that is tried
};

void team_choice_init(team_choice *c, int threads, bool open, int n_candidates) {
  static const int EIGHTHS[TEAM_CANDIDATES] = {8, 6, 4, 3, 2};
  *c = (team_choice){.chosen = open && threads >= FEWEST_OPEN ? 0 : threads};
  for (int i = 0; i < n_candidates; i++)
    if (threads * EIGHTHS[i] / 8 >= SMALLEST_TEAM || !i) c->candidate[c->count++] = threads * EIGHTHS[i] / 8;
}

static int by_size(const void *a, const void *b) {
  const double *x = (const double *)a, *y = (const double *)b;
  return (*x > *y) - (*x < *y);
}

static int fastest(team_choice *c) {
  int best = 0;
  for (int i = 0; i < c->count; i++) {
    qsort(c->spent[i], TEAM_TURNS, sizeof *c->spent[i], by_size);
    if (c->spent[i][TEAM_TURNS / 2] < c->spent[best][TEAM_TURNS / 2]) best = i;
  }
  return c->candidate[best];
}

// The turn that has just ended.
static void note_turn(team_choice *c) {
  int round = c->turns / c->count;
  if (round) c->spent[c->at][round - 1] = c->seconds;
  c->turns++;
  c->at = c->turns % c->count;
  if (c->turns == (TEAM_TURNS + 1) * c->count) c->chosen = fastest(c);
}

void team_choice_turn(team_choice *c, int64_t tokens, bool counts) {
  if (c->chosen) return;
  if (tokens == c->tokens && c->counts && c->seconds > 0) note_turn(c);
  if (tokens != c->tokens) { // other batches: from the start
    c->at = c->turns = 0;
    c->tokens = tokens;
  }
  c->counts = counts;
  c->seconds = 0;
}

void team_choice_add(team_choice *c, double seconds) {
  c->seconds += seconds;
}

int team_choice_threads(const team_choice *c) {
  return c->chosen ? c->chosen : c->candidate[c->at];
}

bool team_choice_is_open(const team_choice *c) {
  return !c->chosen;
}
