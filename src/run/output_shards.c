#include "src/run/output_shards.h"
#include "base/memory.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Before they are timed batches run replicated: of few tokens until the team has its size, for it is the same
// work that both would time; and the first ones of any size read cold memory.
enum { SETTLING_FEW = TEAM_BATCHES, SETTLING = 2, TURNS = 8 }; // half of the turns each way
// What sharded must gain: a difference of less is noise, and replicated needs no other rank.
static const double LEAST_GAIN = 0.03;

// Whether all ranks are able, and the first reason against it.
static status survey(output_shards *s, const char *why_not) {
  size_t bytes = sizeof s->why_not;
  char *all, mine[sizeof s->why_not] = "";
  snprintf(mine, sizeof mine, "%s", why_not);
  TRY(comm_agree(s->c, TAKE(&all, bytes * (size_t)comm_size(s->c), "attention.placement"),
                 "attention.placement"));
  status result = comm_allgather(s->c, all, mine, bytes, "attention.placement");
  for (int r = 0; r < comm_size(s->c) && !result && s->possible; r++)
    if (all[(size_t)r * bytes]) {
      s->possible = false;
      memcpy(s->why_not, all + (size_t)r * bytes, bytes);
    }
  free(all);
  return result;
}

status output_shards_open(output_shards *out, comm *c, attention_placement asked, bool able,
                          const char *why_not) {
  *out = (output_shards){.asked = asked, .c = c, .possible = comm_size(c) > 1};
  if (!out->possible || asked == ATTENTION_REPLICATED) {
    out->possible = false;
    return 0;
  }
  return survey(out, able ? "" : why_not);
}

static int size_of(int64_t n) {
  static const int64_t MOST[OUTPUT_SIZES - 1] = {1, 4, 16, 64, 256};
  int i = 0;
  while (i < OUTPUT_SIZES - 1 && n > MOST[i]) i++;
  return i;
}

// Of a batch that is timed: 1 sharded, 0 replicated; below 0: it is not timed yet.
static int way_of(const output_shards *s, output_kind kind, int64_t n) {
  int settling = size_of(n) < 2 ? SETTLING_FEW : SETTLING, turns = s->size[kind][size_of(n)].turns;
  return turns < settling ? -1 : (turns - settling) % 2;
}

bool output_shards_are_timed(const output_shards *s, output_kind kind, int64_t n) {
  return s->possible && !s->held && s->asked == ATTENTION_AUTO && !s->size[kind][size_of(n)].decided;
}

bool output_shards_apply(const output_shards *s, output_kind kind, int64_t n) {
  const output_size *size = &s->size[kind][size_of(n)];
  if (!s->possible) return false;
  switch (s->asked) {
  case ATTENTION_AUTO:
    return size->decided ? size->sharded : !s->held && way_of(s, kind, n) > 0;
  case ATTENTION_SHARDED:
    return true;
  case ATTENTION_REPLICATED:
    return false;
  }
  __builtin_unreachable();
}

static status decide(output_shards *s, output_size *size) {
  double *all;
  TRY(comm_agree(s->c, TAKE(&all, 2 * (size_t)comm_size(s->c), "attention.placement"),
                 "attention.placement"));
  status result = comm_allgather(s->c, all, size->least, sizeof size->least, "attention.placement");
  for (int i = 0; i < 2 && !result; i++)
    for (int r = 0; r < comm_size(s->c); r++)
      size->least[i] = all[2 * r + i] > size->least[i] ? all[2 * r + i] : size->least[i];
  free(all);
  size->decided = true;
  size->sharded = size->least[1] < (1 - LEAST_GAIN) * size->least[0];
  return result;
}

status output_shards_note(output_shards *s, output_kind kind, int64_t n, double seconds) {
  output_size *size = &s->size[kind][size_of(n)];
  int way = way_of(s, kind, n);
  size->turns++;
  if (way < 0) return 0;
  if (!(size->least[way] > 0 && size->least[way] < seconds)) size->least[way] = seconds;
  size->tokens = n;
  size->timed++;
  return size->timed == TURNS ? decide(s, size) : 0;
}

// ---- the reason ----

static size_t tell_size(const output_size *size, const char *before, const char *what, char *out,
                        size_t bytes) {
  int n = snprintf(out, bytes, "%s%s of %lld: %s, %.3g ms (%.3g)", before, what, (long long)size->tokens,
                   size->sharded ? "sharded" : "replicated", 1e3 * size->least[size->sharded],
                   1e3 * size->least[!size->sharded]);
  return (size_t)n < bytes ? (size_t)n : bytes - 1;
}

static void tell_measured(const output_shards *s, char *out, size_t bytes) {
  static const char *const WHAT[OUTPUT_KINDS] = {"batches", "heads"};
  size_t used = 0;
  for (int kind = 0; kind < OUTPUT_KINDS; kind++)
    for (int i = 0; i < OUTPUT_SIZES; i++)
      if (s->size[kind][i].decided)
        used += tell_size(&s->size[kind][i], used ? "; " : "", WHAT[kind], out + used, bytes - used);
  if (!used) snprintf(out, bytes, "both ways by turns: too few batches of one size to choose");
}

void output_shards_tell(const output_shards *s, char *out, size_t bytes) {
  switch (s->asked) {
  case ATTENTION_REPLICATED:
    snprintf(out, bytes, "replicated");
    return;
  case ATTENTION_AUTO:
  case ATTENTION_SHARDED:
    break;
  }
  if (!s->possible)
    snprintf(out, bytes, "replicated%s%s", s->why_not[0] ? ": " : "", s->why_not);
  else if (s->asked == ATTENTION_SHARDED)
    snprintf(out, bytes, "sharded");
  else
    tell_measured(s, out, bytes);
}
