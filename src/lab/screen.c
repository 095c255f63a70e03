#include "src/lab/screen.h"
#include "src/run/input.h"
#include "base/clock.h"
#include "base/memory.h"
#include "base/progress.h"
#include "src/lab/screen_parts.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLICES = 4 * SCREEN_CUTS }; // rounds that screen.seconds is cut into, where a unit is that fast

// ---- open ----

static bool has_gpu(const screen *s) {
  const backend_ops *cuda = backend_get(BACKEND_CUDA);
  return cuda && cuda->devices && comm_host_rank(s->j->c) < cuda->devices();
}

// What this rank computes an arm of screen.arms with.
static status resolve(const screen *s, arm_spec *out, const arm_choice *a) {
  if (a->kind != ARM_AUTO) return arm_choice_resolve(out, a);
  const arm_choice here = arm_choice_of(a->path, has_gpu(s) ? BACKEND_CUDA : BACKEND_CPU);
  return arm_choice_resolve(out, &here);
}

static status open_unit(screen *s, const arm_choice *a) {
  arm_spec spec;
  int32_t i = s->mine.n_units;
  screen_coverage *c = &s->mine.unit[i];
  TRY(resolve(s, &spec, a));
  TRY(screen_unit_open(&s->unit[i], &s->work, spec.path->kind, spec.backend, s->j->cfg->run.rows,
                       s->work.sequences));
  s->mine.n_units++;
  s->uses[spec.path->kind] = true;
  c->on_device = backend_is_on_device(spec.backend);
  snprintf(c->arm, sizeof c->arm, "%s", arm_choice_of(spec.path->kind, spec.backend->kind).name);
  snprintf(c->row, sizeof c->row, "%.31s", spec.backend->row(s->unit[i].compute));
  return 0;
}

static status open_work(screen *s) {
  job *j = s->j;
  const config *c = j->cfg;
  int64_t n = c->screen.tokens, most = j->m->context_length;
  if (n > most)
    return REFUSE("screen.tokens = %lld: expected at most the model's context of %lld", (long long)n,
                  (long long)most);
  TRY(placement_open(&s->experts, PLACEMENT_CONTIGUOUS, NULL, 0, NULL, j->m->weights.shape.n_experts, 1, 0));
  TRY(TAKE(&s->tokens, (size_t)n, "the tokens of screen"));
  for (int64_t t = 0; t < n;
       t++) // bench's first sequence with run.seed = 0, for which there are known answers
    s->tokens[t] = input_drawn(0, j->m->weights.shape.vocabulary, 0, t);
  s->work = (screen_work){.m = j->m,
                          .experts = &s->experts,
                          .tokens = s->tokens,
                          .n_tokens = n,
                          .sequences = c->screen.sequences,
                          .threads = topology_threads(j->place),
                          .host_rank = comm_host_rank(j->c),
                          .deadline = c->comm.deadline};
  TRY(TAKE(&s->stream, (size_t)(n * c->screen.sequences * j->m->weights.shape.hidden), "a residual stream"));
  TRY(TAKE(&s->found, SCREEN_FINDINGS, "the findings of screen"));
  for (size_t i = 0; i < c->screen.arms.count; i++) TRY(open_unit(s, &c->screen.arms.arm[i]));
  return 0;
}

static void describe(screen *s) {
  job *j = s->j;
  s->mine.device = j->device;
  snprintf(s->mine.host, sizeof s->mine.host, "%.95s", comm_host(j->c));
  snprintf(s->mine.cores, sizeof s->mine.cores, "%.95s", topology_cores(j->place));
}

static status open_all(screen *s) {
  job *j = s->j;
  TRY(job_agree(j, open_work(s), "the work of screen"));
  describe(s);
  for (int p = 0; p < PATH_COUNT; p++)
    if (s->uses[p]) TRY(screen_reference_open(s, &s->reference[p], (path_kind)p));
  return screen_links_open(s);
}

// ---- the rounds ----

static status run_once(screen *s, int32_t unit, screen_cut cut) {
  screen_unit *u = &s->unit[unit];
  screen_coverage *c = &s->mine.unit[unit];
  double start = clock_seconds();
  if (cut == CUT_PROBES) {
    TRY(screen_unit_probe(u, &s->reference[u->path->kind].store, true));
    screen_check_probes(s, u, screen_cut_name(cut));
  } else {
    TRY(screen_unit_run(u, cut));
    TRY(screen_check_run(s, u, cut));
  }
  c->runs[cut]++;
  c->tokens[cut] += (uint64_t)screen_cut_tokens(u, cut);
  c->seconds[cut] += clock_seconds() - start;
  return 0;
}

// Every unit its part of a slice of time, once at least: a fast one does not wait for the slow.
static status run_units(screen *s, screen_cut cut, double slice) {
  for (int32_t i = 0; i < s->mine.n_units; i++) {
    double end = clock_seconds() + slice / s->mine.n_units;
    do TRY(run_once(s, i, cut));
    while (clock_seconds() < end);
  }
  return 0;
}

// Seconds since the start of the rounds, by the clock of rank 0.
static status agree_on_time(screen *s, double *elapsed) {
  double mine = clock_seconds() - s->start, *all;
  TRY(TAKE(&all, (size_t)comm_size(s->j->c), "the clocks of screen"));
  status result = comm_allgather(s->j->c, all, &mine, sizeof mine, "the clocks of screen");
  *elapsed = all[0];
  free(all);
  return result;
}

static status run_rounds(screen *s) {
  static const screen_cut ORDER[SCREEN_CUTS] = {CUT_PROBES, CUT_PROMPT, CUT_DECODE, CUT_WIDE,
                                                CUT_PARTS,  CUT_BATCH,  CUT_RAGGED};
  double wanted = s->j->cfg->screen.seconds, slice = wanted / SLICES, elapsed = 0;
  progress shown = progress_start(job_is_reporting(s->j), "screen", "s", (int64_t)wanted);
  status result = 0;
  int64_t round = 0;
  s->start = clock_seconds();
  for (; !result && (round < SCREEN_CUTS || elapsed < wanted); round++) {
    result = job_agree(s->j, run_units(s, ORDER[round % SCREEN_CUTS], slice < 1 ? slice : 1), "a round");
    if (!result) result = screen_links_run(s, round);
    if (!result) result = agree_on_time(s, &elapsed);
    progress_at(&shown, (int64_t)(elapsed < wanted ? elapsed : wanted));
  }
  progress_end(&shown);
  s->out->rounds = round;
  s->out->seconds = elapsed;
  return result;
}

// ---- the result ----

static status gather(screen *s) {
  screen_result *r = s->out;
  comm *c = s->j->c;
  screen_finding *all;
  r->n_ranks = comm_size(c);
  status mine = TAKE(&r->ranks, (size_t)r->n_ranks, "the ranks of screen");
  if (!mine) mine = TAKE(&r->findings, (size_t)(r->n_ranks * SCREEN_FINDINGS), "the findings of screen");
  TRY(job_agree(s->j, mine, "the result of screen"));
  TRY(comm_allgather(c, r->ranks, &s->mine, sizeof s->mine, "the gathering of coverage"));
  TRY(comm_allgather(c, r->findings, s->found, SCREEN_FINDINGS * sizeof *s->found,
                     "the gathering of findings"));
  all = r->findings;
  for (int q = 0; q < r->n_ranks; q++)
    for (int32_t i = 0; i < r->ranks[q].n_findings; i++)
      all[r->n_findings++] = all[q * SCREEN_FINDINGS + i]; // to the front: never past what is read
  return 0;
}

static void take_answers(screen *s) {
  screen_result *r = s->out;
  for (int p = 0; p < PATH_COUNT; p++)
    if (s->uses[p]) {
      const screen_reference *from = &s->reference[p];
      const path_info *path = path_for((path_kind)p, &s->work.m->weights);
      r->answers[r->n_answers++] = (screen_answer){path, from->expected[from->n - 1], from->voters};
    }
}

static void close_all(screen *s) {
  for (int i = 0; i < SCREEN_UNITS; i++) screen_unit_close(&s->unit[i]);
  for (int p = 0; p < PATH_COUNT; p++) screen_reference_close(&s->reference[p]);
  screen_links_close(&s->links);
  placement_close(&s->experts);
  free(s->tokens);
  free(s->stream);
  free(s->found);
  free(s);
}

status screen_run(job *j, screen_result *out) {
  screen *s;
  *out = (screen_result){.n_tokens = j->cfg->screen.tokens, .sequences = j->cfg->screen.sequences};
  TRY(memory_take((void **)&s, 1, sizeof *s, "the state of screen"));
  s->j = j;
  s->out = out;
  status result = open_all(s);
  if (!result) {
    out->transport = s->links.t ? transport_name(s->links.t) : "self";
    result = run_rounds(s);
  }
  if (!result) result = gather(s);
  if (!result) take_answers(s);
  close_all(s);
  return result;
}

void screen_close(screen_result *r) {
  free(r->ranks);
  free(r->findings);
}
