#include "src/commands/screen.h"
#include "base/whole_file.h"
#include "src/report/screen_report.h"

static status check_output(const job *j) {
  const char *dir = j->cfg->output.dir;
  return job_is_reporting(j) && dir[0] ? output_dir_check(dir) : 0;
}

// All positions of the sequence: what bench's tg test of that length computes.
static status check_known(known_answers *known, const screen_result *s) {
  char test[KNOWN_TEST];
  snprintf(test, sizeof test, "tg%lld", (long long)s->n_tokens);
  for (size_t i = 0; i < s->n_answers; i++) {
    const path_info *path = s->answers[i].path;
    TRY(known_add(known, path->name, path, test, s->answers[i].logits));
  }
  return 0;
}

static status print(const job *j, const screen_report *r) {
  const char *dir = j->cfg->output.dir;
  if (!job_is_reporting(j)) return 0;
  if (dir[0]) TRY(screen_report_write(r, dir));
  screen_report_print(r, stdout);
  return fflush(stdout) ? FAIL("standard output: the findings could not be written: %m") : 0;
}

status screen_command_run(job *j) {
  screen_result found = {.ranks = NULL};
  known_answers known = {.rows = NULL};
  status result;
  TRY_DONE(result, job_agree(j, check_output(j), "the output folder"));
  TRY_DONE(result, job_check_weights(j));
  TRY_DONE(result, job_agree(j, known_open(&known, j->cfg->known.path, j->fingerprint), "the known answers"));
  TRY_DONE(result, screen_run(j, &found));
  TRY_DONE(result, job_agree(j, check_known(&known, &found), "the known answers"));
  const screen_report r = {&found, gguf_path(j->m->file), j->fingerprint, &known};
  TRY_DONE(result, job_agree(j, print(j, &r), "writing the findings"));
  result = job_agree(j, screen_report_is_clean(&r) ? 0 : STATUS_DIFFERS, "the findings");
done:
  known_close(&known);
  screen_close(&found);
  return result;
}
