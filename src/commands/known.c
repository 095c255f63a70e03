#include "src/commands/known.h"
#include "src/report/known_answers.h"
#include <inttypes.h>
#include <string.h>

status known_check_table(const config *c) {
  known_answers k;
  status result = known_open(&k, c->known.path, 0);
  known_close(&k);
  return result;
}

// An arm whose digest follows from model, tokens and path: not of a mixed job, nor with another cache.
static const path_info *plain_path(const job *j, const arm_choice *a) {
  if (a->kind != ARM_PLAIN) return NULL;
  const path_info *path = path_for(a->path, &j->m->weights);
  return path_reads_kv(path) && j->cfg->run.kv != KV_F16 ? NULL : path;
}

static status finish(job *j, const known_answers *k, FILE *out, status mine) {
  if (!mine && job_is_reporting(j)) known_print(k, out);
  if (!mine && fflush(out)) mine = FAIL("standard output: the known answers could not be written: %m");
  return job_agree(j, mine ? mine : known_differs(k) ? STATUS_DIFFERS : 0, "the known answers");
}

static const arm_choice *choice_of(const job *j, const char *name) {
  const arm_list *arms = &j->cfg->run.arms;
  size_t a = 0;
  while (a + 1 < arms->count && strcmp(arms->arm[a].name, name)) a++;
  return &arms->arm[a];
}

static status check_bench(const job *j, const bench_report *b, known_answers *k) {
  TRY(known_open(k, j->cfg->known.path, j->fingerprint));
  for (size_t i = 0; i < b->n_rows && !j->cfg->run.seed; i++) { // another seed: other tokens
    const path_info *path = plain_path(j, choice_of(j, b->rows[i].arm));
    char test[BENCH_TEST];
    bench_test_name(test, &b->rows[i]);
    if (path) TRY(known_add(k, b->rows[i].arm, path, test, b->rows[i].digest));
  }
  return 0;
}

status known_judge_bench(job *j, const bench_report *b) {
  known_answers k = {.rows = NULL};
  status mine = job_is_reporting(j) ? check_bench(j, b, &k) : 0;
  status result = finish(j, &k, j->cfg->bench.format == BENCH_MD ? stdout : stderr, mine);
  known_close(&k);
  return result;
}

static status check_texts(const job *j, const report_arm *from, const path_info *path, known_answers *k) {
  uint64_t sum = 0;
  char test[KNOWN_TEST];
  if (!from->n_texts || j->cfg->run.temperature > 0) return 0;
  for (size_t i = 0; i < from->n_texts; i++) sum += from->texts[i].digest;
  snprintf(test, sizeof test, "written %" PRId64 " after %016" PRIx64, j->cfg->run.generate, j->input);
  return known_add(k, from->name, path, test, sum);
}

static status check_report(const job *j, const report *r, known_answers *k) {
  char test[KNOWN_TEST];
  if (j->reference || j->cfg->parity.routes[0]) return 0; // other weights, or other experts than the model's
  TRY(known_open(k, j->cfg->known.path, j->fingerprint));
  snprintf(test, sizeof test, "input %016" PRIx64, j->input);
  for (size_t a = 0; a < r->n_arms; a++) {
    const path_info *path = plain_path(j, &j->cfg->run.arms.arm[a]);
    if (!path) continue;
    TRY(known_add(k, r->arms[a].name, path, test, r->arms[a].digest));
    TRY(check_texts(j, &r->arms[a], path, k));
  }
  return 0;
}

status known_judge_report(job *j, const report *r) {
  known_answers k = {.rows = NULL};
  status mine = job_is_reporting(j) ? check_report(j, r, &k) : 0;
  status result = finish(j, &k, stdout, mine);
  known_close(&k);
  return result;
}
