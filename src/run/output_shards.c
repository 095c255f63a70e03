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

// What all ranks are able to, and the first reason against it.
static status survey(output_shards *s, const output_ability *mine) {
  output_ability *all;
  TRY(comm_agree(s->c, TAKE(&all, (size_t)comm_size(s->c), "attention.placement"), "attention.placement"));
  status result = comm_allgather(s->c, all, mine, sizeof *mine, "attention.placement");
  s->possible[OUTPUTS_OF_LAYERS] = s->possible[OUTPUTS_OF_HEAD] = !result;
  for (int r = 0; r < comm_size(s->c) && !result; r++) {
    s->by_tokens = s->by_tokens || !all[r].outputs;
    s->possible[OUTPUTS_OF_HEAD] = s->possible[OUTPUTS_OF_HEAD] && all[r].head;
    if (!s->why_not[0]) snprintf(s->why_not, sizeof s->why_not, "%s", all[r].why_not);
  }
  free(all);
  if (s->why_not[0]) s->possible[OUTPUTS_OF_LAYERS] = s->possible[OUTPUTS_OF_HEAD] = false;
  s->least = s->by_tokens ? comm_size(s->c) : 1; // each rank has a token
  return result;
}

status output_shards_open(output_shards *out, comm *c, attention_placement asked, const output_ability *mine,
                          int64_t most) {
  *out = (output_shards){.asked = asked, .c = c, .most = most};
  return comm_size(c) > 1 && asked != ATTENTION_REPLICATED ? survey(out, mine) : 0;
}

static bool may_apply(const output_shards *s, output_kind kind, int64_t n) {
  return s->possible[kind] && (kind == OUTPUTS_OF_HEAD || (n >= s->least && n <= s->most));
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
  return may_apply(s, kind, n) && !s->held && s->asked == ATTENTION_AUTO &&
         !s->size[kind][size_of(n)].decided;
}

bool output_shards_apply(const output_shards *s, output_kind kind, int64_t n) {
  const output_size *size = &s->size[kind][size_of(n)];
  if (!may_apply(s, kind, n)) return false;
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

static const char *sharded_name(const output_shards *s, output_kind kind) {
  return kind == OUTPUTS_OF_LAYERS && s->by_tokens ? "sharded by tokens" : "sharded";
}

static size_t tell_size(const output_shards *s, output_kind kind, const output_size *size, const char *before,
                        char *out, size_t bytes) {
  static const char *const WHAT[OUTPUT_KINDS] = {"batches", "heads"};
  int n = snprintf(out, bytes, "%s%s of %lld: %s, %.3g ms (%.3g)", before, WHAT[kind],
                   (long long)size->tokens, size->sharded ? sharded_name(s, kind) : "replicated",
                   1e3 * size->least[size->sharded], 1e3 * size->least[!size->sharded]);
  return (size_t)n < bytes ? (size_t)n : bytes - 1;
}

static void tell_measured(const output_shards *s, char *out, size_t bytes) {
  size_t used = 0;
  for (int kind = 0; kind < OUTPUT_KINDS; kind++)
    for (int i = 0; i < OUTPUT_SIZES; i++)
      if (s->size[kind][i].decided)
        used +=
            tell_size(s, (output_kind)kind, &s->size[kind][i], used ? "; " : "", out + used, bytes - used);
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
  if (!s->possible[OUTPUTS_OF_LAYERS])
    snprintf(out, bytes, "replicated%s%s", s->why_not[0] ? ": " : "", s->why_not);
  else if (s->asked == ATTENTION_SHARDED)
    snprintf(out, bytes, "%s", sharded_name(s, OUTPUTS_OF_LAYERS));
  else
    tell_measured(s, out, bytes);
}
