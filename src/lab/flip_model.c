#include "src/lab/flip_model.h"
#include <math.h>
#include <string.h>

double flip_choose(bool *chosen, const double *logits, int64_t n, int64_t k) {
  double last = 0;
  memset(chosen, 0, (size_t)n * sizeof *chosen);
  for (int64_t slot = 0; slot <= k; slot++) {
    int64_t best = -1;
    for (int64_t e = 0; e < n; e++)
      if (!chosen[e] && (best < 0 || logits[e] > logits[best])) best = e;
    if (best < 0) return (double)INFINITY; // every expert is chosen
    if (slot == k) return last - logits[best];
    chosen[best] = true;
    last = logits[best];
  }
  return 0;
}

static double normal_below(double z) { // Phi
  return erfc(-z / sqrt(2)) / 2;
}

// The chance that every chosen expert lies above t; that every other one lies below it.
static double chance_at(const double *logits, const bool *chosen, int64_t n, double t, double sigma,
                        bool of_chosen) {
  double chance = 1;
  for (int64_t e = 0; e < n; e++)
    if (chosen[e] == of_chosen) chance *= normal_below((of_chosen ? logits[e] - t : t - logits[e]) / sigma);
  return chance;
}

// One less the chance that the least chosen one stays above the best of the others, as an integral over where
// the least chosen one lies.
double flip_chance(const double *logits, const bool *chosen, int64_t n, double margin, double sigma) {
  enum { STEPS = 160 };
  const double reach = 8 * sigma; // what lies further out has no weight in a double
  if (!(margin <= 2 * reach)) return 0;
  double last = (double)INFINITY, same = 0;
  for (int64_t e = 0; e < n; e++)
    if (chosen[e] && logits[e] < last) last = logits[e];
  double low = last - margin - reach, step = (margin + 2 * reach) / STEPS;
  double above = chance_at(logits, chosen, n, low, sigma, true),
         below = chance_at(logits, chosen, n, low, sigma, false);
  for (int i = 1; i <= STEPS; i++) {
    double t = low + i * step;
    double next_above = chance_at(logits, chosen, n, t, sigma, true),
           next_below = chance_at(logits, chosen, n, t, sigma, false);
    same += (above - next_above) * (below + next_below) / 2;
    above = next_above;
    below = next_below;
  }
  return same < 1 ? 1 - same : 0;
}
