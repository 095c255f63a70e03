#include "src/commands/inspect.h"
#include "base/memory.h"
#include "src/report/inspect_report.h"
#include <stdio.h>
#include <stdlib.h>

static status gather(job *j, rank_holding *all) {
  rank_holding mine = {j->experts.n_owned, model_experts_bytes(j->m, j->experts.local)};
  return comm_allgather(j->c, all, &mine, sizeof mine, "the gathering of ranks' holdings");
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
  if (j->m->whole) TRY(job_check_products(j, &j->refusals));
  TRY(end_tokens_open(&j->ends, j->m->file));
  TRY_DONE(result, message_list_take_error(&why, job_need_tokenizer(j)));
  i.ends = j->ends;
  i.tokenizer_error = why.count ? why.text[0] : NULL;
  i.tokenizer = why.count ? NULL : j->tokenizer;
  switch (j->cfg->output.format) {
  case OUTPUT_TEXT:
    inspect_print(stdout, &i);
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
