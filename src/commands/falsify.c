#include "src/commands/falsify.h"
#include "base/memory.h"
#include "base/whole_file.h"
#include "src/lab/experiment_files.h"
#include "src/lab/falsify.h"
#include "src/report/falsify_report.h"
#include <stdlib.h>

typedef struct {
  job *j;
  experiment *all; // of the files
  size_t n_all;
  const experiment **chosen; // views into all
  experiment_result *results;
  size_t n;
} falsification;

static bool is_chosen(const size_list *only, int id) {
  bool found = !only->count;
  for (size_t i = 0; i < only->count; i++) found = found || only->size[i] == id;
  return found;
}

static bool is_there(const falsification *f, int64_t id) {
  for (size_t i = 0; i < f->n_all; i++)
    if (f->all[i].id == id) return true;
  return false;
}

static status choose(falsification *f) {
  const config *c = f->j->cfg;
  const size_list *only = &c->falsify.only;
  TRY(experiments_open(&f->all, &f->n_all, c->falsify.experiments));
  for (size_t i = 0; i < only->count; i++)
    if (!is_there(f, only->size[i]))
      return REFUSE("falsify.only: experiment %lld has no file", (long long)only->size[i]);
  TRY(TAKE(&f->chosen, f->n_all, "the experiments"));
  TRY(TAKE(&f->results, f->n_all, "the experiments' results"));
  for (size_t i = 0; i < f->n_all; i++) {
    if (!is_chosen(only, f->all[i].id)) continue;
    TRY(falsify_check(&f->all[i]));
    f->chosen[f->n++] = &f->all[i];
  }
  return job_is_reporting(f->j) && c->output.dir[0] ? output_dir_check(c->output.dir) : 0;
}

// Whole passes need all weights, checked, and an input where one is given.
static status open_passes(falsification *f) {
  bool needed = false;
  for (size_t i = 0; i < f->n; i++) needed = needed || falsify_runs_arms(f->chosen[i]);
  if (!needed) return 0;
  return f->j->cfg->input.kind == INPUT_NONE ? job_check_weights(f->j) : job_read_input(f->j);
}

static status print_one(const experiment_result *r) {
  falsify_print(stdout, r);
  return fflush(stdout) ? FAIL("standard output: an experiment could not be written: %m") : 0;
}

static status run_all(falsification *f) {
  falsify_lab lab = {f->j, f->j->cfg->falsify.draws, f->j->cfg->falsify.tokens};
  bool reports = job_is_reporting(f->j);
  for (size_t i = 0; i < f->n; i++) {
    TRY(falsify_run(&lab, f->chosen[i], &f->results[i]));
    TRY(job_agree(f->j, reports ? print_one(&f->results[i]) : 0, "writing an experiment"));
  }
  return 0;
}

static status finish(falsification *f) {
  const char *dir = f->j->cfg->output.dir, *path = gguf_path(f->j->m->file);
  if (!job_is_reporting(f->j)) return 0;
  falsify_print_verdicts(stdout, f->results, f->n);
  if (fflush(stdout)) return FAIL("standard output: the verdicts could not be written: %m");
  return dir[0] ? falsify_write(dir, path, &f->j->warnings, f->results, f->n) : 0;
}

status falsify_command_run(job *j) {
  falsification f = {.j = j};
  status result;
  TRY_DONE(result, job_agree(j, choose(&f), "the experiments"));
  TRY_DONE(result, open_passes(&f));
  if (job_is_reporting(j)) falsify_print_heading(stdout, gguf_path(j->m->file));
  TRY_DONE(result, run_all(&f));
  result = job_agree(j, finish(&f), "writing the verdicts");
done:
  for (size_t i = 0; i < f.n; i++) experiment_result_close(&f.results[i]);
  free(f.results);
  free(f.chosen);
  free(f.all);
  return result;
}
