// team_choice: how many threads compute batches of few tokens, which the memory's bandwidth and the barriers
// between phases bound: beyond some number more threads are slower.
//
// Where run.threads leaves it open, the first such batches run on all threads, three quarters, half, three
// eighths and a quarter of them in turn, each more than once; then the one with the fastest batch stays. It
// is the work itself that is timed, so nothing is spent on it, and no bit depends on it.
//
// Owns: the choice. Independent of: what a batch computes.
#pragma once
#include <stdbool.h>
#include <stdint.h>

enum { TEAM_CANDIDATES = 5 };

typedef struct {
  int candidate[TEAM_CANDIDATES], count;
  double best[TEAM_CANDIDATES]; // seconds of a candidate's fastest batch; 0: none yet
  int at, turns;                // the candidate whose turn it is, and turns so far
  int64_t tokens;               // of the batches that are compared
  double seconds;               // of the steps of this batch
  int chosen;                   // 0: still open
} team_choice;

void team_choice_init(team_choice *c, int threads, bool open);
void team_choice_batch(team_choice *c, int64_t tokens); // at the start of a batch of few tokens
void team_choice_add(team_choice *c, double seconds);   // of a step of it
int team_choice_threads(const team_choice *c);
bool team_choice_is_open(const team_choice *c);
