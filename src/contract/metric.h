// metric: the metrics that a gate can name, where each stands in a report, and its range (docs/metrics.md).
#pragma once
#include "base/status.h"

typedef enum { METRIC_OF_LAYER, METRIC_OF_PROBE, METRIC_OF_LOGITS, METRIC_OF_ARM } metric_place;

typedef struct {
  const char *name, *key; // key: in report.json
  unsigned places;        // bits 1 << metric_place
  double low, high;       // no figure lies outside
  bool from_one;          // the figure is 1 - that of the key
} metric_info;

const metric_info *metric_find(const char *name); // NULL: no gate can name it
const char *metric_nearest(const char *name);
const char *metric_place_name(metric_place place);

// The figure's share of what the bound allows, at most 1 where it holds and more where it fails, perhaps
// infinite: figure / bound, or of a metric with a finite best value (cos, top1_agreement) the loss over the
// loss that is allowed; of a bound on the good side of 0 bound / figure. NaN: the figure is.
double metric_used(const metric_info *m, double figure, double bound, bool at_most);
