#include "src/run/placement_counted.h"
#include "base/memory.h"
#include "src/run/placement.h"
#include <stdlib.h>

typedef struct {           // of one layer, without replicas
  int32_t *rank_of_expert; // [n_experts]
  const int64_t *counts;   // [n_experts]
  int64_t n_experts;
  int n_ranks;
  int64_t *load; // [n_ranks]
  int64_t *room; // [n_ranks] experts that a rank still takes
} search;

// ---- a start: the most chosen expert first, to the rank with the least load that has room ----

static int64_t next_expert(const search *s) {
  int64_t best = -1;
  for (int64_t e = 0; e < s->n_experts; e++)
    if (s->rank_of_expert[e] < 0 && (best < 0 || s->counts[e] > s->counts[best])) best = e;
  return best;
}

static void place_by_load(search *s) {
  for (int r = 0; r < s->n_ranks; r++) {
    s->load[r] = 0;
    s->room[r] = s->n_experts / s->n_ranks + (r < s->n_experts % s->n_ranks);
  }
  for (int64_t e = 0; e < s->n_experts; e++) s->rank_of_expert[e] = -1;
  for (int64_t placed = 0; placed < s->n_experts; placed++) {
    int64_t expert = next_expert(s);
    int to = -1;
    for (int r = 0; r < s->n_ranks; r++)
      if (s->room[r] && (to < 0 || s->load[r] < s->load[to])) to = r;
    s->rank_of_expert[expert] = to;
    s->room[to]--;
    s->load[to] += s->counts[expert];
  }
}

// ---- exchanges of two experts ----

static int64_t busiest(const search *s) {
  int64_t most = 0;
  for (int r = 0; r < s->n_ranks; r++) most = s->load[r] > most ? s->load[r] : most;
  return most;
}

static void swap(search *s, int64_t a, int64_t b) {
  int of_a = s->rank_of_expert[a], of_b = s->rank_of_expert[b];
  int64_t more = s->counts[b] - s->counts[a];
  s->load[of_a] += more;
  s->load[of_b] -= more;
  s->rank_of_expert[a] = of_b;
  s->rank_of_expert[b] = of_a;
}

static bool improve(search *s, int64_t *now) {
  bool any = false;
  for (int64_t a = 0; a < s->n_experts; a++)
    for (int64_t b = a + 1; b < s->n_experts; b++) {
      if (s->rank_of_expert[a] == s->rank_of_expert[b]) continue;
      swap(s, a, b);
      int64_t then = busiest(s);
      if (then < *now) {
        *now = then;
        any = true;
      } else {
        swap(s, a, b); // back
      }
    }
  return any;
}

static void place_layer(search *s) {
  place_by_load(s);
  int64_t now = busiest(s);
  while (improve(s, &now)) continue; // each time less, so it ends
}

// ---- all layers ----

status placement_count(bool *holds, const placement_question *q) {
  search s = {.n_experts = q->n_experts, .n_ranks = q->n_ranks};
  status result;
  TRY_DONE(result, TAKE(&s.rank_of_expert, (size_t)q->n_experts, "the placement by counts"));
  TRY_DONE(result, TAKE(&s.load, (size_t)q->n_ranks, "the placement by counts"));
  TRY_DONE(result, TAKE(&s.room, (size_t)q->n_ranks, "the placement by counts"));
  for (int64_t l = 0; l < q->n_layers; l++) {
    s.counts = q->counts + l * q->n_experts;
    place_layer(&s);
    for (int64_t e = 0; e < q->n_experts; e++)
      for (int r = 0; r < q->n_ranks; r++)
        holds[(l * q->n_experts + e) * q->n_ranks + r] = s.rank_of_expert[e] == r;
  }
  result = placement_replicate(holds, q);
done:
  free(s.rank_of_expert);
  free(s.load);
  free(s.room);
  return result;
}

status placement_load_contiguous(double *out, const placement_question *q) {
  placement p;
  bool *holds;
  size_t ranks = (size_t)q->n_ranks, n = (size_t)q->n_experts;
  TRY(placement_open(&p, PLACEMENT_CONTIGUOUS, NULL, 0, NULL, q->n_experts, q->n_ranks, 0));
  status result = TAKE(&holds, (size_t)q->n_layers * n * ranks, "the placement");
  for (size_t i = 0; i < (size_t)q->n_layers * n && !result; i++)
    holds[i * ranks + (size_t)placement_first_holder(&p, 0, (int64_t)(i % n))] = true;
  if (!result) result = placement_load(out, holds, q);
  free(holds);
  placement_close(&p);
  return result;
}
