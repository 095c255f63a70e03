#include "src/run/sampler.h"
#include "base/memory.h"
#include "kernels/formats/numerics.h"
#include <math.h>
#include <stdlib.h>

typedef struct {
  double p;
  int32_t token;
} candidate;

struct sampler {
  sampler_settings settings;
  int64_t vocabulary;
  candidate *list; // [vocabulary]
};

status sampler_open(sampler **out, const sampler_settings *settings, int64_t vocabulary) {
  *out = NULL;
  sampler *s;
  TRY(memory_take((void **)&s, 1, sizeof *s, "the sampler"));
  s->settings = *settings;
  s->vocabulary = vocabulary;
  if (TAKE(&s->list, (size_t)vocabulary, "the sampler")) {
    sampler_close(s);
    return 1;
  }
  *out = s;
  return 0;
}

void sampler_close(sampler *s) {
  if (!s) return;
  free(s->list);
  free(s);
}

static int by_probability(const void *a, const void *b) {
  const candidate *x = (const candidate *)a, *y = (const candidate *)b;
  if (x->p != y->p) return x->p > y->p ? -1 : 1;
  return x->token < y->token ? -1 : 1;
}

// In [0, 1), from the seed and the position alone.
static double uniform(uint64_t seed, int64_t position) {
  uint64_t bits = num_mix64(num_mix64(seed + 0x9e3779b97f4a7c15u) + (uint64_t)position * 0x9e3779b97f4a7c15u);
  return (double)(bits >> 11) * 0x1p-53;
}

static int32_t draw(sampler *s, const double *logits, double max, int64_t position) {
  const sampler_settings *set = &s->settings;
  int64_t n = s->vocabulary, kept = 0;
  double sum = 0, part = 0;
  for (int64_t v = 0; v < n; v++)
    s->list[v] = (candidate){num_exp_f64((logits[v] - max) / set->temperature), (int32_t)v};
  qsort(s->list, (size_t)n, sizeof *s->list, by_probability);
  if (set->top_k && set->top_k < n) n = set->top_k;
  for (int64_t i = 0; i < n; i++) sum += s->list[i].p;
  while (kept < n && (kept == 0 || part < set->top_p * sum)) part += s->list[kept++].p;
  double at = uniform(set->seed, position) * part, below = 0;
  for (int64_t i = 0; i < kept; i++) {
    below += s->list[i].p;
    if (at < below) return s->list[i].token;
  }
  return s->list[kept - 1].token;
}

status sampler_next(sampler *s, const double *logits, int64_t position, int32_t *token) {
  int32_t best = 0;
  for (int64_t v = 0; v < s->vocabulary; v++) {
    if (!isfinite(logits[v]))
      return FAIL("position %lld: logit %lld is %g: nothing can be sampled", (long long)position,
                  (long long)v, logits[v]);
    if (logits[v] > logits[best]) best = (int32_t)v;
  }
  *token = s->settings.temperature > 0 ? draw(s, logits, logits[best], position) : best;
  return 0;
}
