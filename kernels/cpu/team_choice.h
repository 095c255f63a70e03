// team_choice: how many threads compute. Beyond some number more are slower: the memory's bandwidth bounds a
// decoded token, barriers grow with threads, and a virtual machine may not have all the cores that it shows.
//
// Where run.threads leaves it open, the first turns run on all threads and on three quarters of them, and of
// few tokens on half, three eighths and a quarter too, one after the other, each several times; then the one
// with the least median stays. Of all the cores of a virtual machine some may stand still for milliseconds,
// which the fastest turn does not show; and one bad turn decides nothing. A turn is a batch of few tokens, or
// a layer of a larger one. It is the work itself that is timed, so little is spent on it, and no bit depends
// on it. Later turns are watched: once they are much slower than those that decided (the context grew, or
// the host took cores), all are tried again.
//
// Owns: the choice. Independent of: what a turn computes.
#pragma once
#include <stdbool.h>
#include <stdint.h>

// With many tokens arithmetic is the bound, and half of the threads take twice as long: two are tried.
enum { TEAM_CANDIDATES = 5, TEAM_CANDIDATES_MANY = 2 }; // for few tokens, and for many
enum { TEAM_TURNS = 5 };   // of each candidate that are compared, after a first one that meets cold weights
enum { TEAM_HOLDS = 500 }; // turns for which a choice stays at least: to try again costs 30

typedef struct {
  int candidate[TEAM_CANDIDATES], count;
  double spent[TEAM_CANDIDATES][TEAM_TURNS]; // seconds of a candidate's turns
  int at, turns;                             // the candidate whose turn it is, and turns so far
  int64_t tokens;                            // of the turns that are compared
  bool counts;                               // this turn is compared
  double seconds;                            // of the steps of this turn
  bool is_fixed;                             // nothing is tried: run.threads, or too few to spare one
  int chosen;                                // 0: still open
  // once chosen
  double usual;              // seconds of a turn when it was chosen
  double latest[TEAM_TURNS]; // seconds of the latest turns, a ring
  int64_t held;              // turns since it was chosen
} team_choice;

void team_choice_init(team_choice *c, int threads, bool open, int n_candidates);
// A turn starts, and the one before ends. counts: it is like the others that count.
void team_choice_turn(team_choice *c, int64_t tokens, bool counts);
void team_choice_add(team_choice *c, double seconds); // of a step of it
int team_choice_threads(const team_choice *c);
bool team_choice_is_timed(const team_choice *c); // whether it wants to know turns and their seconds
