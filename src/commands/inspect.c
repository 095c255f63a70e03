#include "src/commands/inspect.h"
#include "base/memory.h"
#include "src/report/inspect_report.h"
#include <stdio.h>
#include <stdlib.h>

static status gather(job *j, rank_holding *all) {
  expert_map held = placement_map(&j->experts);
  rank_holding mine = {j->experts.n_held, model_experts_bytes(j->m, &held)};
  return comm_allgather(j->c, all, &mine, sizeof mine, "the gathering of ranks' holdings");
}

static double mib(uint64_t bytes) {
  return (double)bytes / (1024.0 * 1024.0);
}

// What a batch system must grant: weights are pages of the file, which ranks of a host share; on a GPU a rank
// holds its own.
static void print_memory(const job *j, const rank_holding *all) {
  const model_shape *s = &j->m->weights.shape;
  uint64_t most = 0, sum = 0;
  for (int r = 0; r < comm_size(j->c); r++) {
    sum += all[r].bytes;
    most = all[r].bytes > most ? all[r].bytes : most;
  }
  printf("memory   weights: %.1f MiB for all ranks on one host, at most %.1f MiB for one rank on a host or "
         "GPU of its "
         "own\n",
         mib(sum + j->m->shared_bytes), mib(most + j->m->shared_bytes));
  for (size_t i = 0; i < j->cfg->run.arms.count; i++) {
    const arm_choice *a = &j->cfg->run.arms.arm[i];
    if (a->kind != ARM_PLAIN) continue;
    uint64_t each = 2 * (uint64_t)(s->n_layers * s->n_kv_heads) *
                    path_cache_bytes(path_get(a->path), s->head_dim, j->cfg->run.kv == KV_F16);
    printf("memory   %s: %.1f KiB of keys and values for each position of a sequence, on every shared rank\n",
           a->name, (double)each / 1024);
  }
  printf("memory   and work space for a batch; a run's report has each rank's whole (state bytes). "
         "docs/centres.md says "
         "what --mem covers\n");
}

static status print(job *j, const rank_holding *ranks) {
  message_list why = {.count = 0};
  inspection i = {.m = j->m,
                  .refusals = &j->refusals,
                  .warnings = &j->warnings,
                  .experts = &j->experts,
                  .ranks = ranks,
                  .n_ranks = comm_size(j->c)};
  status result;
  TRY(end_tokens_open(&j->ends, j->m->file));
  TRY_DONE(result, message_list_take_error(&why, job_need_tokenizer(j)));
  i.ends = j->ends;
  i.tokenizer_error = why.count ? why.text[0] : NULL;
  i.tokenizer = why.count ? NULL : j->tokenizer;
  switch (j->cfg->output.format) {
  case OUTPUT_TEXT:
    inspect_print(stdout, &i);
    if (ranks) print_memory(j, ranks);
    break;
  case OUTPUT_JSON:
    TRY_DONE(result, inspect_print_json(stdout, &i));
    break;
  }
  if (fflush(stdout)) result = FAIL("standard output: could not be written: %m");
done:
  message_list_close(&why);
  return result;
}

status inspect_run(job *j) {
  rank_holding *all = NULL;
  status result = 0;
  if (j->m->whole) {
    TRY(TAKE(&all, (size_t)comm_size(j->c), "ranks' holdings"));
    result = gather(j, all);
  }
  if (!result && job_is_reporting(j)) result = print(j, all);
  free(all);
  return job_agree(j, result, "the inspection");
}
