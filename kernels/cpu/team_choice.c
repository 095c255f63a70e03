#include "kernels/cpu/team_choice.h"
#include <stdlib.h>
#include <string.h>

static const double MUCH_SLOWER = 1.25;

enum {
  FEWEST_OPEN = 8,   // threads, below which all of them are always used
  SMALLEST_TEAM = 4, // that is tried
};

void team_choice_init(team_choice *c, int threads, bool open, int n_candidates) {
  static const int EIGHTHS[TEAM_CANDIDATES] = {8, 6, 4, 3, 2};
  *c = (team_choice){.is_fixed = !open || threads < FEWEST_OPEN};
  if (c->is_fixed) c->chosen = threads;
  for (int i = 0; i < n_candidates; i++)
    if (threads * EIGHTHS[i] / 8 >= SMALLEST_TEAM || !i) c->candidate[c->count++] = threads * EIGHTHS[i] / 8;
}

static int by_size(const void *a, const void *b) {
  const double *x = (const double *)a, *y = (const double *)b;
  return (*x > *y) - (*x < *y);
}

// Sorts spent[TEAM_TURNS].
static double median(double *spent) {
  qsort(spent, TEAM_TURNS, sizeof *spent, by_size);
  return spent[TEAM_TURNS / 2];
}

static void choose(team_choice *c) {
  for (int i = 0; i < c->count; i++) {
    double seconds = median(c->spent[i]);
    if (i && seconds >= c->usual) continue;
    c->usual = seconds;
    c->chosen = c->candidate[i];
  }
  c->held = 0;
}

// The turn that has just ended.
static void note_turn(team_choice *c) {
  int round = c->turns / c->count;
  if (round) c->spent[c->at][round - 1] = c->seconds;
  c->turns++;
  c->at = c->turns % c->count;
  if (c->turns == (TEAM_TURNS + 1) * c->count) choose(c);
}

static void try_again(team_choice *c) {
  c->chosen = 0;
  c->at = c->turns = 0;
}

static void note_later_turn(team_choice *c) {
  double sorted[TEAM_TURNS];
  c->latest[c->held++ % TEAM_TURNS] = c->seconds;
  if (c->held < TEAM_HOLDS) return;
  memcpy(sorted, c->latest, sizeof sorted);
  if (median(sorted) > MUCH_SLOWER * c->usual) try_again(c);
}

void team_choice_turn(team_choice *c, int64_t tokens, bool counts) {
  if (c->is_fixed) return;
  if (tokens == c->tokens && c->counts && c->seconds > 0) {
    if (c->chosen)
      note_later_turn(c);
    else
      note_turn(c);
  }
  if (tokens != c->tokens && !c->chosen) { // other batches: from the start
    c->at = c->turns = 0;
    c->tokens = tokens;
  }
  c->counts = counts && tokens == c->tokens;
  c->seconds = 0;
}

void team_choice_add(team_choice *c, double seconds) {
  c->seconds += seconds;
}

int team_choice_threads(const team_choice *c) {
  return c->chosen ? c->chosen : c->candidate[c->at];
}

bool team_choice_is_timed(const team_choice *c) {
  return !c->is_fixed;
}
