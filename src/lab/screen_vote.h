// screen_vote: which of several answers to the same work is taken for right. Pure.
//
// Invariant: the same on every rank that is given the same votes.
#pragma once
#include <stdbool.h>
#include <stdint.h>

typedef struct { // a unit that computed the work
  bool votes;    // false: this place is empty
  bool has_all;  // of the whole sequence too; else the first n_first entries alone
  bool on_cpu;   // an ISA row, which is the definition in C for its instruction set
} screen_voter;

// expected[n]: of each entry the answer that most voters gave, on a tie the one of more ISA rows, then that
// of the lowest voter. decided[n]: false where a tie is left. vote[n_voters][n].
void screen_vote(uint64_t *expected, bool *decided, const uint64_t *vote, const screen_voter *voters,
                 int n_voters, int64_t n, int64_t n_first);
