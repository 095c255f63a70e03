#include "src/lab/screen_vote.h"

typedef struct {
  const uint64_t *vote;
  const screen_voter *voters;
  int n_voters;
  int64_t n, n_first;
} ballot;

static bool has_vote(const ballot *b, int voter, int64_t entry) {
  return b->voters[voter].votes && (b->voters[voter].has_all || entry < b->n_first);
}

static uint64_t vote_of(const ballot *b, int voter, int64_t entry) {
  return b->vote[voter * b->n + entry];
}

// Voters of this answer, those on a CPU counted apart.
static void count(const ballot *b, int64_t entry, uint64_t answer, int *all, int *on_cpu) {
  *all = *on_cpu = 0;
  for (int v = 0; v < b->n_voters; v++)
    if (has_vote(b, v, entry) && vote_of(b, v, entry) == answer) {
      *all += 1;
      *on_cpu += b->voters[v].on_cpu;
    }
}

static void decide(uint64_t *expected, bool *decided, const ballot *b, int64_t entry) {
  int most = 0, most_on_cpu = 0, all, on_cpu;
  *expected = 0;
  *decided = true;
  for (int v = 0; v < b->n_voters; v++) {
    if (!has_vote(b, v, entry) || (most && vote_of(b, v, entry) == *expected)) continue;
    count(b, entry, vote_of(b, v, entry), &all, &on_cpu);
    bool better = all > most || (all == most && on_cpu > most_on_cpu);
    if (all == most && on_cpu == most_on_cpu) *decided = false;
    if (!better) continue;
    *decided = true;
    *expected = vote_of(b, v, entry);
    most = all;
    most_on_cpu = on_cpu;
  }
}

void screen_vote(uint64_t *expected, bool *decided, const uint64_t *vote, const screen_voter *voters,
                 int n_voters, int64_t n, int64_t n_first) {
  const ballot b = {vote, voters, n_voters, n, n_first};
  for (int64_t entry = 0; entry < n; entry++) decide(&expected[entry], &decided[entry], &b, entry);
}
