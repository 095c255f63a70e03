#include "src/commands/parity.h"
#include "src/commands/gate.h"
#include "base/memory.h"
#include "kernels/formats/numerics.h"
#include "src/commands/generate.h"
#include "src/commands/known.h"
#include "src/commands/route_files.h"
#include "src/lab/pair_figures.h"
#include "src/report/npy.h"
#include <stdio.h>
#include <stdlib.h>

typedef struct {
  job *j;
  size_t n_arms, n_pairs;
  arm *arm[CONFIG_MAX_ARMS];
  npy *logits_file[CONFIG_MAX_ARMS];
  // Each sequence's last logits, [n_sequences][vocabulary], to continue its text; NULL: not needed, or an
  // expert rank.
  double *last[CONFIG_MAX_ARMS];
  double nll[CONFIG_MAX_ARMS]; // of the free run; on the reporting rank
  routes imposed;              // parity.routes
  route_files routes;          // of the free run; on the reporting rank
  account_samples *accounts;   // [n_pairs] where all modes run; on the reporting rank
  report r;
} parity;

typedef struct { // a run, for its observer
  parity *p;
  pair_figures figures;
} run;

// ---- pairs ----

// Each arm against the reference first, then the others among themselves; a pair's `b` is what `a` is
// measured against.
static void list_pairs(const arm_list *arms, pair_statistics *out) {
  size_t reference = arms_reference(arms), n = 0;
  for (size_t a = 0; a < arms->count; a++)
    if (a != reference) {
      out[n].a = a;
      out[n++].b = reference;
    }
  for (size_t b = 0; b < arms->count; b++)
    for (size_t a = b + 1; a < arms->count; a++)
      if (a != reference && b != reference) {
        out[n].a = a;
        out[n++].b = b;
      }
}

// ---- open and close ----

static bool has_mode(const parity *p, parity_mode mode) {
  return p->j->cfg->parity.modes >> mode & 1;
}

static bool has_account(const parity *p) {
  return has_mode(p, MODE_FORCED) && has_mode(p, MODE_TEACHER);
}

static status open_logits(parity *p) {
  const config *c = p->j->cfg;
  for (size_t a = 0; a < p->n_arms && p->r.has_logits; a++) {
    char name[64];
    snprintf(name, sizeof name, "logits.%s.npy", c->run.arms.arm[a].name);
    bool wide = arm_path(p->arm[a])->real_bytes == sizeof(double);
    npy_row row = {wide ? NPY_F64 : NPY_F32, 1, {p->j->m->weights.shape.vocabulary}};
    TRY(npy_open(&p->logits_file[a], c->output.dir, name, &row));
  }
  return 0;
}

static status open_accounts(parity *p) {
  const model_shape *s = &p->j->m->weights.shape;
  if (!has_account(p)) return 0;
  TRY(TAKE(&p->accounts, p->n_pairs, "the account"));
  for (size_t i = 0; i < p->n_pairs; i++)
    TRY(account_samples_open(&p->accounts[i], s->n_layers, p->j->n_tokens, p->j->max_batch, s->hidden));
  return job_report_accounts(&p->r);
}

static status open_reporting(parity *p) {
  const model_shape *s = &p->j->m->weights.shape;
  for (size_t a = 0; a < p->n_arms; a++)
    TRY(arm_checks_open(&p->r.arms[a].checks, s->n_layers, s->hidden, p->j->max_batch));
  TRY(open_logits(p));
  TRY(open_accounts(p));
  return p->r.has_routes
             ? route_files_open(&p->routes, p->arm, p->n_arms, &p->j->m->weights.shape, p->j->n_tokens)
             : 0;
}

static status open_imposed(parity *p) {
  const config *c = p->j->cfg;
  if (!c->parity.routes[0]) return 0;
  TRY(job_agree(p->j, routes_open(&p->imposed, c->parity.routes, &p->j->m->weights.shape, p->j->n_tokens),
                "parity.routes"));
  p->r.imposes_routes = true;
  p->r.imposed_routes = p->imposed.hash;
  return comm_equal(p->j->c, &p->imposed.hash, sizeof p->imposed.hash, "the file of parity.routes");
}

static status parity_open(parity *p, job *j) {
  const arm_list *arms = &j->cfg->run.arms;
  *p = (parity){.j = j, .n_arms = arms->count, .n_pairs = arms->count * (arms->count - 1) / 2};
  size_t logit_count = (size_t)(j->n_sequences * j->m->weights.shape.vocabulary);
  TRY(job_report_open(j, &p->r, p->n_arms, p->n_pairs, p->n_pairs * (size_t)j->n_tokens));
  list_pairs(arms, p->r.pairs);
  p->r.has_logits = j->cfg->output.logits && j->cfg->output.dir[0];
  p->r.has_routes = j->cfg->output.routes && j->cfg->output.dir[0];
  TRY(open_imposed(p));
  for (size_t a = 0; a < p->n_arms; a++) {
    TRY(job_open_arm(j, &arms->arm[a], &p->arm[a]));
    if (j->cfg->run.generate && arm_computes_shared(p->arm[a]))
      TRY(TAKE(&p->last[a], logit_count, "last logits"));
  }
  return job_agree(j, job_is_reporting(j) ? open_reporting(p) : 0, "opening the comparison");
}

static void parity_close(parity *p) {
  for (size_t a = 0; a < p->n_arms; a++) {
    arm_close(p->arm[a]);
    npy_abandon(p->logits_file[a]);
    free(p->last[a]);
  }
  for (size_t i = 0; i < p->n_pairs && p->accounts; i++) account_samples_close(&p->accounts[i]);
  free(p->accounts);
  routes_close(&p->imposed);
  route_files_close(&p->routes);
  job_report_close(&p->r);
}

// ---- the free run: what it keeps beside the figures ----

static status see_embedded(void *context, const token_batch *batch, int64_t first) {
  run *u = context;
  int64_t hidden = u->p->j->m->weights.shape.hidden;
  TRY(pair_figures_embedded(&u->figures, batch, first));
  for (size_t a = 0; a < u->p->n_arms && job_is_reporting(u->p->j); a++) {
    double *stream = u->figures.stream[a];
    TRY(arm_stream_read(u->p->arm[a], stream));
    for (int64_t t = 0; t < batch->n; t++)
      arm_checks_embedded(&u->p->r.arms[a].checks, t, stream + t * hidden);
  }
  return 0;
}

// After pair_figures_layer, which has read the streams.
static void check_layer(run *u, int64_t layer, const token_batch *batch) {
  const model_shape *s = &u->p->j->m->weights.shape;
  for (size_t a = 0; a < u->p->n_arms && job_is_reporting(u->p->j); a++)
    for (int64_t t = 0; t < batch->n; t++)
      arm_checks_layer(&u->p->r.arms[a].checks, layer, t, u->figures.stream[a] + t * s->hidden,
                       arm_experts(u->p->arm[a], t), arm_weights(u->p->arm[a], t), s->top_k);
}

static status see_layer(void *context, int64_t layer, const token_batch *batch, int64_t first) {
  run *u = context;
  if (u->p->r.has_routes && job_is_reporting(u->p->j))
    route_files_keep(&u->p->routes, u->p->arm, layer, first, batch->n);
  TRY(pair_figures_layer(&u->figures, layer, batch, first));
  check_layer(u, layer, batch);
  return 0;
}

static void keep_last(parity *p, const token_batch *batch, int64_t from, int64_t count) {
  int64_t vocabulary = p->j->m->weights.shape.vocabulary;
  for (int64_t i = 0; i < count && p->j->cfg->run.generate; i++) {
    int64_t s = batch->sequence[from + i];
    if (batch->position[from + i] != p->j->sequences[s].n - 1) continue;
    for (size_t a = 0; a < p->n_arms; a++)
      if (p->last[a]) arm_logits(p->arm[a], i, p->last[a] + s * vocabulary);
  }
}

// A row of tokens.csv for each pair.
static void keep_token(run *u, const token_batch *batch, int64_t t, int64_t at) {
  parity *p = u->p;
  for (size_t n = 0; n < p->n_pairs; n++) {
    const logit_metrics *m = &u->figures.samples[n].logits[at];
    p->r.tokens[(size_t)at * p->n_pairs + n] =
        (report_token){.sequence = batch->sequence[t],
                       .position = batch->position[t],
                       .token = batch->token[t],
                       .pair = n,
                       .rel_l2 = m->row.rel_l2,
                       .one_minus_cos = m->row.one_minus_cos,
                       .max_abs = m->row.max_abs,
                       .max_rel = m->row.max_rel,
                       .kl = m->kl,
                       .top1_agrees = m->top1_agrees,
                       .margin = m->margin,
                       .router_flips = pair_samples_flips(&u->figures.samples[n], at)};
  }
}

static void check_logits(run *u, int64_t i) {
  for (size_t a = 0; a < u->p->n_arms; a++) {
    arm_logits(u->p->arm[a], i, u->figures.logits[a]);
    arm_checks_logits(&u->p->r.arms[a].checks, u->figures.logits[a], u->p->j->m->weights.shape.vocabulary);
  }
}

static status see_logits(void *context, const token_batch *batch, int64_t first, int64_t from,
                         int64_t count) {
  run *u = context;
  parity *p = u->p;
  keep_last(p, batch, from, count);
  if (!job_is_reporting(p->j)) return 0;
  for (size_t a = 0; a < p->n_arms; a++)
    if (p->logits_file[a]) TRY(npy_append(p->logits_file[a], arm_logit_rows(p->arm[a]), (size_t)count));
  TRY(pair_figures_logits(&u->figures, batch, first, from, count));
  for (int64_t i = 0; i < count; i++) {
    keep_token(u, batch, from + i, first + from + i);
    check_logits(u, i);
  }
  return 0;
}

// ---- a run in a mode ----

static arms_in_step in_step(parity *p, run *u, parity_mode mode) {
  static const step_observer FREE = {NULL, see_embedded, see_layer, see_logits},
                             OTHER = {NULL, pair_figures_embedded, pair_figures_layer, pair_figures_logits};
  arms_in_step s = {.j = p->j,
                    .arms = p->arm,
                    .n_arms = p->n_arms,
                    .reference = arms_reference(&p->j->cfg->run.arms),
                    .mode = mode,
                    .imposed = p->r.imposes_routes ? &p->imposed : NULL,
                    .observer = mode == MODE_FREE ? FREE : OTHER};
  s.observer.context = mode == MODE_FREE ? (void *)u : (void *)&u->figures;
  return s;
}

// Fills out[n_pairs] on the reporting rank.
static status run_mode(parity *p, parity_mode mode, pair_statistics *out) {
  run u = {.p = p};
  status result;
  TRY_DONE(result, pair_figures_open(&u.figures, p->j, p->arm, p->n_arms, p->r.pairs, p->n_pairs, mode,
                                     p->r.imposes_routes, p->accounts));
  arms_in_step s = in_step(p, &u, mode);
  TRY_DONE(result, arms_in_step_run(&s));
  TRY_DONE(result, job_agree(p->j, job_is_reporting(p->j) ? pair_figures_reduce(&u.figures, out) : 0,
                             "reducing the comparison"));
  for (size_t a = 0; a < p->n_arms && mode == MODE_FREE && u.figures.nll; a++) p->nll[a] = u.figures.nll[a];
done:
  pair_figures_close(&u.figures);
  return result;
}

// ---- results ----

static status finish_arm(parity *p, size_t a) {
  int64_t targets = p->j->n_tokens - p->j->n_sequences;
  TRY(job_report_arm(p->j, p->arm[a], &p->r, a, p->j->n_tokens));
  if (targets > 0) p->r.arms[a].perplexity = num_exp_f64(p->nll[a] / (double)targets);
  p->r.arms[a].scored = targets;
  arm_watch_layers(p->arm[a], false); // nothing is compared while it generates
  TRY(arm_probes_want(p->arm[a], 0));
  if (p->j->cfg->run.generate) TRY(generate_continue(p->j, p->arm[a], p->last[a], NULL, &p->r.arms[a]));
  return job_check_digest(p->j, p->arm[a]);
}

// After the free run, whose caches generate_continue needs.
static status run_other_modes(parity *p) {
  for (int m = MODE_FREE + 1; m < MODE_COUNT; m++) {
    if (!has_mode(p, (parity_mode)m)) continue;
    pair_statistics *out;
    TRY(job_report_mode_open(p->j, &p->r, (parity_mode)m, &out));
    TRY(run_mode(p, (parity_mode)m, out));
    TRY(job_report_mode(p->j, p->arm, &p->r));
  }
  return 0;
}

// Each arm once, by the first pair that it is in.
static status warn_of_flat_logits(parity *p) {
  bool told[CONFIG_MAX_ARMS] = {false};
  for (size_t i = 0; i < p->n_pairs; i++)
    for (int side = 0; side < 2; side++) {
      const pair_statistics *s = &p->r.pairs[i];
      size_t a = side ? s->b : s->a;
      int64_t flat = side ? s->flat_b : s->flat_a;
      if (told[a] || !flat) continue;
      told[a] = true;
      TRY(message_list_add(&p->j->warnings,
                           "%s: all logits are equal at %lld of %lld positions: no agreement",
                           p->r.arms[a].name, (long long)flat, (long long)p->j->n_tokens));
    }
  return job_warn(p->j);
}

static status finish_reporting(parity *p) {
  TRY(warn_of_flat_logits(p));
  for (size_t i = 0; i < p->n_pairs && p->accounts; i++)
    TRY(account_samples_reduce(&p->accounts[i], &p->r.accounts[i]));
  if (p->r.has_routes) TRY(route_files_write(&p->routes, p->j->cfg, &p->j->experts));
  for (size_t a = 0; a < p->n_arms; a++) {
    npy *f = p->logits_file[a];
    p->logits_file[a] = NULL;
    if (f) TRY(npy_finish(f));
  }
  return 0;
}

static status check_output(const config *c) {
  if (c->output.dir[0] || (!c->output.logits && !c->output.routes)) return 0;
  return REFUSE("output.%s = true: expected a folder for them (output.dir, --out), found none",
                c->output.logits ? "logits" : "routes");
}

status parity_run(job *j) {
  parity p;
  status result;
  TRY(job_agree(j, check_output(j->cfg), "output.logits"));
  TRY(job_agree(j, known_check_table(j->cfg), "the known answers"));
  TRY_DONE(result, parity_open(&p, j));
  TRY_DONE(result, run_mode(&p, MODE_FREE, p.r.pairs));
  for (size_t a = 0; a < p.n_arms; a++) TRY_DONE(result, finish_arm(&p, a));
  TRY_DONE(result, run_other_modes(&p));
  TRY_DONE(result,
           job_agree(j, job_is_reporting(j) ? finish_reporting(&p) : 0, "the files of the comparison"));
  result = gate_report_finish(j, &p.r);
  if (result && result != STATUS_DIFFERS) goto done;
  status known = known_judge_report(j, &p.r);
  if (known) result = known;
done:
  parity_close(&p);
  return result;
}
