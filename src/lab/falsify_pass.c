#include "src/lab/falsify_pass.h"
#include "base/memory.h"
#include "src/lab/product_case.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { ADDED_LENGTH = 128 }; // tokens of an added sequence, where the model's context has room

// ---- tokens ----

static int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b) {
  return a > b ? a : b;
}

static status add_sequence(pass *p, int64_t n, uint32_t *state) {
  token_sequence *s = &p->added[p->j.n_sequences];
  TRY(TAKE(&s->tokens, (size_t)n, "drawn tokens"));
  s->n = n;
  for (int64_t i = 0; i < n; i++)
    s->tokens[i] = (int32_t)((uint64_t)xorshift32(state) * (uint64_t)p->j.m->weights.shape.vocabulary >> 32);
  p->j.n_sequences++;
  p->n_added++;
  return 0;
}

// The input's sequences, then drawn ones up to `wanted` tokens.
static status take_tokens(pass *p, experiment_result *out, int64_t wanted) {
  const job *from = &p->j;
  int64_t of_input = from->n_tokens, inputs = from->n_sequences,
          length = least(ADDED_LENGTH, from->m->context_length);
  int64_t missing = most(wanted - of_input, 0);
  uint32_t state = (uint32_t)experiment_integer(out->settings, "tokens_seed");
  if (!state)
    return REFUSE("experiment %d: input.tokens_seed: expected one that is not 0", out->settings->id);
  TRY(TAKE(&p->added, (size_t)(inputs + missing / length + 1), "the sequences"));
  memcpy(p->added, from->sequences, (size_t)inputs * sizeof *p->added);
  p->j.sequences = p->added;
  for (int64_t left = missing; left > 0; left -= length) TRY(add_sequence(p, least(left, length), &state));
  p->j.n_tokens = of_input + missing;
  p->j.context = most(from->context, missing ? length : 0);
  p->j.max_batch = most(least(p->j.n_tokens, p->j.chunk), p->j.n_sequences);
  experiment_add(out, (double)of_input, "tokens_of_input");
  experiment_add(out, (double)missing, "tokens_drawn");
  return 0;
}

// ---- arms ----

static status find_truth(pass *p, int id) {
  const arm_list *arms = &p->j.cfg->run.arms;
  for (p->truth = 0; p->truth < arms->count; p->truth++)
    if (arm_is_truth(&arms->arm[p->truth])) return 0;
  return REFUSE("experiment %d: expected the truth, f64, in run.arms, found none", id);
}

static void name_arms(pass *p) {
  for (size_t a = 0; a < p->n_arms; a++) {
    falsify_prefix(p->prefix[a], &p->j.cfg->run.arms.arm[a]);
    for (size_t b = 0; b < a; b++)
      if (!strcmp(p->prefix[a], p->prefix[b])) p->prefix[a][0] = 0;
  }
}

status pass_open(pass *p, falsify_lab *lab, experiment_result *out, uint32_t points, bool only_truth) {
  const arm_list *arms = &lab->j->cfg->run.arms;
  int64_t wanted = lab->tokens ? lab->tokens : experiment_integer(out->settings, "tokens");
  *p = (pass){.j = *lab->j, .n_arms = arms->count, .only_truth = only_truth};
  TRY(job_agree(lab->j, find_truth(p, out->settings->id), "the arms of an experiment"));
  TRY(job_agree(lab->j, take_tokens(p, out, wanted), "the tokens of an experiment"));
  name_arms(p);
  for (size_t a = 0; a < p->n_arms; a++) {
    if (only_truth && a != p->truth) continue;
    TRY(job_open_arm(&p->j, &arms->arm[a], &p->arm[a]));
    TRY(job_agree(lab->j, arm_probes_open(p->arm[a], points), "the probes of an experiment"));
    arm_keep_logits(p->arm[a], false);
    TRY(job_agree(lab->j, arm_probes_want(p->arm[a], points), "the probes of an experiment"));
  }
  return 0;
}

void pass_close(pass *p) {
  for (size_t a = 0; a < p->n_arms; a++) arm_close(p->arm[a]);
  for (int64_t i = 0; i < p->n_added; i++) free(p->added[p->j.n_sequences - 1 - i].tokens);
  free(p->added);
}

status pass_run(pass *p, parity_mode mode, const step_observer *observer) {
  const arms_in_step all = {.j = &p->j,
                            .arms = p->only_truth ? &p->arm[p->truth] : p->arm,
                            .n_arms = p->only_truth ? 1 : p->n_arms,
                            .reference = p->only_truth ? 0 : p->truth,
                            .mode = mode,
                            .observer = *observer,
                            .without_logits = true,
                            .what = "falsify"};
  return arms_in_step_run(&all);
}

bool pass_is_measured(const pass *p, size_t a) {
  return a != p->truth && p->prefix[a][0];
}
