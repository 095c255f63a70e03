// fuzz_placement: any numbers as a placement of experts, and the cutting of any sequences into batches.
//
// An input: a byte whose two lowest bits choose, then for a placement kind, experts, ranks, rank and the
// list; for one by counts experts, ranks, layers, replicas, their bytes, groups of ranks and the counts; for
// the batcher the chunk and the lengths of the sequences.
#include "tests/fuzz/fuzz.h"
#include "src/run/batcher.h"
#include "src/run/placement.h"
#include "src/run/placement_counted.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_EXPERTS = 256, MOST_SEQUENCES = 16, MOST_TOKENS = 64 };

// Each slot has a rank, which holds the expert; this rank's experts are numbered in order.
static void check_placement(const placement *p, int64_t n_layers, int rank) {
  enum { AT_ONCE = 8 };
  expert_map map = placement_map(p);
  int64_t most = 0;
  for (int64_t l = 0; l < n_layers; l++) {
    bool owns[MOST_EXPERTS] = {false};
    int64_t held = 0, at = placement_index(p, l, 0);
    for (int64_t e = 0; e < p->n_experts; e++) {
      bool here = false;
      REQUIRE(p->first[at + e + 1] > p->first[at + e]);
      for (int32_t k = p->first[at + e]; k < p->first[at + e + 1]; k++) {
        REQUIRE(p->holder[k] >= 0 && p->holder[k] < p->n_ranks);
        REQUIRE(k == p->first[at + e] || p->holder[k] > p->holder[k - 1]);
        owns[p->holder[k]] = true;
        here = here || p->holder[k] == rank;
      }
      REQUIRE(map.local[at + e] == (here ? held++ : -1));
    }
    for (int r = 0; r < p->n_ranks; r++) REQUIRE(owns[r]);
    REQUIRE(held == expert_map_held(&map, l, p->n_experts) && held >= 1);
    most = held > most ? held : most;
    for (int64_t e = 0; e < p->n_experts; e += AT_ONCE) {
      expert_global expert[AT_ONCE];
      int32_t of[AT_ONCE], k = 0;
      for (; k < AT_ONCE && e + k < p->n_experts; k++) expert[k].id = (int32_t)(e + k);
      placement_ranks(of, p, l, expert, k, (int32_t)e, 7);
      while (k--) {
        bool holds = false;
        for (int32_t h = p->first[at + e + k]; h < p->first[at + e + k + 1]; h++)
          holds = holds || p->holder[h] == of[k];
        REQUIRE(holds);
      }
    }
  }
  REQUIRE(most == p->n_held);
}

static void try_placement(fuzz_input *in) {
  placement p;
  int32_t list[MOST_EXPERTS];
  placement_kind kind = (placement_kind)(fuzz_take(in, 1) % 6);
  int64_t experts = (int64_t)fuzz_take(in, 1) + 1;
  int ranks = (int)fuzz_take(in, 1) + 1, rank = (int)fuzz_take(in, 1) % ranks;
  size_t length = 0;
  while (in->left && length < MOST_EXPERTS) list[length++] = (int8_t)fuzz_take(in, 1);
  double speed[MOST_EXPERTS]; // over the range of float
  for (int r = 0; r < ranks; r++) speed[r] = ldexp(1, (size_t)r < length ? list[r] : r % 7);
  status result = placement_open(&p, kind, list, length, speed, experts, ranks, rank);
  bool is_map = kind != PLACEMENT_COUNTED && kind != PLACEMENT_AUTO;
  REQUIRE(kind == PLACEMENT_LIST || (result == 0) == (is_map && ranks <= experts));
  if (!result) check_placement(&p, 2, rank);
  placement_close(&p);
}

static void try_counts(fuzz_input *in) {
  enum { COUNTED_EXPERTS = 24, COUNTED_RANKS = 6, COUNTED_LAYERS = 3 };
  static bool holds[COUNTED_LAYERS * COUNTED_EXPERTS * COUNTED_RANKS];
  int64_t counts[COUNTED_LAYERS * COUNTED_EXPERTS] = {0}, sum = 0,
                                  experts = (int64_t)fuzz_take(in, 1) % COUNTED_EXPERTS + 1;
  uint64_t bytes[COUNTED_LAYERS], used[COUNTED_RANKS] = {0};
  int group[COUNTED_RANKS],
      ranks = (int)((int64_t)fuzz_take(in, 1) % (experts < COUNTED_RANKS ? experts : COUNTED_RANKS)) + 1;
  placement_question q = {.counts = counts,
                          .n_layers = (int64_t)fuzz_take(in, 1) % COUNTED_LAYERS + 1,
                          .n_experts = experts,
                          .n_ranks = ranks,
                          .per_layer = (int64_t)fuzz_take(in, 1),
                          .expert_bytes = bytes};
  uint64_t limit = fuzz_take(in, 1), groups = fuzz_take(in, 1);
  q.bytes = limit & 1 ? UINT64_MAX : limit * 8;
  if (groups & 1) q.group = group;
  for (int r = 0; r < COUNTED_RANKS; r++) group[r] = groups >> (r + 1) & 1;
  for (int l = 0; l < COUNTED_LAYERS; l++) bytes[l] = 50 + 20 * (uint64_t)l;
  for (int64_t i = 0; in->left && i < q.n_layers * experts; i++) sum += counts[i] = (int64_t)fuzz_take(in, 2);
  q.n_tokens = sum;
  double load;
  REQUIRE(!placement_count(holds, &q) && !placement_load(&load, holds, &q) && load > 1 - 1e-9);
  for (int r = 0; r < ranks; r++) {
    placement p;
    REQUIRE(!placement_open_held(&p, holds, q.n_layers, experts, ranks, r));
    check_placement(&p, q.n_layers, r);
    for (int64_t i = 0; i < q.n_layers * experts; i++) {
      used[r] += placement_is_held(&p, i / experts, i % experts) ? bytes[i / experts] : 0;
      for (int32_t k = p.first[i]; k < p.first[i + 1] && q.group; k++)
        REQUIRE(group[p.holder[k]] == group[p.holder[p.first[i]]]);
    }
    for (int64_t l = 0; l < q.n_layers; l++)
      used[r] -= (uint64_t)(experts / ranks + (r < experts % ranks)) * bytes[l];
    REQUIRE(q.bytes == UINT64_MAX || used[r] <= q.bytes);
    placement_close(&p);
  }
}

static void try_batcher(fuzz_input *in) {
  static int32_t tokens[MOST_TOKENS];
  token_sequence sequences[MOST_SEQUENCES];
  token_batch batch;
  batcher b;
  int64_t chunk = (int64_t)fuzz_take(in, 1) + 1, n = 0, at[MOST_SEQUENCES] = {0};
  for (int i = 0; i < MOST_TOKENS; i++) tokens[i] = i;
  for (; in->left && n < MOST_SEQUENCES; n++)
    sequences[n] = (token_sequence){tokens, (int64_t)(fuzz_take(in, 1) % (MOST_TOKENS + 1))};
  REQUIRE(!batcher_open(&b, sequences, n, chunk));
  for (int64_t last = 0; batcher_next(&b, &batch);) {
    REQUIRE(batch.n >= 1 && batch.n <= chunk);
    for (int64_t i = 0; i < batch.n; i++) {
      int32_t s = batch.sequence[i];
      REQUIRE(s >= last && s < n && batch.position[i] == at[s] && batch.token[i] == at[s]);
      at[last = s]++;
    }
  }
  for (int64_t i = 0; i < n; i++) REQUIRE(at[i] == sequences[i].n);
  batcher_close(&b);
}

FUZZ_TARGET(placement) {
  fuzz_input in = {data, size};
  status_reset();
  uint64_t what = fuzz_take(&in, 1) & 3;
  if (what & 1)
    try_batcher(&in);
  else if (what)
    try_counts(&in);
  else
    try_placement(&in);
  return 0;
}
