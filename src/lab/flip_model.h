// flip_model: how often a router whose logits have small errors chooses another set of experts.
//
// Independent of: where logits come from, ranks.
#pragma once
#include <stdbool.h>
#include <stdint.h>

// chosen[n]: the top k of logits[n], the lower index first on a tie. Returns the margin, the last chosen
// logit less the best that was left out; infinite where k >= n.
double flip_choose(bool *chosen, const double *logits, int64_t n, int64_t k);

// The chance that the chosen set changes where each of logits[n] gets a normal error of its own, of standard
// deviation sigma > 0. chosen[n] and margin: of flip_choose. To about 1e-4, and 0 beyond 16 sigma.
double flip_chance(const double *logits, const bool *chosen, int64_t n, double margin, double sigma);
