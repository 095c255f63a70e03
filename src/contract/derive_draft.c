#include "src/contract/derive_draft.h"
#include "base/memory.h"
#include "base/whole_file.h"
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void derive_gates_close(derive_gates *g) {
  for (size_t i = 0; i < g->n; i++) free(g->gate[i].figure);
  free(g->gate);
}

// ---- figures ----

static bool same_gate(const derived_gate *x, const derived_gate *y) {
  return x->a == y->a && x->b == y->b && x->mode == y->mode && x->is_logits == y->is_logits &&
         x->probe == y->probe && x->layer == y->layer && !strcmp(x->metric, y->metric);
}

static status add(derive_gates *g, const derived_gate *which, size_t draw, double figure) {
  size_t i = 0;
  while (i < g->n && !same_gate(&g->gate[i], which)) i++;
  if (i == g->n) {
    TRY(memory_grow((void **)&g->gate, &g->room, g->n, sizeof *g->gate, "the gates"));
    g->gate[g->n] = *which;
    TRY(TAKE(&g->gate[g->n].figure, g->n_draws, "the figures"));
    g->n++;
  }
  g->gate[i].figure[draw] = figure;
  g->gate[i].n_seen++;
  return 0;
}

status derive_gates_add(derive_gates *g, const pair_statistics *pair, parity_mode mode, size_t n_layers,
                        size_t draw) {
  derived_gate gate = {.a = pair->a, .b = pair->b, .mode = mode, .metric = "rel_l2"};
  for (size_t l = 0; l < n_layers; l++) {
    gate.layer = (int32_t)l;
    for (size_t p = 0; p < pair->n_probes; p++) {
      const probe_statistics *s = &pair->probes[l * pair->n_probes + p];
      gate.probe = s->point;
      if (s->n) TRY(add(g, &gate, draw, s->rel_l2.max)); // else no slot was comparable
    }
    gate.probe = PROBE_L_OUT;
    TRY(add(g, &gate, draw, pair->layers[l].rel_l2.max));
  }
  gate.is_logits = true;
  gate.layer = 0;
  TRY(add(g, &gate, draw, pair->rel_l2.max));
  gate.metric = "kl";
  return add(g, &gate, draw, pair->kl.max);
}

// ---- the proposal ----

static void place_of(char out[64], const derived_gate *g) {
  if (g->is_logits)
    snprintf(out, 64, "logits");
  else
    snprintf(out, 64, "%s-%" PRId32, probe_get(g->probe)->name, g->layer);
}

static const char *arm_of(const job *j, size_t a) {
  return j->cfg->run.arms.arm[a].name;
}

// Runs of the checks with at least one gate above its bound.
static size_t count_alarms(derive_gates *g, size_t n_fit) {
  size_t runs = 0;
  for (size_t d = n_fit; d < g->n_draws; d++) {
    bool any = false;
    for (size_t i = 0; i < g->n; i++) {
      bool above = !(g->gate[i].figure[d] <= g->gate[i].fit.bound);
      g->gate[i].alarms += above;
      any = any || above;
    }
    runs += any;
  }
  return runs;
}

// A gate that some draw had no figure for is none: a run might have none either.
static size_t drop_incomplete(derive_gates *g) {
  size_t kept = 0, n = g->n;
  for (size_t i = 0; i < n; i++)
    if (g->gate[i].n_seen == g->n_draws)
      g->gate[kept++] = g->gate[i];
    else
      free(g->gate[i].figure);
  g->n = kept;
  return n - kept;
}

typedef struct {
  double fitted; // of a whole run: not more than the sum over the gates
  size_t n_fit, n_checks, alarms;
} rates;

static void print_gates(const derive_gates *g, const job *j, const rates *r) {
  char place[64];
  printf("\nBounds of %zu gates from %zu draws (median and largest figure, bound, rate at which an honest "
         "run exceeds it "
         "by the fit)\n",
         g->n, r->n_fit);
  printf("  %-22s %-8s %-18s %-7s %10s %10s %10s %9s\n", "pair", "mode", "at", "metric", "median", "largest",
         "bound", "rate");
  for (size_t i = 0; i < g->n; i++) {
    const derived_gate *x = &g->gate[i];
    char pair[2 * ARM_NAME_BYTES + 4];
    snprintf(pair, sizeof pair, "%s - %s", arm_of(j, x->a), arm_of(j, x->b));
    place_of(place, x);
    printf("  %-22s %-8s %-18s %-7s %10.3g %10.3g %10.3g %9.2g\n", pair, parity_mode_name(x->mode), place,
           x->metric, x->fit.median, x->fit.largest, x->fit.bound, x->fit.fitted_rate);
  }
  printf("\nFalse alarms of a whole run: at most %.2g by the fits (the sum over gates). Whatever the "
         "distribution, one "
         "gate's\nrate is below %.2g with 95 %% confidence (no alarm in %zu draws). Tried on %zu fresh "
         "draws: %zu "
         "alarms.\n",
         r->fitted, g->gate[0].fit.sure_rate, r->n_fit, r->n_checks, r->alarms);
}

// A name that is a bare key.
static void put_name(FILE *f, const job *j, const derived_gate *x) {
  char name[192], place[64];
  place_of(place, x);
  snprintf(name, sizeof name, "%s_%s_%s_%s_%s", arm_of(j, x->a), arm_of(j, x->b), parity_mode_name(x->mode),
           place, x->metric);
  for (char *c = name; *c; c++)
    if (*c == '@') *c = '_';
  fprintf(f, "[gates.%s]\n", name);
}

static void put_string(FILE *f, const char *key, const char *text) {
  fprintf(f, "%s = \"", key);
  for (const char *c = text; *c; c++) {
    if (*c == '"' || *c == '\\') fputc('\\', f);
    fputc((unsigned char)*c < 0x20 ? ' ' : *c, f);
  }
  fputs("\"\n", f);
}

static void put_scope(FILE *f, const job *j) {
  const model_shape *s = &j->m->weights.shape;
  fputs("\n[scope]\ncommand = \"parity\"\narms = [", f);
  for (size_t a = 0; a < j->cfg->run.arms.count; a++) fprintf(f, "%s\"%s\"", a ? ", " : "", arm_of(j, a));
  fputs("]\nmodes = [", f);
  for (int m = 0, n = 0; m < MODE_COUNT; m++)
    if (j->cfg->parity.modes >> m & 1)
      fprintf(f, "%s\"%s\"", n++ ? ", " : "", parity_mode_name((parity_mode)m));
  fprintf(f, "]\nkv = \"%s\"\n", j->cfg->run.kv == KV_F16 ? "f16" : "f32");
  fprintf(f, "reference = \"%016" PRIx64 "\" # the model of the arm that the others are measured against\n",
          job_reference_fingerprint(j));
  fprintf(f, "n_layers = %lld\nhidden = %lld\nn_experts = %lld\ntop_k = %lld\nvocabulary = %lld\n",
          (long long)s->n_layers, (long long)s->hidden, (long long)s->n_experts, (long long)s->top_k,
          (long long)s->vocabulary);
}

static void put_draft(FILE *f, const derive_gates *g, const job *j, const char *run, const rates *r) {
  char place[64];
  fprintf(
      f,
      "# A draft: bounds that moe_run verify --derive took from %zu honest draws of %" PRId64
      " tokens each, and tried on\n# %zu fresh ones: %zu alarms. By the fits a whole run gives a false alarm "
      "at a rate "
      "of at most %.2g; whatever the\n# distribution, one gate's rate is below %.2g with 95 %% confidence. "
      "docs/contracts.md says how.\n",
      r->n_fit, j->n_tokens, r->n_checks, r->alarms, r->fitted, g->gate[0].fit.sure_rate);
  fputs("name = \"derived\"\nversion = 1\nstatus = \"draft\"\n", f);
  put_string(f, "run", run);
  put_scope(f, j);
  for (size_t i = 0; i < g->n; i++) {
    const derived_gate *x = &g->gate[i];
    place_of(place, x);
    fputc('\n', f);
    put_name(f, j, x);
    fprintf(f, "metric = \"%s\"\npair = [\"%s\", \"%s\"]\nat = \"%s\"\nmode = \"%s\"\n", x->metric,
            arm_of(j, x->a), arm_of(j, x->b), place, parity_mode_name(x->mode));
    fprintf(f, "at_most = %.9g # median %.3g, largest %.3g; an honest run exceeds it at a rate of %.2g\n",
            x->fit.bound, x->fit.median, x->fit.largest, x->fit.fitted_rate);
  }
}

static status write_draft(const derive_gates *g, const job *j, const char *run, const rates *r) {
  whole_file file = {.f = NULL};
  const char *dir = j->cfg->output.dir;
  status result;
  TRY_DONE(result, whole_file_open(&file, dir, "contract.toml"));
  put_draft(file.f, g, j, run, r);
  TRY_DONE(result, whole_file_sync(&file));
  TRY_DONE(result, whole_file_name(&file));
  result = whole_file_sync_dir(dir);
done:
  whole_file_abandon(&file);
  return result;
}

status derive_gates_propose(derive_gates *g, const job *j, const char *run, size_t n_fit) {
  rates r = {.n_fit = n_fit, .n_checks = g->n_draws - n_fit};
  size_t dropped = drop_incomplete(g);
  if (dropped) printf("\n%zu gates are left out: some draw had nothing to compare there\n", dropped);
  for (size_t i = 0; i < g->n; i++) {
    TRY(bound_fit_of(&g->gate[i].fit, g->gate[i].figure, n_fit, j->cfg->derive.rate / (double)g->n));
    r.fitted += g->gate[i].fit.fitted_rate;
  }
  r.alarms = count_alarms(g, n_fit);
  print_gates(g, j, &r);
  if (fflush(stdout)) return FAIL("standard output: the bounds could not be written: %m");
  return j->cfg->output.dir[0] ? write_draft(g, j, run, &r) : 0;
}
