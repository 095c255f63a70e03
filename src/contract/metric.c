#include "src/contract/metric.h"
#include "src/config/edit_distance.h"
#include <math.h>
#include <string.h>

enum {
  LAYER = 1 << METRIC_OF_LAYER,
  PROBE = 1 << METRIC_OF_PROBE,
  LOGITS = 1 << METRIC_OF_LOGITS,
  ARM = 1 << METRIC_OF_ARM,
};

// max_rel is missing: it is an extreme value, which no bound rests on (docs/metrics.md).
static const metric_info METRICS[] = {
    {"rel_l2", "rel_l2", LAYER | PROBE | LOGITS, 0, INFINITY, false},
    {"one_minus_cos", "one_minus_cos", LAYER | PROBE | LOGITS, 0, 2, false},
    {"cos", "one_minus_cos", LAYER | PROBE | LOGITS, -1, 1, true},
    {"max_abs", "max_abs", LAYER | PROBE | LOGITS, 0, INFINITY, false},
    {"max_ulp", "max_ulp", LAYER | LOGITS, 0, INFINITY, false},
    {"router_flips", "router_flips", LAYER, 0, INFINITY, false},
    {"flipped_tokens", "flipped_tokens", LAYER, 0, INFINITY, false},
    {"flip_margin", "flip_margin", LAYER, 0, 1, false},
    {"min_margin", "min_margin", LAYER, 0, 1, false},
    {"kl", "kl", LOGITS, 0, INFINITY, false},
    {"top1_agreement", "top1_agreement", LOGITS, 0, 1, false},
    {"perplexity_delta", "perplexity_delta", LOGITS, -INFINITY, INFINITY, false},
    {"perplexity", "perplexity", ARM, 1, INFINITY, false},
};
enum { N_METRICS = sizeof METRICS / sizeof *METRICS };

const metric_info *metric_find(const char *name) {
  for (int i = 0; i < N_METRICS; i++)
    if (!strcmp(METRICS[i].name, name)) return &METRICS[i];
  return NULL;
}

const char *metric_nearest(const char *name) {
  int nearest = 0;
  for (int i = 1; i < N_METRICS; i++)
    if (edit_distance(name, METRICS[i].name) < edit_distance(name, METRICS[nearest].name)) nearest = i;
  return METRICS[nearest].name;
}

const char *metric_place_name(metric_place place) {
  switch (place) {
  case METRIC_OF_LAYER:
    return "a layer";
  case METRIC_OF_PROBE:
    return "a probe inside a layer";
  case METRIC_OF_LOGITS:
    return "the logits";
  case METRIC_OF_ARM:
    return "an arm";
  }
  __builtin_unreachable();
}

// Of a bound that the figure may not pass upwards. Below 0 is the good side: of a bound there, a figure is as
// far as it reaches; nothing is used of one above.
static double used_of_most(double figure, double bound) {
  if (isnan(figure)) return figure;
  if (bound < 0) return figure < 0 ? bound / figure : (double)INFINITY;
  if (figure <= 0) return 0;
  return bound > 0 ? figure / bound : (double)INFINITY; // it may be -0
}

double metric_used(const metric_info *m, double figure, double bound, bool at_most) {
  if (at_most) return used_of_most(figure, bound);
  if (isfinite(m->high) && m->high > bound) return used_of_most(m->high - figure, m->high - bound);
  return used_of_most(-figure, -bound);
}
