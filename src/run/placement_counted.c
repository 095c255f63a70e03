#include "src/run/placement_counted.h"
#include "base/memory.h"
#include <stdlib.h>

typedef struct {
  int32_t *rank_of_expert;
  const int64_t *counts; // [n_layers][n_experts]
  int64_t n_layers, n_experts;
  int n_ranks;
  int64_t *load; // [n_layers][n_ranks]
  int64_t *sum;  // [n_experts] over layers
  int64_t *room; // [n_ranks] experts that a rank still takes
} search;

static int64_t *load_at(const search *s, int64_t layer, int rank) {
  return &s->load[layer * s->n_ranks + rank];
}

static void add_expert(search *s, int64_t expert, int rank, int64_t sign) {
  for (int64_t l = 0; l < s->n_layers; l++)
    *load_at(s, l, rank) += sign * s->counts[l * s->n_experts + expert];
}

// ---- a start: the most chosen expert first, to the rank with the least load that has room ----

static int64_t total_of(const search *s, int rank) {
  int64_t sum = 0;
  for (int64_t l = 0; l < s->n_layers; l++) sum += *load_at(s, l, rank);
  return sum;
}

static int64_t next_expert(const search *s) {
  int64_t best = -1;
  for (int64_t e = 0; e < s->n_experts; e++)
    if (s->rank_of_expert[e] < 0 && (best < 0 || s->sum[e] > s->sum[best])) best = e;
  return best;
}

static void place_by_load(search *s) {
  for (int64_t e = 0; e < s->n_experts; e++) s->rank_of_expert[e] = -1;
  for (int64_t placed = 0; placed < s->n_experts; placed++) {
    int64_t expert = next_expert(s), least = 0;
    int to = -1;
    for (int r = 0; r < s->n_ranks; r++) {
      int64_t load = total_of(s, r);
      if (!s->room[r] || (to >= 0 && load >= least)) continue;
      to = r;
      least = load;
    }
    s->rank_of_expert[expert] = to;
    s->room[to]--;
    add_expert(s, expert, to, 1);
  }
}

// ---- exchanges of two experts ----

static int64_t busiest(const search *s, int64_t layer) {
  int64_t most = 0;
  for (int r = 0; r < s->n_ranks; r++) most = *load_at(s, layer, r) > most ? *load_at(s, layer, r) : most;
  return most;
}

static int64_t cost(const search *s) {
  int64_t sum = 0;
  for (int64_t l = 0; l < s->n_layers; l++) sum += busiest(s, l);
  return sum;
}

static void swap(search *s, int64_t a, int64_t b) {
  int of_a = s->rank_of_expert[a], of_b = s->rank_of_expert[b];
  for (int64_t l = 0; l < s->n_layers; l++) {
    int64_t more = s->counts[l * s->n_experts + b] - s->counts[l * s->n_experts + a];
    *load_at(s, l, of_a) += more;
    *load_at(s, l, of_b) -= more;
  }
  s->rank_of_expert[a] = of_b;
  s->rank_of_expert[b] = of_a;
}

static bool improve(search *s, int64_t *now) {
  bool any = false;
  for (int64_t a = 0; a < s->n_experts; a++)
    for (int64_t b = a + 1; b < s->n_experts; b++) {
      if (s->rank_of_expert[a] == s->rank_of_expert[b]) continue;
      swap(s, a, b);
      int64_t then = cost(s);
      if (then < *now) {
        *now = then;
        any = true;
      } else {
        swap(s, a, b); // back
      }
    }
  return any;
}

// ---- open and close ----

static status search_open(search *s) {
  TRY(TAKE(&s->load, (size_t)(s->n_layers * s->n_ranks), "the placement by counts"));
  TRY(TAKE(&s->sum, (size_t)s->n_experts, "the placement by counts"));
  TRY(TAKE(&s->room, (size_t)s->n_ranks, "the placement by counts"));
  for (int64_t i = 0; i < s->n_layers * s->n_experts; i++) s->sum[i % s->n_experts] += s->counts[i];
  for (int r = 0; r < s->n_ranks; r++)
    s->room[r] = s->n_experts / s->n_ranks + (r < s->n_experts % s->n_ranks);
  return 0;
}

static void search_close(search *s) {
  free(s->load);
  free(s->sum);
  free(s->room);
}

status placement_count(int32_t *rank_of_expert, const int64_t *counts, int64_t n_layers, int64_t n_experts,
                       int n_ranks) {
  search s = {rank_of_expert, counts, n_layers, n_experts, n_ranks, NULL, NULL, NULL};
  status result = search_open(&s);
  if (!result) {
    place_by_load(&s);
    int64_t now = cost(&s);
    while (improve(&s, &now)) continue; // each time less, so it ends
  }
  search_close(&s);
  return result;
}

status placement_load(double *out, const int32_t *rank_of_expert, const int64_t *counts, int64_t n_layers,
                      int64_t n_experts, int n_ranks) {
  search s = {(int32_t *)rank_of_expert, counts, n_layers, n_experts, n_ranks, NULL, NULL, NULL}; // read only
  int64_t all = 0;
  status result = search_open(&s);
  if (!result) {
    for (int64_t e = 0; e < n_experts; e++) {
      add_expert(&s, e, rank_of_expert[e], 1);
      all += s.sum[e];
    }
    *out = all ? (double)cost(&s) * n_ranks / (double)all : 1;
  }
  search_close(&s);
  return result;
}
