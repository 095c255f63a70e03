// fuzz_placement: any numbers as a placement of experts, and the cutting of any sequences into batches.
//
// An input: a byte whose lowest bit chooses, then for a placement kind, experts, ranks, rank and the list;
// for the batcher the chunk and the lengths of the sequences.
#include "tests/fuzz/fuzz.h"
#include "src/run/batcher.h"
#include "src/run/placement.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_EXPERTS = 256, MOST_SEQUENCES = 16, MOST_TOKENS = 64 };

static void check_placement(const placement *p, int rank) {
  int64_t owned = 0;
  bool owns[MOST_EXPERTS] = {false};
  for (int64_t e = 0; e < p->n_experts; e++) {
    REQUIRE(p->rank_of_expert[e] >= 0 && p->rank_of_expert[e] < p->n_ranks);
    REQUIRE(p->local[e].index == (p->rank_of_expert[e] == rank ? owned++ : -1));
    owns[p->rank_of_expert[e]] = true;
  }
  for (int r = 0; r < p->n_ranks; r++) REQUIRE(owns[r]);
  REQUIRE(owned == p->n_owned && owned >= 1);
}

static void try_placement(fuzz_input *in) {
  placement p;
  int32_t list[MOST_EXPERTS];
  placement_kind kind = (placement_kind)(fuzz_take(in, 1) % 5);
  int64_t experts = (int64_t)fuzz_take(in, 1) + 1;
  int ranks = (int)fuzz_take(in, 1) + 1, rank = (int)fuzz_take(in, 1) % ranks;
  size_t length = 0;
  while (in->left && length < MOST_EXPERTS) list[length++] = (int8_t)fuzz_take(in, 1);
  double speed[MOST_EXPERTS]; // over the range of float
  for (int r = 0; r < ranks; r++) speed[r] = ldexp(1, (size_t)r < length ? list[r] : r % 7);
  status result = placement_open(&p, kind, list, length, speed, experts, ranks, rank);
  REQUIRE(kind == PLACEMENT_LIST || kind == PLACEMENT_COUNTED || (result == 0) == (ranks <= experts));
  if (!result) check_placement(&p, rank);
  placement_close(&p);
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
  if (fuzz_take(&in, 1) & 1)
    try_batcher(&in);
  else
    try_placement(&in);
  return 0;
}
