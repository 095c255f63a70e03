#include "src/commands/rank_work.h"
#include "base/memory.h"
#include "src/commands/phase_work.h"
#include <stdlib.h>
#include <string.h>

status rank_work_open(rank_work *w, const model *m, const placement *experts) {
  *w = (rank_work){.m = m, .experts = experts};
  TRY(TAKE(&w->slots, (size_t)experts->n_ranks, "ranks' slots"));
  TRY(TAKE(&w->read, (size_t)experts->n_ranks, "ranks' bytes"));
  return TAKE(&w->chosen, (size_t)(experts->n_experts * experts->n_ranks), "chosen experts");
}

void rank_work_close(rank_work *w) {
  free(w->slots);
  free(w->read);
  free(w->chosen);
}

void rank_work_start(rank_work *w, bench_ranks *to) {
  size_t bytes = to ? (size_t)to->n * sizeof *to->sent : 0;
  w->to = to;
  w->owned = w->all = w->heads_owned = w->heads = 0;
  if (!to) return;
  memset(to->sent, 0, bytes);
  memset(to->received, 0, bytes);
  memset(to->slots, 0, bytes);
  memset(to->expert_bytes, 0, bytes);
  to->busiest_slots = to->busiest_expert_bytes = 0;
}

void rank_work_end(rank_work *w) {
  if (w->to) w->to->token_share = w->owned / w->all;
  if (w->to) w->to->head_share = w->heads_owned / w->heads;
  w->to = NULL;
}

static void add_experts(rank_work *w, const arm *a, int64_t layer, const token_batch *batch) {
  const layer_weights *l = &w->m->weights.layers[layer];
  uint64_t bytes = matrix_bytes(&l->gate) + matrix_bytes(&l->up) + matrix_bytes(&l->down);
  size_t n = (size_t)w->experts->n_ranks;
  memset(w->slots, 0, n * sizeof *w->slots);
  memset(w->read, 0, n * sizeof *w->read);
  memset(w->chosen, 0, n * (size_t)w->experts->n_experts);
  for (int64_t t = 0; t < batch->n; t++) {
    int64_t top_k = w->m->weights.shape.top_k;
    int32_t rank[MAX_TOP_K];
    const expert_global *expert = arm_experts(a, t);
    placement_ranks(rank, w->experts, layer, expert, top_k, batch->sequence[t], batch->position[t]);
    for (int64_t k = 0; k < top_k; k++) {
      uint8_t *chosen = &w->chosen[rank[k] * w->experts->n_experts + expert[k].id];
      w->slots[rank[k]]++;
      if (!*chosen) w->read[rank[k]] += bytes;
      *chosen = 1;
    }
  }
}

static uint64_t most(const uint64_t *of, int n) {
  uint64_t all = 0;
  for (int r = 0; r < n; r++) all = of[r] > all ? of[r] : all;
  return all;
}

void rank_work_add_layer(rank_work *w, arm *a, int64_t layer, const token_batch *batch) {
  bench_ranks *to = w->to;
  if (!to || !arm_computes_shared(a)) return;
  add_experts(w, a, layer, batch);
  for (int r = 0; r < to->n; r++) {
    to->slots[r] += w->slots[r];
    to->expert_bytes[r] += w->read[r];
  }
  to->busiest_slots += most(w->slots, to->n);
  to->busiest_expert_bytes += most(w->read, to->n);
  arm_count_exchange(a, layer, to->sent, to->received);
  w->owned += arm_largest_share(a) * (double)batch->n;
  w->all += (double)batch->n;
}

void rank_work_add_head(rank_work *w, const arm *a, int64_t rows) {
  if (!w->to) return;
  w->heads_owned += arm_largest_head_share(a, rows) * (double)rows;
  w->heads += (double)rows;
}
